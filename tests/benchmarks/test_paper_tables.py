"""The script that makes the paper's ablations at reduced size: what it would run, and once for real, tiny."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_logvmamba.cli import build_parser
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.plugin import plans, trainers
from nnunet_logvmamba.plugin.recipes import DEFAULT_RECIPE, RECIPES
from nnunet_logvmamba.plugin.study_file import Study, make_study

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = pytest.importorskip("tomli", reason="needs tomli, which reads TOML files before Python 3.11")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "tables.sh"

sys.path.append(str(SCRIPT.parent))  # the scripts import each other by their names, as when they are run

import paper_tables  # noqa: E402


def run(*words: object, check: bool = True) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(SCRIPT), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def commands(output: str) -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"^\$ (.+)$", output, re.M)]


@pytest.mark.parametrize("data", paper_tables.DATA.values(), ids=paper_tables.DATA.keys())
def test_every_network_of_a_table_of_rivals_is_trained_with_its_own_recipe_and_with_the_common_one(data):
    rows = paper_tables.rows_of("peers", data)
    dims = len(data.patch_size)
    families = {network.trainer for network in catalogue.NETWORKS if dims in network.dims}
    families |= {"StockNetwork"} | ({"SwinUMambaD"} if dims == 2 else set())
    recipes = {
        family: {row.family.rpartition("_")[2] for row in rows if row.family.startswith(f"{family}_")}
        for family in families
    }
    assert recipes.pop("StockNetwork") == {"sgd"}
    assert all(words == {"published", "sgd"} for words in recipes.values())
    assert len({row.family for row in rows}) == len(rows) == 2 * len(recipes) + 1
    assert {row.configuration for row in rows} == {"base"}


@pytest.fixture
def source(tmp_path) -> Path:
    """A folder in which the script looks for nothing before it runs a command."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def test_the_tables_of_the_paper_and_the_sweeps_have_their_rows():
    data = paper_tables.DATA["hippocampus"]
    tables = [table for table in paper_tables.TABLES if table not in ("fair", "peers")]
    names = {table: [row.name for row in paper_tables.rows_of(table, data)] for table in tables}
    assert names == {
        "components": [
            "neither (VSS)",
            "local tokens",
            "global tokens",
            "both (LoG-VMamba)",
            "no state space",
            "nnU-Net's network",
        ],
        "placement": ["head", "middle", "split", "interleaved"],
        "directions": [
            f"{name}, {words}"
            for name in ("VSS", "LoG-VMamba")
            for words in ("1 direction", "2 directions", "4 directions")
        ],
        "window": ["R = 1", "R = 3", "R = 5"],
        "squeeze": ["S = 2", "S = 4", "S = 8", "S = 16"],
        "states": ["N = 8", "N = 16", "N = 32"],
        "input": ["16x24x16", "24x40x24", "40x56x40"],
    }
    directions = [(row.family, row.knobs.get("directions", 1)) for row in paper_tables.rows_of("directions", data)]
    assert directions == [(family, count) for family in ("VMamba", "LoGVMamba") for count in (1, 2, 4)]


@pytest.mark.parametrize("name", paper_tables.DATA)
def test_what_equals_the_default_is_one_training_for_all_tables(name):
    data = paper_tables.DATA[name]
    for table in ("placement", "window", "squeeze", "states", "input"):
        (default,) = [row for row in paper_tables.rows_of(table, data) if row.configuration == paper_tables.BASE]
        assert (default.family, default.knobs, default.patch_size) == ("LoGVMamba", {}, None)
    defaults = plans.knobs()
    for table in paper_tables.TABLES:
        for row in paper_tables.rows_of(table, data):
            plans.check_knobs(row.knobs)
            assert all(defaults[knob] != value for knob, value in row.knobs.items()), row
            assert hasattr(trainers, f"nnUNetTrainer{row.family}_seed1")


def studies(output: str) -> list[Study]:
    """What a dry run shows of its studies' files."""
    files = re.findall(r"^# (\S+)\.toml\n(.*?)\n\n\$ logvmamba study run", output, re.M | re.S)
    found = [make_study(tomllib.loads(text), where=name, name="unnamed") for name, text in files]
    assert [study.name for study in found] == [Path(name).name for name, _ in files]
    return found


