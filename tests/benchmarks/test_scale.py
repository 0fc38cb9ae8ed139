"""The costs of a large study: the page holds what the script prints, and the script reckons right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import scale  # noqa: E402

PAGE = (ROOT / "docs" / "explanation" / "scale.md").read_text(encoding="utf-8")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, f"benchmarks/{script}.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


def test_the_page_holds_the_tables_that_the_script_prints():
    done = run("scale")
    assert done.returncode == 0, done.stderr
    tables = done.stdout.strip().split("\n\n")
    assert len(tables) == 5
    assert [table for table in tables if table not in PAGE] == []


def test_a_checkpoint_is_as_large_as_reckoned():
    written = scale.stored("scale_cpu")["checkpoint"]
    assert scale.checkpoint_bytes(written["parameters"]) == pytest.approx(written["bytes"], rel=0.01)


MEASURED = {
    "plan": {"batch": 2, "windows": 10},
    "patch": {"seconds": 3.0},
    "work": {"A": {"parameters": 10, "multiply_adds": 100}, "B": {"parameters": 20, "multiply_adds": 10}},
}


def test_hours_are_those_of_steps_of_validation_patches_and_of_the_last_validation():
    (a, b) = scale.costs(MEASURED, scale.Setting(rate=600, workers=100))
    assert (a.gpu_step, a.step) == (1.0, 1.0)
    forward = 1 / 3
    last = 250 * 10 * 8 / 2 * forward
    assert a.gpu_hours == a.hours == pytest.approx((1000 * (250 + 50 * forward) + last) / 3600)
    assert (b.gpu_step, b.step) == (0.1, 0.1)
    assert b.checkpoint == 240


def test_a_loader_that_is_slower_than_the_gpu_sets_the_pace_of_the_training():
    a, _ = scale.costs(MEASURED, scale.Setting(rate=600, workers=3))
    assert (a.gpu_step, a.step) == (1.0, 2.0)
    assert a.hours - a.gpu_hours == pytest.approx(1000 * 250 / 3600)


def test_a_measured_step_takes_the_place_of_the_assumed_one():
    a, b = scale.costs(MEASURED, scale.Setting(rate=600, workers=100, steps={"A": 0.25}))
    assert (a.gpu_step, b.gpu_step) == (0.25, 0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--step", "LoGVMamba"], "--step LoGVMamba: say NETWORK=SECONDS"),
        (["--step", "LoGVMamba=0"], "seconds are above 0"),
        (["--step", "LoGMamba=1"], "networks are PlainConvUNet, LoGVMamba"),
        (["--rate", "0"], "are above 0"),
    ],
)
def test_what_cannot_be_reckoned_with_is_refused(words, said):
    done = run("scale", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not done.stdout


@pytest.mark.slow
def test_the_measurement_runs_at_small_size():
    done = run("bench_scale", "--quick")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert len(scale.tables(found, scale.stored("peers_cpu"), scale.Setting())) == 5
    finally:
        path.unlink(missing_ok=True)
