"""The benchmark scripts run, and the page they make is the one in the documentation."""

import copy
import csv
import json
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # the scripts import each other by their names, as when they are run

import correctness  # noqa: E402
import gpu_journal  # noqa: E402
import gpu_prepare  # noqa: E402
import gpu_steps  # noqa: E402
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


def test_readme_and_faq_have_the_costs_that_were_measured():
    def stored(name: str) -> dict[str, dict]:
        rows = json.loads((BENCHMARKS / "results" / f"{name}_cpu.json").read_text(encoding="utf-8"))["networks"]
        return {row["case"]: row for row in rows}

    network, peers, prediction = map(stored, ("network", "peers", "prediction"))
    steps = [network[case]["networks"]["LoG-VMamba"]["ratio"] for case in ("hippocampus", "pictures")]
    steps += [peers[case]["networks"]["LoGVMamba"]["step"]["ratio"] for case in ("hippocampus", "pictures")]
    patch = prediction["hippocampus-prediction"]["threads"]["2"]
    predicted = patch["LoG-VMamba"]["seconds"] / patch["PlainConvUNet"]["seconds"]
    tensors = {name: row["tensor_peak_bytes"] for name, row in peers["hippocampus"]["networks"].items()}
    of_plain, of_enc = (tensors["LoGVMamba"] / tensors[name] for name in ("PlainConvUNet", "UMambaEnc"))
    text = " ".join((BENCHMARKS.parent / "README.md").read_text(encoding="utf-8").split())
    for sentence in (
        f"a training step of LoG-VMamba takes {steps[0]:.2f} times as long as one of nnU-Net's own network",
        f"a predicted patch {predicted:.2f} times",
        f"in another one the step took [{steps[2]:.2f} times](docs/peers.md#cpu)",
        f"at 512 × 512, it took {steps[1]:.2f} times in one and {steps[3]:.2f} times in another",
        f"its tensors take {of_plain:.2f} times the memory of those of nnU-Net's network, and {of_enc:.2f} times that",
    ):
        assert sentence in text
    steps.append(peers["cube"]["networks"]["LoGVMamba"]["step"]["ratio"])
    text = (BENCHMARKS.parent / "docs" / "faq.md").read_text(encoding="utf-8")
    assert f"a training step takes {min(steps):.2f} to {max(steps):.2f} times as long" in text


@pytest.mark.parametrize("data", ["hippocampus", "cells"])
def test_the_tables_of_every_system_are_what_was_measured_and_all_had_both_recipes(data):
    file = BENCHMARKS / "results" / f"peers_{data}.csv"
    with file.open(encoding="utf-8") as lines:
        stored = {(row["metric"], row["method"]): row for row in csv.DictReader(lines) if row["class"] == "average"}
    page = (BENCHMARKS.parent / "docs" / "results.md").read_text(encoding="utf-8")
    part = page.split("## Every system, at one small budget")[1].split(f"### {data.capitalize()}, ")[1]
    table = [line.strip("| ").split(" | ") for line in part.split("\n\n")[1].splitlines()]
    columns = [tuple(title.split(", ")) for title in table[0][3:]]
    assert {recipe for _, recipe in columns} == {"published", "common"}
    shown = set()
    for name, _, _, *cells in table[2:]:
        for (metric, recipe), cell in zip(columns, cells):
            row = stored.get((metric, f"{name} ({recipe})"))
            assert cell == ("–" if row is None else f"{float(row['mean']):.3f} ± {float(row['standard_error']):.3f}")
            assert row is None or int(row["runs"]) == 2
            shown |= {f"{name} ({recipe})"} if row is not None else set()
    assert shown == {method for _, method in stored}
    assert {name for name, *_ in table[2:]} == {method.rpartition(" (")[0] for method in shown}


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_stored_results_say_where_they_come_from(path):
    circumstances = json.loads(path.read_text(encoding="utf-8"))["circumstances"]
    assert {"processor", "cores", "gpu", "versions", "commit"} <= set(circumstances)
    assert circumstances["commit"]