@pytest.mark.parametrize("table", [*paper_tables.TABLES, "6", "7", "8", "all"])
def test_a_dry_run_shows_studies_of_all_rows_and_touches_nothing(table, source, tmp_path):
    folder = tmp_path / "tables"
    done = run(table, "--source", source, "--folder", folder, "--dry-run", "--seeds", "3", "4", "--epochs", "2")
    assert not folder.exists()
    for program, *words in commands(done.stdout):
        if program == "logvmamba":
            build_parser().parse_args(words)
    tables = paper_tables.TABLES if table == "all" else [paper_tables.IN_THE_PAPER.get(table, table)]
    found = studies(done.stdout)
    assert [study.name for study in found] == [f"{name}_2x25" for name in tables]
    for name, study in zip(tables, found):
        rows = paper_tables.rows_of(name, paper_tables.DATA["hippocampus"])
        wanted = {
            (f"nnUNetTrainer{row.family}_seed{seed}", f"{row.configuration}_2x25") for row in rows for seed in (3, 4)
        }
        assert set(itertools.product(study.trainers, study.configurations)) == wanted
        assert list(study.compare["names"].values()) == [row.name for row in rows]
        for row in rows:
            derived = study.derive[f"{row.configuration}_2x25"]
            assert derived["train"]["num_epochs"] == 2
            assert derived.get("set", {}) == row.knobs
            assert tuple(derived["patch_size"]) == (row.patch_size or (40, 56, 40))


def test_all_have_the_same_recipes_in_the_fair_table():
    recipes = {}
    for row in paper_tables.rows_of("fair", paper_tables.DATA["hippocampus"]):
        family, _, recipe = row.family.partition("_")
        recipes.setdefault(family, set()).add(recipe)
    assert recipes == dict.fromkeys(("LoGVMamba", "NoSSM", "VMamba", "StockNetwork"), {"", "sgd"})
    assert RECIPES["adam"] == DEFAULT_RECIPE


def test_another_budget_has_configurations_of_its_own_and_held_out_cases_are_predicted(source, tmp_path):
    words = ("window", "--source", source, "--folder", tmp_path / "tables", "--dry-run", "--seeds", "1")
    names = []
    for more in ((), ("--epochs", "20"), ("--no-mirroring",), ("--patch-size", "24", "40", "24"), ("--narrow", "2")):
        (study,) = studies(run(*words, *more).stdout)
        names += study.configurations
        assert all(
            options["train"].get("mirroring", True) == ("--no-mirroring" not in more)
            for options in study.derive.values()
        )
        assert study.predict == {}
    assert len(set(names)) == 5 * 3
    (study,) = studies(run(*words, "--holdout", source, tmp_path).stdout)
    assert study.predict == {"images": str(source), "references": str(tmp_path)}
    assert set(study.configurations) == set(names[:3])
    (other,) = studies(run(*words, "--holdout", source, source).stdout)
    assert study.name != other.name
    assert all(one.name.startswith("window_10x25_holdout_") for one in (study, other))


def test_some_rows_of_a_table_are_a_study_of_their_own(source, tmp_path):
    words = ("8", "--source", source, "--folder", tmp_path / "tables", "--dry-run", "--seeds", "1")
    rows = ["LoG-VMamba, 1 direction", "LoG-VMamba, 2 directions"]
    (study,) = studies(run(*words, "--rows", *reversed(rows)).stdout)
    assert re.fullmatch("directions_10x25_part_[0-9a-f]{8}", study.name)
    assert list(study.compare["names"].values()) == rows
    assert study.trainers == ("nnUNetTrainerLoGVMamba_seed1",)
    (same,) = studies(run(*words, "--rows", *rows).stdout)
    assert same.name == study.name
    (alone,) = studies(run(*words, "--rows", rows[1]).stdout)
    assert alone.compare["names"] == {"LoGVMamba": rows[1]}
    assert alone.name != study.name, "the one would be refused after the other"


def test_rows_that_would_train_others_as_well_are_refused(source, tmp_path):
    words = ("8", "--source", source, "--folder", tmp_path / "tables", "--dry-run")
    done = run(*words, "--rows", "VSS, 1 direction", "LoG-VMamba, 4 directions", check=False)
    assert done.returncode == 2
    assert "these rows have 2 trainers and 2 configurations" in done.stderr
    assert not (tmp_path / "tables").exists()


