"""The benchmark scripts run, and the page they make is the one in the documentation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(*arguments: str, timeout: int = 60) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=BENCHMARKS.parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_the_page_is_what_the_stored_results_give():
    done = run("benchmarks/tables.py", "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_stored_results_say_where_they_come_from(path):
    circumstances = json.loads(path.read_text(encoding="utf-8"))["circumstances"]
    assert {"processor", "cores", "gpu", "versions", "commit"} <= set(circumstances)
    assert circumstances["commit"]


def prove(step: str, folder: Path) -> dict:
    """Run a step of the GPU proof at a tiny size on the CPU and give its results."""
    options = ("--device", "cpu", "--tiny", "--into", str(folder), "--commit", "none")
    done = run("benchmarks/gpu_proof.py", step, *options, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((folder / f"gpu_{step}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("step", [pytest.param("correctness", marks=pytest.mark.slow), "scan_float16", "network"])
def test_a_step_of_the_gpu_proof_runs_at_a_tiny_size(step, tmp_path):
    results = prove(step, tmp_path)
    assert results["circumstances"]["commit"] == "none"
    assert not results.get("wrong")
    page = run("benchmarks/tables.py", "--show", str(tmp_path))
    assert page.returncode == 0, page.stderr
    assert {
        "correctness": "`triton` against float64, float32" if "triton" in json.dumps(results) else "## GPU",
        "scan_float16": "T exponentials/s",
        "network": "mixed precision",
    }[step] in page.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", ["scan_float32", "amp", "compile", "network_2d", "hippocampus_log", "hippocampus_stock"]
)
def test_the_other_steps_run_too(step, tmp_path, request):
    if step.startswith("hippocampus"):
        request.getfixturevalue("shared")
    results = prove(step, tmp_path)
    assert not results.get("wrong")
    page = run("benchmarks/tables.py", "--show", str(tmp_path))
    assert page.returncode == 0, page.stderr


def test_the_gpu_proof_says_what_it_needs(tmp_path):
    done = run("benchmarks/gpu_proof.py", "correctness", "--device", "cpu", "--tiny")
    assert done.returncode == 2
    assert "name another folder with --into" in done.stderr
    steps = run("benchmarks/gpu_proof.py", "--list").stdout.split()
    assert {"correctness", "scan_float16", "amp", "compile", "network", "hippocampus_log"} <= set(steps)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["bench_scan", "bench_network"])
def test_a_benchmark_runs_at_small_size(script):
    done = run(f"benchmarks/{script}.py", "--quick", timeout=900)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    try:
        assert path.name.endswith("_quick.json")
        assert json.loads(path.read_text(encoding="utf-8"))
    finally:
        path.unlink(missing_ok=True)