def prove(folder: Path, *options: str, timeout: int = 900) -> subprocess.CompletedProcess:
    """The proof on a GPU at a tiny size on the CPU."""
    command = [
        "bash",
        "benchmarks/gpu_proof.sh",
        "run",
        "--dry-run",
        "--out",
        str(folder),
        "--commit",
        "none",
        *options,
    ]
    environment = os.environ | {"PYTHON": sys.executable}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        command, cwd=BENCHMARKS.parent, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def page_of(folder: Path) -> str:
    done = run("benchmarks/tables.py", "--show", str(folder))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_proof_on_a_gpu_runs_at_a_tiny_size_and_goes_on_where_it_was(tmp_path):
    steps = ["checks", "correctness", "scan", "network"]
    done = prove(tmp_path, "--steps", ",".join(steps))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = gpu_journal.read(tmp_path)
    assert {name: step["state"] for name, step in found.items()} == dict.fromkeys(steps, "end")
    assert all(step["circumstances"]["commit"] == "none" and not step["wrong"] for step in found.values())
    checked = found["scan"]["circumstances"]["correctness"]
    assert (checked["commit"], checked["wrong"]) == ("none", [])
    assert checked["checked"] == len(found["correctness"]["rows"]) >= 2
    assert found["network"]["circumstances"]["correctness"] == checked
    page = page_of(tmp_path)
    assert "T exponentials/s" in page
    assert "U-Mamba-Enc" in page
    assert "Open, or stopped before its end: warm, profile" in page
    before = (tmp_path / gpu_journal.NAME).read_text()
    again = prove(tmp_path, "--steps", "checks,scan")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / gpu_journal.NAME).read_text() == before
    assert "left: warm, profile, network_2d, memory, amp, hippocampus, compile;" in again.stdout


@pytest.mark.slow
def test_estimated_and_measured_memory_are_written_side_by_side(tmp_path):
    """Without a GPU nothing is measured; with one the peak stands beside the estimate."""
    gpu_steps.run("memory", gpu_steps.Setting("cpu", True, tmp_path, "a1"))
    step = gpu_journal.read(tmp_path)["memory"]
    assert (step["state"], step["wrong"]) == ("end", [])
    assert {len(row["patch"]) for row in step["rows"]} == {2, 3}
    names = {row["network"] for row in step["rows"]}
    assert {"LoG-VMamba", "LoG-VMamba, checkpointing", "NoSSM", "PlainConvUNet"} <= names
    for row in step["rows"]:
        assert row["estimated_bytes"] > row["kept_bytes"] > 0
        assert row["peak_bytes"] is None
    page = page_of(tmp_path)
    assert "Memory of a training step" in page
    assert "LoG-VMamba, checkpointing" in page


