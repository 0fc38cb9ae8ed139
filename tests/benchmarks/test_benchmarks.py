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
