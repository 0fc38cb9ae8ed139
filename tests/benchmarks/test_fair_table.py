"""The fair table: the pages show what was trained, and every network was trained with every recipe that another got."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path, PurePosixPath

import pytest

from nnunet_logvmamba.evaluation.metrics import METRICS
from nnunet_logvmamba.results import comparison
from nnunet_logvmamba.results.record import RECORD_NAME

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "benchmarks" / "results" / "fair_hippocampus.json"
DIRECTIONS = FILE.with_name("directions_hippocampus.json")
STATES = FILE.with_name("states_hippocampus.json")

sys.path.append(str(ROOT / "benchmarks"))

import kept  # noqa: E402
import paper_tables  # noqa: E402

ROWS = {row.family: row.name for row in paper_tables.rows_of("fair", paper_tables.DATA["hippocampus"])}
AT_LEAST = {"LoGVMamba", "NoSSM", "StockNetwork"}


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return [training["fold"][RECORD_NAME] for training in kept.read(FILE).values()]


def restore(file: Path, results: Path) -> Path:
    kept.restore(file, results, {PurePosixPath(name).parts[1] for name in kept.read(file)})
    return results


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> comparison.Comparison:
    results = restore(FILE, tmp_path_factory.mktemp("fair"))
    trainings = kept.read(FILE)
    families = {PurePosixPath(name).parts[1].partition("_seed")[0].removeprefix("nnUNetTrainer") for name in trainings}
    return comparison.compare([results], renamed={family: name for family, name in ROWS.items() if family in families})


def test_every_network_has_every_recipe_with_every_seed(records):
    of_recipe: dict[tuple, set] = {}
    for record in records:
        recipe = tuple(sorted(record["recipe"].items()))
        network = record["trainer"].removeprefix("nnUNetTrainer").partition("_")[0]
        of_recipe.setdefault(recipe, set()).add((network, record["seed"]))
    networks = {network for trained in of_recipe.values() for network, _ in trained}
    assert networks >= AT_LEAST
    for trained in of_recipe.values():
        assert trained == set(itertools.product(networks, {seed for _, seed in trained}))
        assert len({seed for _, seed in trained}) > 1
    assert len(records) == sum(map(len, of_recipe.values()))


def test_all_else_is_equal(records):
    budgets = {(record["epochs_done"] * record["iterations_per_epoch"], record["batch_size"]) for record in records}
    assert budgets == {(600, 2)}
    assert {tuple(record["patch_size"]) for record in records} == {(40, 56, 40)}
    for key in ("dataset", "plans", "configuration", "fold", "spacing", "split", "device", "versions"):
        assert len({repr(record[key]) for record in records}) == 1, key


def _score(compared: comparison.Comparison, metric: str, name: str) -> str:
    score = compared.scores[metric][name][comparison.AVERAGE]
    decimals = METRICS[metric].decimals
    return f"{score.mean:.{decimals}f} ± {score.error:.{decimals}f}"


@pytest.mark.parametrize(("page", "metrics"), [("docs/results.md", ("dice", "nsd", "hd95")), ("README.md", ("dice",))])
def test_the_pages_show_what_was_trained(compared, page, metrics):
    text = (ROOT / page).read_text(encoding="utf-8")
    for method in compared.methods:
        cells = [f"{method.costs['parameters']:,}", *(_score(compared, metric, method.name) for metric in metrics)]
        assert f"| {method.name} | {' | '.join(cells)} |" in text


def test_the_page_says_how_many_pairs_differ(compared):
    text = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    pairs = [pair for pair in compared.pairs if (pair.metric, pair.label) == ("dice", comparison.AVERAGE)]
    beyond = [pair for pair in pairs if pair.verdict == "beyond noise"]
    assert f"{len(beyond)} of {len(pairs)} pairs of the fair table differ beyond noise in Dice" in text


def with_one_knob_turned(file: Path, folder: Path, records: list[dict], names: dict[str, str]) -> comparison.Comparison:
    """Compare trainings of LoG-VMamba in the fair table with others, once they are found alike and in the page."""
    stored = kept.read(file)
    found = [training["fold"][RECORD_NAME] for training in stored.values()]
    assert {(record["configuration"], record["seed"]) for record in found} == set(itertools.product(names, (1, 2, 3)))
    for key in ("recipe", "split", "patch_size", "batch_size", "epochs_done", "iterations_per_epoch", "versions"):
        assert {repr(record[key]) for record in found} == {repr(records[0][key])}, key
    fair = kept.read(FILE)
    assert all(training == fair[name] for name, training in stored.items() if "base" in name)
    compared = comparison.compare([restore(file, folder)], renamed=names)
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for method in compared.methods:
        cells = [f"{method.costs['parameters']:,}", *(_score(compared, one, method.name) for one in compared.metrics)]
        assert f"| LoG-VMamba, {method.name} | {' | '.join(cells)} |" in text
    return compared


def test_directions_are_those_of_the_fair_table_with_one_knob_turned(tmp_path, records):
    names = {"base_24x25": "1 direction", "directions_2_24x25": "2 directions"}
    compared = with_one_knob_turned(DIRECTIONS, tmp_path, records, names)
    (beyond,) = [pair for pair in compared.pairs if pair.verdict != "within noise"]
    assert (beyond.metric, beyond.label, beyond.verdict) == ("dice", "Posterior", "beyond noise")
    sentence = f"Of single classes, the Dice of Posterior is beyond noise, by {abs(beyond.test.difference):.4f}."
    assert sentence in " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())


def test_states_are_those_of_the_fair_table_with_one_knob_turned(tmp_path, records):
    names = {"base_24x25": "16 states", "state_size_32_24x25": "32 states"}
    compared = with_one_knob_turned(STATES, tmp_path, records, names)
    assert {pair.verdict for pair in compared.pairs} == {"within noise"}
