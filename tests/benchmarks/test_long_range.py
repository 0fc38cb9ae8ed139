"""The script that asks which network sees how far: equal terms, and once for real, tiny."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def long_range():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        specification = importlib.util.spec_from_file_location("long_range", BENCHMARKS / "long_range.py")
        module = importlib.util.module_from_spec(specification)
        sys.modules["long_range"] = module
        specification.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


TASK = {"dims": 2, "distance": 28, "along": "fast", "control": False}


@pytest.mark.parametrize("dims", [2, 3])
def test_networks_have_the_same_number_of_parameters_within_a_tenth(long_range, dims):
    names = [name for name, (_, channels) in long_range.NETWORKS.items() if dims in channels]
    sizes = {name: sum(p.numel() for p in long_range.network_of(name, dims).parameters()) for name in names}
    assert len(sizes) == {2: 7, 3: 5}[dims]
    for name, size in sizes.items():
        assert size == pytest.approx(sizes["LoG-VMamba"], rel=0.1), name


def test_nnunets_network_begins_with_the_weights_that_nnunet_gives_it(long_range):
    long_range.torch.manual_seed(0)
    network = long_range.network_of(long_range.STOCK, 2)
    maps = [
        layer for layer in network.modules() if isinstance(layer, long_range.nn.Conv2d) and layer.kernel_size[0] > 1
    ]
    for layer in maps:
        assert not layer.bias.any()
        fan_in = layer.weight[0].numel()
        assert float(layer.weight.detach().std()) == pytest.approx((2 / (1 + 1e-4) / fan_in) ** 0.5, rel=0.2)


def test_every_setting_is_another_network_than_the_default(long_range):
    x, _ = long_range.images(range(1), 1, TASK)
    found = []
    for name in ["LoG-VMamba", *long_range.SETTINGS]:
        long_range.torch.manual_seed(0)
        found.append(long_range.network_of(name, 2).eval()(x).detach())
    for index, one in enumerate(found):
        assert not any(long_range.torch.equal(one, other) for other in found[:index])


def test_all_networks_of_a_seed_see_the_same_images_and_tests_are_others(long_range):
    first, again = (long_range.images(range(4), 1, TASK) for _ in range(2))
    assert all((one == two).all() for one, two in zip(first, again))
    assert first[0].shape == first[1].shape == (4, 1, 96, 96)
    assert set(first[1].unique().tolist()) == {0, 1, 2}
    other = long_range.tests(TASK, "cpu")
    assert sum(len(x) for x, _ in other) == 64
    assert not any((one == two).all() for one in other[0][0] for two in first[0])
    across = long_range.images(range(4), 1, TASK | {"along": "slow"})
    assert (across[1] == first[1].transpose(2, 3)).all()
    solid = long_range.images(range(2), 1, TASK | {"dims": 3})
    assert solid[0].shape == (2, 1, 32, 32, 96)


def test_accuracy_counts_the_targets_that_get_their_own_class(long_range):
    x, y = long_range.images(range(3), 1, TASK)
    logits = long_range.torch.nn.functional.one_hot(y[:, 0].long(), 3).movedim(-1, 1).float()
    assert long_range.named(lambda _: logits, [(x, y)]) == 1
    assert long_range.named(lambda _: logits[:, [0, 2, 1]], [(x, y)]) == 0
    half = logits.clone()
    half[:, :, :48] = half[:, [0, 2, 1], :48]  # the upper two of four targets
    assert long_range.named(lambda _: half, [(x, y)]) == 0.5


def stored(long_range, **wanted) -> list[dict]:
    rows = long_range.read(BENCHMARKS / "results" / "long_range_cpu.json")
    return [row for row in rows if {"dims": 2, "control": False, **wanted}.items() <= row.items()]


@pytest.mark.parametrize("along", ["fast", "slow"])
def test_the_tables_of_the_results_are_what_was_measured_with_equal_terms(long_range, along):
    rows = stored(long_range, along=along)
    assert long_range.table(rows) in (BENCHMARKS.parent / "docs" / "results.md").read_text(encoding="utf-8")
    assert {row["iterations"] for row in rows} == {1500}
    assert len({long_range.key(row) for row in rows}) == len(rows)
    for distance in {row["distance"] for row in rows}:
        of_network = {}
        for row in rows:
            if row["distance"] == distance and row["network"] in long_range.NETWORKS:
                of_network.setdefault(row["network"], set()).add(row["seed"])
        assert set(of_network) == set(long_range.NETWORKS), "a network is missing"
        assert len(set(map(frozenset, of_network.values()))) == 1, "networks have other seeds"


def test_what_the_page_says_of_3d_was_measured(long_range):
    rows = stored(long_range, dims=3)
    assert {(row["along"], row["iterations"], row["seed"]) for row in rows} == {("fast", 1500, 1)}
    assert {row["network"] for row in rows} >= {"LoG-VMamba", "VSS", "NoSSM", "nnU-Net's network"}
    page = (BENCHMARKS.parent / "docs" / "results.md").read_text(encoding="utf-8")
    assert long_range.table(rows) in page
    assert f"In 3D guessing names {long_range.majority(3):.0%}".replace("%", " %") in page
    assert f"All {len(long_range.read(BENCHMARKS / 'results' / 'long_range_cpu.json'))} trainings are" in page


def test_the_lines_to_reproduce_name_what_is_stored_but_for_what_the_page_says(long_range, monkeypatch):
    page = (BENCHMARKS.parent / "docs" / "reproduce.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [shlex.split(line) for line in re.findall(r"^bash benchmarks/tables.sh long_range (.+)$", page, re.M)]
    missing = set()
    for words in lines:
        monkeypatch.setattr(sys, "argv", ["long_range.py", *words])
        asked = long_range.arguments()
        assert asked.results == Path("NEW.json")
        task = {name: getattr(asked, name) for name in ("dims", "along", "control", "iterations")}
        rows = stored(long_range, **task)
        of_line = set(itertools.product(asked.networks, asked.distances, asked.seeds))
        missing |= of_line - {(row["network"], row["distance"], row["seed"]) for row in rows}
    assert len(lines) == 5
    expected = set(itertools.product(("squeeze 4", "squeeze 16", "8 states"), (44,), (2, 3)))
    assert missing == expected
    assert "all of these are but seeds 2 and 3 of squeeze 4, squeeze 16 and 8 states" in " ".join(page.split())


def test_what_the_page_says_of_the_control_was_measured(long_range):
    rows = stored(long_range, control=True)
    found = [(row["network"], row["distance"], row["seed"]) for row in rows]
    assert sorted(found) == sorted((name, 44, 1) for name in long_range.NETWORKS)
    assert {row["accuracy"] for row in rows} == {1}
    page = " ".join((BENCHMARKS.parent / "docs" / "results.md").read_text(encoding="utf-8").split())
    assert "all seven networks name 100 % at 44 pixels (one training each)" in page


def test_what_the_page_says_of_trainings_without_parts_of_their_blocks_was_measured(long_range):
    page = (BENCHMARKS.parent / "docs" / "explanation" / "what-the-scan-does.md").read_text(encoding="utf-8")
    models = json.loads((BENCHMARKS / "results" / "scan_at_work.json").read_text())["models"]
    log, control = (model["dice"] for model in models)
    for way, dice in log.items():
        other = f"{control[way]:.4f}" if way in control else "–"
        assert f"| {way} | {dice:.4f} | {other} |" in page
    fair = json.loads((BENCHMARKS / "results" / "scan_at_work_fair.json").read_text())["models"]
    of_all = ("as trained", "without scan", "without global tokens", "without blocks")
    for model in fair:
        cells = [f"{model['dice'][way]:.4f}" if way in model["dice"] else "–" for way in of_all]
        assert f" | {' | '.join(cells)} |" in page
    of_scans = [
        one["dice"]["without scan"] - one["dice"]["as trained"] for one in fair if "without scan" in one["dice"]
    ]
    assert (len(fair), round(min(of_scans), 4), round(max(of_scans), 4)) == (6, -0.0004, 0.0021)
    ways = ("scan", "global tokens", "blocks")
    far = [row for row in stored(long_range, along="fast") if row["distance"] >= 44 and "dropped" in row]
    for name in ("LoG-VMamba", "local tokens", "global tokens", "VSS"):
        rows = [row for row in far if row["network"] == name]
        shares = [[row["dropped"].get(way) for row in rows] for way in ways]
        cells = [f"{100 * min(of):.0f} – {100 * max(of):.0f}" if None not in of else "–" for of in shares]
        assert f"| {name} | {' | '.join(cells)} |" in page


def tables(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(BENCHMARKS / "tables.sh"), "long_range", *map(str, words)],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def called(long_range, monkeypatch, capsys):
    """Like ``tables``, in this process."""

    def call(*words: object) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["long_range.py", *map(str, words)])
        capsys.readouterr()
        try:
            code = long_range.main()
        except SystemExit as stop:
            code = stop.code
        said, complained = capsys.readouterr()
        if isinstance(code, str):  # which Python prints, and ends with 1
            code, complained = 1, complained + code
        return subprocess.CompletedProcess(sys.argv, code, said, complained)

    return call


def test_trainings_are_written_one_by_one_not_run_again_and_shown(long_range, called, tmp_path):
    file, weights = tmp_path / "rows.json", tmp_path / "weights"
    words = ["--networks", "LoG-VMamba", "NoSSM", "--distances", 14, "--seeds", 1, "--iterations", 2, "--control"]
    words += ["--results", file, "--weights", weights]
    first = called(*words)
    assert first.returncode == 0, first.stderr
    assert "Guessing by the majority names 67%" in first.stdout
    rows = json.loads(file.read_text())["trainings"]
    assert [(row["network"], row["dims"], row["distance"], row["control"], row["iterations"]) for row in rows] == [
        ("LoG-VMamba", 2, 14, True, 2),
        ("NoSSM", 2, 14, True, 2),
    ]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert sorted(path.name for path in weights.iterdir()) == sorted(map(long_range.file_of, rows))
    before = file.read_bytes()
    second = called(*words)
    assert second.returncode == 0, second.stderr
    assert "NoSSM" not in second.stdout
    assert file.read_bytes() == before
    assert json.loads(before)["circumstances"]["cores"] >= 1

    printed = tables(*words, "--table").stdout.splitlines()
    assert printed[0] == "| Network | Parameters | 14 voxels |"
    assert printed[2] == f"| LoG-VMamba | 112,164 | {100 * rows[0]['accuracy']:.1f} |"
    assert len(printed) == 4
    picture = tmp_path / "accuracy.png"
    done = called(*words, "--plot", picture)
    assert (done.returncode, picture.exists()) == (0, True), done.stderr
    done = called(*words, "--plot", tmp_path / "other.png", "--along", "slow")
    assert done.returncode == 1
    assert "has no trainings with dims=2, along=slow, control=True, iterations=2" in done.stderr
    assert not (tmp_path / "other.png").exists()

    done = called(*words, "--look")
    assert done.returncode == 0, done.stderr
    log, control = json.loads(file.read_text())["trainings"]
    assert log.items() >= rows[0].items()
    assert control.items() >= rows[1].items()
    assert set(log["dropped"]) == {"scan", "global tokens", "blocks"}
    assert set(control["dropped"]) == {"blocks"}
    assert [round(block["tokens"]) for block in log["blocks"].values()] == [48 * 48, 24 * 24]
    for name, block in log["blocks_before"].items():  # two steps of training do not change much
        assert block != log["blocks"][name]
        assert block["branch_to_input"] == pytest.approx(log["blocks"][name]["branch_to_input"], rel=0.3)


@pytest.mark.parametrize(
    ("by_the_script", "words", "sentence"),
    [
        (True, ("--dims", "3"), "in 3D there is no 'local tokens' with as many parameters"),
        (False, ("--settings", "--networks", "VSS"), "leave --networks out"),
        (False, ("--look",), "needs the folder of --weights"),
    ],
)
def test_a_wrong_call_trains_nothing(called, tmp_path, by_the_script, words, sentence):
    done = (tables if by_the_script else called)(*words, "--results", tmp_path / "rows.json")
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not list(tmp_path.iterdir())