@pytest.mark.slow
def test_the_other_steps_run_too(tmp_path, request):
    request.getfixturevalue("shared")
    prepared = tmp_path / "prepared"
    options = ("--folder", str(prepared), "--parts", "hippocampus", "--cases", "5")
    made = run("benchmarks/gpu_prepare.py", *options, timeout=900)
    assert made.returncode == 0, made.stderr
    assert "hippocampus, 5 cases" in made.stdout, made.stdout
    assert "nnunet.tar" in (prepared / "listing.txt").read_text()
    with tarfile.open(prepared / "nnunet.tar") as file:
        home = "nnunet/nnUNet_preprocessed/Dataset004_Hippocampus"
        folds = json.load(file.extractfile(f"{home}/splits_final.json"))
    assert [(len(fold["train"]), len(fold["val"])) for fold in folds] == [(4, 1)] * 5
    steps = ["warm", "profile", "network_2d", "memory", "amp", "hippocampus", "compile"]
    done = prove(tmp_path, "--steps", ",".join(steps), "--prepared", str(prepared), "--budget-s", "1500", timeout=1600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = gpu_journal.read(tmp_path)
    assert {name: step["state"] for name, step in found.items()} == dict.fromkeys(steps, "end")
    assert all(row["dice"] for row in found["hippocampus"]["rows"])
    assert "on hippocampus, fold 0" in page_of(tmp_path)


def test_a_spent_budget_ends_the_proof_and_says_what_is_left(tmp_path):
    done = prove(tmp_path, "--budget-s", "1")
    assert done.returncode == 0, done.stderr
    left = re.search("left: (.*?);", done.stdout)[1].split(", ")
    ended = {name for name, step in gpu_journal.read(tmp_path).items() if step["state"] == "end"}
    assert left == [name for name in gpu_journal.SHARES if name not in ended]
    assert "hippocampus" in left, "a second is enough for the first steps at most"
    done = prove(tmp_path, "--budget-s", "45", "--steps", "checks,network")
    assert done.returncode == 0, done.stderr
    found = gpu_journal.read(tmp_path)
    assert found["checks"]["state"] == "end", "the second command goes on"
    assert "network" not in found, "half of its share was not left"


def test_the_shares_of_the_steps_leave_time_to_begin():
    assert sum(gpu_journal.SHARES.values()) <= 620
    assert set(gpu_journal.SHARES) == set(gpu_steps.STEPS)


def test_rows_are_kept_when_the_machine_goes_and_the_last_run_of_a_step_counts(tmp_path):
    for commit, end in (("a1", "end"), ("b2", "stopped")):
        gpu_journal.write(tmp_path, "scan", "begin", circumstances={"commit": commit}, deadline=0)
        gpu_journal.write(tmp_path, "scan", "row", found=commit, wrong=[f"{commit} is wrong"])
        gpu_journal.write(tmp_path, "scan", end, why="")
    with (tmp_path / gpu_journal.NAME).open("a") as file:
        file.write('{"step": "scan", "kin')
    step = gpu_journal.read(tmp_path)["scan"]
    assert (step["rows"], step["wrong"], step["state"]) == ([{"found": "b2"}], ["b2 is wrong"], "stopped")
    assert gpu_journal.missing({"scan": step | {"state": "end"}}, "b2") == [
        x for x in gpu_journal.SHARES if x != "scan"
    ]
    assert "scan" in gpu_journal.missing({"scan": step}, "b2")
    assert "scan" in gpu_journal.missing({"scan": step | {"state": "end"}}, "a1")
    gpu_journal.write(tmp_path, "scan", "begin", circumstances={"commit": "c3"}, deadline=7)
    step = gpu_journal.read(tmp_path)["scan"]
    assert (step["circumstances"], step["deadline"], step["rows"]) == ({"commit": "c3"}, 7, []), "behind half a line"


def test_the_gpu_proof_says_what_it_needs(tmp_path):
    done = run("benchmarks/gpu_proof.py", "--dry-run")
    assert done.returncode == 2
    assert "name another folder with --out" in done.stderr
    done = run("benchmarks/gpu_proof.py", "--steps", "scan,nothing")
    assert done.returncode == 2
    assert "no step nothing; there are checks, warm" in done.stderr


def test_what_was_prepared_is_listed_and_may_not_be_too_large(tmp_path, monkeypatch, capsys):
    (tmp_path / "site.tar.xz").write_bytes(bytes(2**20))
    options = ["gpu_prepare.py", "--folder", str(tmp_path), "--parts", "kernels", "--python", "no-such-python"]
    monkeypatch.setattr(sys, "argv", options)
    assert gpu_prepare.main() == 1, "a part that was asked for is not there"
    assert "kernels: left out: no python3.12 with torch and Triton" in capsys.readouterr().out
    assert "1.00 MiB  site.tar.xz" in (tmp_path / "listing.txt").read_text()
    monkeypatch.setattr(gpu_prepare, "LARGEST_BYTES", 2**19)
    assert gpu_prepare.main() == 1
    assert "fewer --cases" in capsys.readouterr().err


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
        (figures("gpu_scan", "a1", correctness=RIGHT), ""),
        (figures("gpu_amp", "a1"), ""),
        (figures("scan_cpu", "b2", correctness=RIGHT), "scan_cpu.json has figures of commit b2, which was not checked"),
        (figures("gpu_network", "a1"), "gpu_proof.jsonl, step network, has figures of commit a1, which was"),
        (figures("gpu_amp", "a1-dirty"), "gpu_proof.jsonl, step amp, has figures of commit a1-dirty: nobody has"),
        (figures("conversion_cpu", "a1", correctness=RIGHT | {"wrong": ["u: 0.1"]}), "at which this is wrong: u: 0.1"),
    ],
)
def test_the_tables_refuse_figures_of_a_commit_that_was_not_found_right(stored, why):
    assert tables.refusal(stored) == "" if not why else why in tables.refusal(stored)
    nested = {"network_cpu": {"networks": list(stored.values())}}
    assert bool(tables.refusal(nested)) == (bool(why) and "gpu" not in why)