def test_a_table_takes_what_a_cluster_wants_from_another_file(source, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('dataset = 7\n[cluster]\ncpus = 8\nsbatch = { qos = "long" }\n')
    words = ("6", "--source", source, "--folder", tmp_path / "tables", "--dry-run", "--cluster", file)
    (study,) = studies(run(*words, "--on", "slurm").stdout)
    assert (study.dataset, study.cluster.cpus, study.cluster.sbatch) == ("4", 8, {"qos": "long"})
    file.write_text("[cluster]\ncpu = 8\n")
    done = run(*words, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "has no key 'cpu': did you mean cpus?" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("9",),
            f"there is no table '9'; there are {', '.join(paper_tables.TABLES)}",
        ),
        (("6", "--epochs", "0"), "--epochs, --iterations and --narrow take numbers from 1 on"),
        (("6", "--narrow", "0"), "--epochs, --iterations and --narrow take numbers from 1 on"),
        (("6", "7", "--on", "slurm"), "--on slurm takes one table at a time"),
        (("6", "--cluster", "/nowhere.toml"), "there is no file /nowhere.toml"),
        (("6", "--holdout", "/nowhere", "/either"), "there is no folder /nowhere: --holdout takes those of images"),
        (
            ("8", "--rows", "VSS, 3 directions"),
            "there is no row 'VSS, 3 directions'; there are VSS, 1 direction; ",
        ),
        (
            ("6", "--keep", "/nowhere.json", "--holdout", "/", "/"),
            "--keep has no weights, which --holdout predicts",
        ),
        (("6", "--keep", "/nowhere.json", "--on", "slurm"), "--keep waits for trainings to end, --on slurm does not"),
        (("6", "--keep", ROOT / "benchmarks" / "results" / "scan_cpu.json"), "does not hold what --keep writes"),
        (("6", "--keep", "/nowhere/at/all/kept.json"), "there is no folder /nowhere/at/all: make it, or name another"),
        (("input", "--patch-size", "24", "40", "24"), "--patch-size is none of the table input"),
        (("6", "--patch-size", "24", "24"), "--patch-size takes 3 numbers from 1 on for hippocampus"),
        (
            ("6", "--source", "/nowhere/at/all", "--folder", "/nowhere/either"),
            "there is no folder /nowhere/at/all: name the data with --source",
        ),
    ],
)
def test_wrong_words_are_refused(words, sentence):
    done = run(*words, "--dry-run", check=False)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_the_source_is_not_asked_for_once_the_data_are_converted(tmp_path):
    words = ("6", "--folder", tmp_path, "--source", tmp_path / "nowhere", "--narrow", "2", "--dry-run")
    refused = run(*words, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"there is no folder {tmp_path / 'nowhere'}: name the data with --source" in refused.stderr
    dataset_json = tmp_path / "hippocampus" / "raw" / "Dataset004_Hippocampus" / "dataset.json"
    dataset_json.parent.mkdir(parents=True)
    dataset_json.write_text("{}")
    programs = [program for program, *_ in commands(run(*words).stdout)]
    assert programs == ["nnUNetv2_plan_and_preprocess", "logvmamba"]


@pytest.mark.slow
def test_a_table_is_made_for_real_and_neither_a_second_call_nor_another_machine_trains_again(shared, tmp_path):
    source = tmp_path / "source"
    for part in ("imagesTr", "labelsTr"):
        (source / part).mkdir(parents=True)
        for path in sorted((shared / "data" / "hippocampus" / part).glob("*.nii.gz"))[:10]:
            shutil.copy(path, source / part / path.name)
    folder = tmp_path / "tables"
    words = ("placement", "--source", source, "--folder", folder, "--seeds", "1", "--epochs", "1", "--iterations", "2")
    words += ("--narrow", "4", "--keep", tmp_path / "kept.json", "--rows", "head", "interleaved")
    first = run(*words)
    (tables,) = (folder / "hippocampus" / "results" / "Dataset004_Hippocampus" / "studies").glob("placement_*/tables")
    plan = json.loads(next((folder / "hippocampus" / "results").rglob("plans.json")).read_text())["configurations"]
    assert plan["base_1x2_narrow4"]["inherits_from"] == "3d_fullres_narrow4"
    planned, used = (plan[name]["architecture"]["arch_kwargs"] for name in ("3d_fullres", "3d_fullres_narrow4"))
    assert used["features_per_stage"] == [channels // 4 for channels in planned["features_per_stage"]]
    page = (tables / "comparison.md").read_text()
    rows = [line for line in page.split("## Dice per class")[0].splitlines() if line.startswith("| ")][2:]
    assert [row.split("|")[1].strip() for row in rows] == ["head", "interleaved"]
    assert all("| - |" not in row for row in rows), "costs of every row"
    assert "one training" in page or "within noise" in page
    second = run(*words, "--source", tmp_path / "nowhere")  # the data are converted
    assert "0 of 2 training(s) to do" in second.stdout
    assert [words[:3] for words in commands(second.stdout)] == [["logvmamba", "study", "run"]]
    assert (tables / "comparison.md").read_text() == page
    assert "2 of 2 training(s) to do" in first.stdout
    assert "2 training(s) added to" in first.stdout
    content = (tmp_path / "kept.json").read_text()
    assert str(tmp_path) not in content, "folders of this machine"
    assert "train_losses" in content
    elsewhere = tmp_path / "elsewhere"
    third = run(*words, "--folder", elsewhere)
    assert "2 training(s) taken from" in third.stdout
    assert "0 of 2 training(s) to do" in third.stdout
    assert not list(elsewhere.rglob("*.pth"))
    assert (elsewhere / tables.relative_to(folder) / "comparison.md").read_text() == page
    assert (tmp_path / "kept.json").read_text() == content
    planned = run(*words, "--dry-run", "--iterations", "3").stdout
    trained = [words for words in commands(planned) if words[0] == "nnUNetv2_train"]
    assert [words[2] for words in trained] == ["placement_head_1x3_narrow4", "base_1x3_narrow4"]
