"""The script that makes the paper's ablations at reduced size: what it would run, and once for real, tiny."""

from __future__ import annotations

import importlib.util
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

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "tables.sh"


def load():
    specification = importlib.util.spec_from_file_location("paper_tables", SCRIPT.with_name("paper_tables.py"))
    module = importlib.util.module_from_spec(specification)
    sys.modules["paper_tables"] = module
    specification.loader.exec_module(module)
    return module


paper_tables = load()


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
    tables = [table for table in paper_tables.TABLES if table != "peers"]
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
        "input": ["16x24x16", "24x40x24", "40x56x40"],
    }
    directions = [(row.family, row.knobs.get("directions", 1)) for row in paper_tables.rows_of("directions", data)]
    assert directions == [(family, count) for family in ("VMamba", "LoGVMamba") for count in (1, 2, 4)]


@pytest.mark.parametrize("name", paper_tables.DATA)
def test_what_equals_the_default_is_one_training_for_all_tables(name):
    data = paper_tables.DATA[name]
    for table in ("placement", "window", "squeeze", "input"):
        (default,) = [row for row in paper_tables.rows_of(table, data) if row.configuration == paper_tables.BASE]
        assert (default.family, default.knobs, default.patch_size) == ("LoGVMamba", {}, None)
    defaults = plans.knobs()
    for table in paper_tables.TABLES:
        for row in paper_tables.rows_of(table, data):
            plans.check_knobs(row.knobs)
            assert all(defaults[knob] != value for knob, value in row.knobs.items()), row
            assert hasattr(trainers, f"nnUNetTrainer{row.family}_seed1")


@pytest.mark.parametrize("table", [*paper_tables.TABLES, "6", "7", "8", "all"])
def test_a_dry_run_prints_commands_that_exist_and_touches_nothing(table, source, tmp_path):
    folder = tmp_path / "tables"
    done = run(table, "--source", source, "--folder", folder, "--dry-run", "--seeds", "3", "4", "--epochs", "2")
    assert not folder.exists()
    found = commands(done.stdout)
    for program, *words in found:
        if program == "logvmamba":
            build_parser().parse_args(words)
    trained = [words for program, *words in found if program == "nnUNetv2_train"]
    rows = paper_tables.TABLES if table == "all" else [paper_tables.IN_THE_PAPER.get(table, table)]
    data = paper_tables.DATA["hippocampus"]
    assert len(trained) == 2 * sum(len(paper_tables.rows_of(name, data)) for name in rows)
    assert {words[words.index("-tr") + 1][-6:] for words in trained} == {"_seed3", "_seed4"}
    assert [words[0] for program, *words in found if program == "logvmamba"].count("compare") == len(rows)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("9",),
            "there is no table '9'; there are components, placement, directions, window, squeeze, input, peers, 6, 7",
        ),
        (("6", "--epochs", "0"), "--epochs, --iterations and --narrow take numbers from 1 on"),
        (("6", "--narrow", "0"), "--epochs, --iterations and --narrow take numbers from 1 on"),
        (("6", "--source", "/nowhere/at/all"), "there is no folder /nowhere/at/all: name the data with --source"),
    ],
)
def test_wrong_words_are_refused(words, sentence):
    done = run(*words, "--dry-run", check=False)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_finished_trainings_are_skipped_and_interrupted_ones_continued(source, tmp_path):
    folder = tmp_path / "tables"
    results = folder / "hippocampus" / "results_10x25" / "Dataset004_Hippocampus"
    finished = results / "nnUNetTrainerLoGVMamba_seed1__nnUNetPlans__window_1" / "fold_0" / "validation"
    finished.mkdir(parents=True)
    (finished / "summary.json").touch()
    interrupted = results / "nnUNetTrainerLoGVMamba_seed1__nnUNetPlans__window_5" / "fold_0"
    interrupted.mkdir(parents=True)
    (interrupted / "checkpoint_latest.pth").touch()
    done = run("window", "--source", source, "--folder", folder, "--dry-run", "--seeds", "1")
    assert "window: 2 of 3 trainings to do" in done.stdout
    trained = {words[1]: words for program, *words in commands(done.stdout) if program == "nnUNetv2_train"}
    assert list(trained) == ["base", "window_5"]
    assert ["--c" in words for words in trained.values()] == [False, True]
    other = run("window", "--source", source, "--folder", folder, "--dry-run", "--seeds", "1", "--epochs", "20")
    assert "window: 3 of 3 trainings to do" in other.stdout, "another budget has results of its own"
    other = run("window", "--source", source, "--folder", folder, "--dry-run", "--seeds", "1", "--no-mirroring")
    assert "window: 3 of 3 trainings to do" in other.stdout
    plans = [words for program, *words in commands(other.stdout) if program == "logvmamba" and words[0] == "plans"]
    assert len(plans) == 3
    assert all("mirroring=false" in words for words in plans)


@pytest.mark.slow
def test_a_table_is_made_for_real_and_a_second_call_trains_nothing(shared, tmp_path):
    source = tmp_path / "source"
    for part in ("imagesTr", "labelsTr"):
        (source / part).mkdir(parents=True)
        for path in sorted((shared / "data" / "hippocampus" / part).glob("*.nii.gz"))[:10]:
            shutil.copy(path, source / part / path.name)
    folder = tmp_path / "tables"
    words = ("placement", "--source", source, "--folder", folder, "--seeds", "1", "--epochs", "1", "--iterations", "2")
    words += ("--narrow", "4")
    first = run(*words)
    tables = folder / "hippocampus" / "results_1x2_narrow4" / "tables" / "placement"
    plan = json.loads(next((tables.parents[1]).rglob("plans.json")).read_text())["configurations"]
    assert plan["base"]["inherits_from"] == "3d_fullres_narrow4"
    planned, used = (plan[name]["architecture"]["arch_kwargs"] for name in ("3d_fullres", "3d_fullres_narrow4"))
    assert used["features_per_stage"] == [channels // 4 for channels in planned["features_per_stage"]]
    page = (tables / "comparison.md").read_text()
    rows = [line for line in page.split("## Dice per class")[0].splitlines() if line.startswith("| ")][2:]
    assert [row.split("|")[1].strip() for row in rows] == ["head", "middle", "split", "interleaved"]
    assert all("| - |" not in row for row in rows), "costs of every row"
    assert "one training" in page or "within noise" in page
    second = run(*words)
    assert "placement: 0 of 4 trainings to do" in second.stdout
    assert [words[0] for words in commands(second.stdout)] == ["logvmamba"]
    assert (tables / "comparison.md").read_text() == page
    assert "4 of 4 trainings to do" in first.stdout