def test_the_tables_refuse_figures_if_the_correctness_step_of_their_commit_failed():
    proof = {"gpu_correctness": {"circumstances": {"commit": "a1"}, "wrong": ["triton float16 y: nan"]}}
    stored = proof | figures("gpu_scan", "a1", correctness=RIGHT)
    assert tables.refusal(stored).endswith("at which this is wrong: triton float16 y: nan")
    proof["gpu_correctness"]["circumstances"]["commit"] = "b2"
    assert not tables.refusal(stored)


def test_the_tables_refuse_a_step_on_a_gpu_that_found_something_wrong():
    stored = {"gpu_amp": {"circumstances": {"commit": "a1"}, "rows": [], "wrong": ["a loss is nan"]}}
    assert tables.refusal(stored) == "the step amp on a GPU found this wrong: a loss is nan"


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


def test_what_is_timed_though_the_scan_is_wrong_says_so_and_comes_into_no_table(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # slow, and not what this is about
    setting = gpu_steps.Setting("cpu", True, tmp_path, "a1")
    gpu_journal.write(tmp_path, "correctness", "begin", circumstances={"commit": "a1"}, deadline=0)
    gpu_journal.write(tmp_path, "correctness", "row", wrong=["numba float32 y: 1.0e+00"])
    gpu_journal.write(tmp_path, "correctness", "end")
    gpu_steps.run("scan", setting)
    step = gpu_journal.read(tmp_path)["scan"]
    assert step["state"] == "end"
    assert any("numba" in row for row in step["rows"])
    assert step["circumstances"]["correctness"]["wrong"] == ["numba float32 y: 1.0e+00"]
    assert "at which this is wrong: numba float32 y" in tables.refusal({"gpu_scan": step})
    monkeypatch.setattr(correctness, "LARGEST_ERROR", dict.fromkeys(correctness.DTYPES, -1.0))
    assert gpu_steps.proven(replace(setting, commit="b2"))["wrong"], "compared anew, since it was another commit"


def test_what_tensors_hold_at_most_is_counted_to_the_byte():
    def three_of_which_two_at_once() -> None:
        first = torch.empty(1000, dtype=torch.float32)
        second = torch.empty(2000, dtype=torch.float32)
        del first
        third = torch.empty(500, dtype=torch.float32)
        del second, third

    assert measure.peak_of_tensors(three_of_which_two_at_once) == 12_000


def test_nothing_is_timed_on_a_cpu_where_the_scan_is_wrong(monkeypatch):
    monkeypatch.setattr(correctness, "LARGEST_ERROR", dict.fromkeys(correctness.DTYPES, -1.0))
    with pytest.raises(SystemExit, match="the scan is wrong, so nothing is timed"):
        correctness.checked("cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        "bench_scan",
        "bench_network",
        "bench_network --prediction",
        "bench_network --peers",
        "bench_conversion",
        "bench_finite",
    ],
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
        if "--peers" in options:
            counted = {
                name: row
                for name, row in results["networks"][0]["networks"].items()
                if "sequential" not in name and row["tensor_peak_bytes"] < row["peak_bytes"]
            }
            assert len(counted) == 2
            results["networks"][0]["networks"] = counted
            page = tables.peers_page({"peers_cpu": results})
            assert "tensors at most, MiB | peak memory, MiB |" in page
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.slow
def test_the_cost_of_the_checks_is_measured_beside_a_prediction_without_them():
    done = run("benchmarks/bench_guards.py", "--rounds", "1", timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the checks cost") == 2
