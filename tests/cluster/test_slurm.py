"""Studies on a real SLURM of one node with one slot, with stock commands at tiny size."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Iterator
from functools import partial
from math import ceil
from pathlib import Path

import pytest
import slurm
import small_dataset
from commands import NnunetFolders
from small_project import Fold, Project

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.plugin import cluster
from nnunet_logvmamba.plugin.study_file import Cluster

pytestmark = pytest.mark.slow
TRAINERS = ("nnUNetTrainerNoSSM", "nnUNetTrainerStockNetwork")
PATIENCE_S = 1800


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Iterator[slurm.Slurm]:
    """A SLURM that runs one job at a time."""
    why = slurm.why_not()
    if why is not None:
        pytest.skip(why)
    pytest.importorskip("submitit", reason="needs submitit, which is not installed")
    with slurm.Slurm(tmp_path_factory.mktemp("slurm") / "node") as running:
        yield running


@pytest.fixture(scope="module")
def balls(tmp_path_factory) -> Project:
    """Planned, with short configurations; to be read."""
    project = Project(NnunetFolders.below(tmp_path_factory.mktemp("balls")), small_dataset.NAME)
    small_dataset.write_raw(project.folders.raw)
    project.plan("2d")
    project.narrow("2d")
    short = {"num_epochs": 3, "num_iterations_per_epoch": 2}
    project.configure("2d_narrow", "tiny", "--keep-network", **short)
    project.configure("2d_narrow", "overflows", **short, initial_lr=1e38)
    project.configure("2d_narrow", "long", num_epochs=20, num_iterations_per_epoch=40)
    return project


@pytest.fixture
def project(balls, tmp_path) -> Project:
    """A copy that the test trains in."""
    return balls.copied_to(tmp_path / "nnunet")


def write(path: Path, *, trainers=TRAINERS, configurations=("tiny",), folds=(0, 1), minutes=60, **more) -> Path:
    more = {"time": minutes, "gpus": 0, "cpus": 1, **more}
    lines = [
        f"dataset = {small_dataset.NUMBER}",
        f"trainers = {list(trainers)}",
        f"configurations = {list(configurations)}",
    ]
    lines += [f"folds = {list(folds)}", "seeds = [1]", 'device = "cpu"', "[cluster]"]
    path.write_text("\n".join([*lines, *(f"{key} = {value}" for key, value in more.items())]) + "\n")
    return path


def ask(project: Project, node: slurm.Slurm, *words: object) -> str:
    return project.run("logvmamba", "study", *words, **node.environment, OMP_NUM_THREADS="2").stdout


def wait(node: slurm.Slurm, seconds: float = PATIENCE_S) -> None:
    node.wait_for(lambda: not node.ask("squeue", "--noheader").strip(), seconds, "the end of all jobs")


def table(project: Project, name: str, file: str) -> list[list[object]]:
    path = project.folders.results / small_dataset.NAME / "studies" / name / "tables" / file
    return [[_rounded(cell) for cell in row] for row in csv.reader(path.open())]


def _rounded(cell: str) -> object:
    try:
        return f"{float(cell):.6f}"
    except ValueError:
        return cell


def losses(fold: Fold) -> list[float]:
    return fold.checkpoint["logging"]["train_losses"]


def test_a_study_gives_the_same_table_on_slurm_and_here(node, project, tmp_path):
    file, here = write(tmp_path / "s.toml"), project.copied_to(tmp_path / "here")
    assert "5 submitted to SLURM" in ask(project, node, "run", file, "--on", "slurm")
    wait(node)
    shown = ask(project, node, "status", file)
    assert "trainings: 4 done" in shown
    assert "nothing to submit" in ask(project, node, "resume", file)
    here.run("logvmamba", "study", "run", file)
    for name in ("means.csv", "pairs.csv"):
        assert table(project, "s", name) == table(here, "s", name)
    assert {row[1] for row in table(here, "s", "means.csv")} == {"method", "NoSSM", "StockNetwork"}
    assert "0 of 4 training(s) to do, 0 job(s) in all" in here.run("logvmamba", "study", "run", file).stdout


def test_a_training_that_fails_is_reported_and_the_others_are_done(node, project, tmp_path):
    file = write(tmp_path / "s.toml", trainers=TRAINERS[:1], configurations=["overflows", "tiny"], folds=[0])
    ask(project, node, "run", file, "--on", "slurm")
    wait(node)
    shown = ask(project, node, "status", file)
    assert re.search(r"train nnUNetTrainerNoSSM_seed1__nnUNetPlans__tiny fold_0 +done", shown)
    assert re.search(r"NoSSM_seed1__nnUNetPlans__overflows fold_0 +failed +.*without overflow", shown)
    assert re.search(r"compare +failed +1 of 2 training\(s\) are not finished", shown)


@pytest.mark.parametrize("how", ["killed", "out of time"])
def test_a_training_that_was_broken_off_ends_with_the_curve_of_an_unbroken_one(node, project, tmp_path, how):
    begin = time.monotonic()
    unbroken = project.copied_to(tmp_path / "unbroken").train("long", 0, trainer=f"{TRAINERS[0]}_seed1")
    took = time.monotonic() - begin
    fold = project.fold("long", 0, f"{TRAINERS[0]}_seed1")
    # A limit that no job reaches, or about a quarter of the training: SLURM counts in minutes, and its notice may come
    # half a minute early.
    short = {"minutes": ceil((took / 4 + 33) / 60), "signal_s": 15}
    limit = {"minutes": 60} if how == "killed" else short
    file = write(tmp_path / "s.toml", trainers=TRAINERS[:1], configurations=["long"], folds=[0], **limit)
    ask(project, node, "run", file, "--on", "slurm")
    node.wait_for((fold.path / "checkpoint_latest.pth").is_file, PATIENCE_S, "a checkpoint")
    if how == "killed":
        (job,) = node.ask("squeue", "--noheader", "--format", "%i").split()
        assert re.search(r"running +epoch \d+ of 20", ask(project, node, "status", file))
        node.ask("scancel", "--signal=KILL", "--full", job)
        wait(node, 120)
        # Which of its processes SLURM reaches first is chance: none is left to tell, or one tells of the others.
        told = r"failed +(it ended without a word, epoch \d+ of 20|it was killed by signal (9|15))"
        assert re.search(told, ask(project, node, "status", file))
        assert "1 submitted to SLURM" in ask(project, node, "resume", file)
    wait(node)
    assert len(list(fold.path.glob("training_log_*.txt"))) > 1, "it was never broken off"
    assert losses(fold) == pytest.approx(losses(unbroken), abs=1e-6)
    assert "trainings: 1 done" in ask(project, node, "status", file)


def test_a_training_whose_time_never_suffices_is_given_up(node, project, tmp_path):
    project.configure("2d_narrow", "longer", num_epochs=10, num_iterations_per_epoch=100_000)
    file = write(
        tmp_path / "s.toml", trainers=TRAINERS[:1], configurations=["longer"], folds=[0], minutes=1, signal_s=15
    )
    ask(project, node, "run", file, "--on", "slurm")
    wait(node)
    told = r"failed +its time was up 3 times, each after 1 min, and it had got no further, .*: give it more"
    assert re.search(told, ask(project, node, "status", file))
    fold = project.fold("longer", 0, f"{TRAINERS[0]}_seed1")
    assert len(list(fold.path.glob("training_log_*.txt"))) == 3


@pytest.fixture
def leads_there(node, monkeypatch) -> None:
    """Commands of this process go to the node, and its jobs find the functions of the tests."""
    for name, value in node.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_a_node_with_one_slot_does_an_array_of_eight(node, tmp_path, leads_there):
    work = [partial(slurm.stamp, tmp_path, number) for number in range(8)]
    numbers = cluster.submit("eight", tmp_path / "jobs", [cluster.Stage("all", work)], Cluster(gpus=0, time=60))
    assert set(numbers) == {f"{numbers[0].partition('_')[0]}_{number}" for number in range(8)}
    assert set(cluster.queue()) <= set(numbers)  # the first may have ended
    wait(node)
    spans = sorted(tuple(map(float, (tmp_path / str(number)).read_text().split())) for number in range(8))
    assert all(end <= begin for (_, end), (begin, _) in zip(spans, spans[1:])), "two at a time"


def test_a_partition_that_is_not_there_is_refused_and_cancelled_jobs_leave_the_queue(node, tmp_path, leads_there):
    stages = [cluster.Stage("first", [partial(slurm.stamp, tmp_path, number) for number in range(3)])]
    with pytest.raises(UserError, match="the cluster refuses the jobs, and nothing was submitted: sbatch: error: .*"):
        cluster.submit("x", tmp_path / "jobs", stages, Cluster(gpus=0, partition="nowhere"))
    with pytest.raises(UserError, match="sbatch: error: "):
        cluster.submit("x", tmp_path / "jobs", [*stages, cluster.Stage("second", stages[0].work, 1)], Cluster())
    wait(node, 60)
    assert not list(tmp_path.glob("[0-9]")), "one of them was run"
    numbers = cluster.submit("x", tmp_path / "jobs", stages, Cluster(gpus=0))
    assert set(cluster.queue()) <= set(numbers)  # the first may have ended
    cluster.cancel(numbers)
    wait(node, 120)


def test_shards_are_predicted_on_slurm(node, project, tmp_path):
    fold = project.train("tiny", 0, trainer=f"{TRAINERS[0]}_seed1")
    images = project.folders.raw / small_dataset.NAME / "imagesTr"
    asked = write(tmp_path / "s.toml")
    words = ("predict", fold.path.parent, images, tmp_path / "out", "--shards", 2, "--cluster", asked, "--on", "slurm")
    assert "2 shard(s) submitted" in ask(project, node, *words)
    wait(node)
    at_once = tmp_path / "at_once"
    project.predict(images, at_once, "tiny", trainer=f"{TRAINERS[0]}_seed1")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert names == [f"ball_{case}.nii.gz" for case in range(5)]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (at_once / name).read_bytes()
    assert "nothing to do: 5 case(s) are predicted" in ask(project, node, *words)
