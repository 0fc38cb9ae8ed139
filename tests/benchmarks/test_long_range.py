"""The script that asks which network sees how far: equal terms, and once for real, tiny."""

from __future__ import annotations

import importlib.util
import json
import os
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


def test_networks_have_the_same_number_of_parameters_within_a_tenth(long_range):
    sizes = {name: sum(p.numel() for p in make().parameters()) for name, make in long_range.NETWORKS.items()}
    assert len(sizes) == 6
    for name, size in sizes.items():
        assert size == pytest.approx(sizes["LoG-VMamba"], rel=0.1), name


def test_all_networks_of_a_seed_see_the_same_images_and_tests_are_others(long_range):
    task = {"distance": 28, "along": "fast", "control": False}
    first, again = (long_range.images(range(4), 1, task) for _ in range(2))
    assert all((one == two).all() for one, two in zip(first, again))
    assert first[0].shape == first[1].shape == (4, 1, 96, 96)
    assert set(first[1].unique().tolist()) == {0, 1, 2}
    other = long_range.images(range(long_range.FIRST_TEST, long_range.FIRST_TEST + 4), 0, task)
    assert not (other[0] == first[0]).all()
    across = long_range.images(range(4), 1, task | {"along": "slow"})
    assert (across[1] == first[1].transpose(2, 3)).all()


def test_accuracy_counts_the_targets_that_get_their_own_class(long_range):
    x, y = long_range.images(range(3), 1, {"distance": 28, "along": "fast", "control": False})
    logits = long_range.torch.nn.functional.one_hot(y[:, 0].long(), 3).movedim(-1, 1).float()
    assert long_range.named(lambda _: logits, x, y) == 1
    assert long_range.named(lambda _: logits[:, [0, 2, 1]], x, y) == 0
    half = logits.clone()
    half[:, :, :48] = half[:, [0, 2, 1], :48]  # the upper two of four targets
    assert long_range.named(lambda _: half, x, y) == 0.5


def test_trainings_are_written_one_by_one_and_not_run_again(tmp_path):
    file = tmp_path / "rows.json"
    words = ("long_range", "--networks", "VSS", "NoSSM", "--distances", "14", "--seeds", "1", "--iterations", "2")
    command = ["bash", str(BENCHMARKS / "tables.sh"), *words, "--control", "--results", str(file)]
    environment = {**os.environ, "PYTHON": sys.executable}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "Guessing by the majority names 69%" in first.stdout
    rows = json.loads(file.read_text())["trainings"]
    assert [(row["network"], row["distance"], row["control"], row["iterations"]) for row in rows] == [
        ("VSS", 14, True, 2),
        ("NoSSM", 14, True, 2),
    ]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    before = file.read_bytes()
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "NoSSM" not in second.stdout
    assert file.read_bytes() == before
    assert json.loads(before)["circumstances"]["cores"] >= 1

    picture = tmp_path / "accuracy.png"
    done = subprocess.run(
        [*command, "--plot", str(picture)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, picture.exists()) == (0, True), done.stderr
    other = [*command, "--plot", str(tmp_path / "other.png"), "--along", "slow"]
    done = subprocess.run(other, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no trainings with along=slow, control=True, iterations=2" in done.stderr
    assert not (tmp_path / "other.png").exists()
