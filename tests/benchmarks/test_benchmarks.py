"""The benchmark scripts run, and the page they make is the one in the documentation."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # the scripts import each other by their names, as when they are run

import correctness  # noqa: E402
import gpu_proof  # noqa: E402
import measure  # noqa: E402
import tables  # noqa: E402


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
    if step != "correctness":
        checked = results["circumstances"]["correctness"]
        assert (checked["commit"], checked["wrong"]) == ("none", [])
        assert checked["checked"] >= 8  # two shapes in four dtypes, for each backend
        assert tables.keeps_rounds(results)
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


def test_a_timing_keeps_all_rounds_and_their_quartiles():
    assert measure.timing([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "seconds": 3.0,
        "quartiles": [2.0, 4.0],
        "rounds": [4.0, 1.0, 2.0, 3.0, 5.0],
    }
    timings = measure.side_by_side({"a": lambda: None, "b": lambda: None}, rounds=4)
    assert {name: len(timing["rounds"]) for name, timing in timings.items()} == {"a": 4, "b": 4}


def figures(name: str, commit: str, **about: object) -> dict[str, dict]:
    return {name: {"circumstances": {"commit": commit, **about}}}


RIGHT = {"commit": "a1", "checked": 8, "wrong": []}


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        (figures("scan_cpu", "a1"), ""),
        (figures("scan_cpu", "a1", correctness=RIGHT), ""),
        (figures("gpu_scan_float16", "a1", correctness=RIGHT), ""),
        (figures("gpu_amp", "a1"), ""),
        (figures("scan_cpu", "b2", correctness=RIGHT), "scan_cpu.json has figures of commit b2, which was not checked"),
        (figures("gpu_network", "a1"), "gpu_network.json has figures of commit a1, which was not checked"),
        (figures("conversion_cpu", "a1", correctness=RIGHT | {"wrong": ["u: 0.1"]}), "at which this is wrong: u: 0.1"),
    ],
)
def test_the_tables_refuse_figures_of_a_commit_that_was_not_found_right(stored, why):
    assert tables.refusal(stored) == "" if not why else why in tables.refusal(stored)
    nested = {"network_cpu": {"networks": list(stored.values())}}
    assert bool(tables.refusal(nested)) == (bool(why) and "gpu" not in why)


def test_the_tables_refuse_figures_if_the_correctness_step_of_their_commit_failed():
    proof = {"gpu_correctness": {"circumstances": {"commit": "a1"}, "wrong": ["triton float16 y: nan"]}}
    stored = proof | figures("gpu_scan_float16", "a1", correctness=RIGHT)
    assert tables.refusal(stored).endswith("at which this is wrong: triton float16 y: nan")
    proof["gpu_correctness"]["circumstances"]["commit"] = "b2"
    assert not tables.refusal(stored)


def test_no_page_is_made_of_wrong_figures(tmp_path):
    stored = json.loads((BENCHMARKS / "results" / "scan_cpu.json").read_text(encoding="utf-8"))
    stored["circumstances"]["correctness"] = {"commit": stored["circumstances"]["commit"], "wrong": ["all of it"]}
    (tmp_path / "scan_cpu.json").write_text(json.dumps(stored), encoding="utf-8")
    done = run("benchmarks/tables.py", "--show", str(tmp_path))
    assert done.returncode == 1
    assert "at which this is wrong: all of it" in done.stderr
    assert not done.stdout


def test_the_page_says_what_older_files_do_not_have():
    older = json.loads((BENCHMARKS / "results" / "scan_cpu.json").read_text(encoding="utf-8"))
    older["circumstances"].pop("correctness", None)
    for case in older["scans"] + older["growth"]:
        for key in ("forward_s", "forward_backward_s"):
            case[key] = {name: tables.seconds_of(timing) for name, timing in case[key].items()}
    newer = copy.deepcopy(older)
    newer["circumstances"]["correctness"] = {"commit": older["circumstances"]["commit"], "wrong": []}
    for case in newer["scans"] + newer["growth"]:
        for key in ("forward_s", "forward_backward_s"):
            case[key] = {name: measure.timing([seconds] * 3) for name, seconds in case[key].items()}
    of_older, of_newer = (tables.scan_section(found, "numba") for found in (older, newer))
    assert "; medians only; not known to be checked." in of_older
    assert of_older.replace("; medians only; not known to be checked", "") == of_newer


def test_nothing_is_timed_where_the_scan_is_wrong(tmp_path, monkeypatch):
    setting = gpu_proof.Setting("cpu", True, tmp_path)
    wrong = {"circumstances": {"commit": "a1"}, "cases": [], "wrong": ["numba float32 y: 1.0e+00"]}
    (tmp_path / "gpu_correctness.json").write_text(json.dumps(wrong), encoding="utf-8")
    with pytest.raises(gpu_proof.WrongResultError, match="found 1 wrong, first numba float32 y"):
        gpu_proof.proven(setting, "a1")
    monkeypatch.setattr(correctness, "LARGEST_ERROR", dict.fromkeys(correctness.DTYPES, -1.0))
    with pytest.raises(SystemExit, match="the scan is wrong, so nothing is timed"):
        gpu_proof.proven(setting, "b2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["bench_scan", "bench_network", "bench_network --prediction", "bench_conversion", "bench_finite"]
)
def test_a_benchmark_runs_at_small_size(script):
    name, *options = script.split()
    done = run(f"benchmarks/{name}.py", "--quick", *options, timeout=900)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    try:
        assert path.name.endswith("_quick.json")
        results = json.loads(path.read_text(encoding="utf-8"))
        assert tables.keeps_rounds(results)
        assert not tables.refusal({"found": results})
        if "--prediction" in options:
            assert "| 1 thread |" in tables.page({"prediction_cpu": results})
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.slow
def test_the_cost_of_the_checks_is_measured_beside_a_prediction_without_them():
    done = run("benchmarks/bench_guards.py", "--rounds", "1", timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the checks cost") == 2
