"""What is prepared for a GPU is found there, and the proof ends as it should, with nothing of it lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent, FunctionEventAvg

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # the scripts import each other by their names, as when they are run

import checkout  # noqa: E402
import correctness  # noqa: E402
import gpu_journal  # noqa: E402
import gpu_prepare  # noqa: E402
import gpu_proof  # noqa: E402
import gpu_steps  # noqa: E402
import mamba_kernel  # noqa: E402
import tables  # noqa: E402

from nnunet_logvmamba.ops import backends  # noqa: E402

COMPILED = """
import torch
from compile_kernels import absent_gpu

absent_gpu(90)
import exponentials

values = torch.empty(1024, device="meta")
exponentials._exponentials.warmup(values, values, 4, BLOCK=1024, grid=(1,))
"""


def test_kernels_that_were_prepared_are_not_compiled_again_where_they_are_unpacked(tmp_path):
    import triton

    calls, tools = tmp_path / "calls", Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    path = os.pathsep.join(map(str, (BENCHMARKS.parent, BENCHMARKS, BENCHMARKS.parent / "tests" / "ops")))
    environment = os.environ | {"PYTHONPATH": path}
    for tool in sorted(tools.glob("ptxas*")):  # the one or the other, by Triton's version
        counting = tmp_path / tool.name
        counting.write_text(f'#!/bin/sh\n[ "$*" = --version ] || echo "$@" >>"{calls}"\nexec "{tool}" "$@"\n')
        counting.chmod(0o755)
        environment[f"TRITON_{tool.name.upper().replace('-', '_')}_PATH"] = str(counting)
    environment.pop("TRITON_INTERPRET", None)

    def compiled(cache: str) -> int:
        subprocess.run([sys.executable, "-c", COMPILED], env=environment | {"TRITON_CACHE_DIR": cache}, check=True)
        return len(calls.read_text().splitlines())

    made = tmp_path / "made" / "triton"
    assert compiled(str(made)) == 1
    (tmp_path / "prepared").mkdir()
    gpu_prepare.packed(made, tmp_path / "prepared" / "triton.tar.xz")
    made.rename(tmp_path / "gone")
    found = gpu_proof.unpack(tmp_path / "prepared", tmp_path / "there")
    assert compiled(found["TRITON_CACHE_DIR"]) == 1


def test_mixed_precision_is_compared_after_as_many_steps_though_some_were_skipped(tmp_path):
    single, half, last = gpu_steps.amp(gpu_steps.Setting("cpu", True, tmp_path, "a1"))
    assert half["skipped_steps"] > 0 == single["skipped_steps"]
    assert len(single["losses"]) == len(half["losses"]) == 3
    assert single["wrong"] == half["wrong"] == last["wrong"] == []
    assert last["largest_difference"] < 0.05


def test_a_mamba_ssm_that_is_there_but_broken_is_left_out_and_stops_nothing(tmp_path, monkeypatch):
    there = replace(backends.BACKENDS["mamba_ssm"], module="no_such_module", obstacle=lambda device: None)
    monkeypatch.setitem(backends.BACKENDS, "mamba_ssm", there)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # slow, and not what this is about
    setting = gpu_steps.Setting("cpu", True, tmp_path, "a1")
    assert gpu_steps.proven(setting)["wrong"] == []
    gpu_steps.run("correctness", setting)
    step = gpu_journal.read(tmp_path)["correctness"]
    assert (step["state"], step["wrong"]) == ("end", [])
    first, *others = step["rows"]
    assert first["left_out"] == "mamba_ssm"
    assert "no_such_module" in first["because"]
    assert {row["backend"] for row in others} >= {"numba"}
    assert "mamba_ssm" not in {row["backend"] for row in others}
    assert "mamba_ssm was not compared: It raises ModuleNotFoundError" in tables.gpu_checks_section(
        {"correctness": step}
    )


def test_the_errors_of_mamba_ssm_are_written_and_are_not_ours(monkeypatch):
    there = replace(backends.BACKENDS["chunked"], complete=False)
    monkeypatch.setitem(backends.BACKENDS, "mamba_ssm", there)
    monkeypatch.setattr(correctness, "LARGEST_ERROR", dict.fromkeys(correctness.DTYPES, -1.0))
    names = ["mamba_ssm", "numba"]
    rows, wrong = correctness.errors_of_backends(names, "cpu", correctness.SMALL[:1], dtypes=["float32"])
    assert {row["backend"] for row in rows} == set(names)
    assert {line.split()[0] for line in wrong} == {"numba"}


def test_a_backend_that_raises_is_a_wrong_row_and_the_others_are_compared(tmp_path, monkeypatch):
    there = replace(backends.BACKENDS["chunked"], module="no_such_module")
    monkeypatch.setitem(backends.BACKENDS, "numba", there)
    names = ["numba", "chunked"]
    rows, wrong = correctness.errors_of_backends(names, "cpu", correctness.SMALL[:1], dtypes=["float32"])
    assert [(row["backend"], bool(row["errors"])) for row in rows] == [("numba", False), ("chunked", True)]
    (line,) = wrong
    assert line.startswith("numba float32 ")
    assert "raises ValueError: Scan backend 'numba' cannot run" in line
    assert "no_such_module" in line
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # slow, and not what this is about
    gpu_steps.run("correctness", gpu_steps.Setting("cpu", True, tmp_path, "a1"))
    step = gpu_journal.read(tmp_path)["correctness"]
    assert step["state"] == "end"
    assert all("no_such_module" in line for line in step["wrong"])
    assert step["wrong"]


def test_mamba_ssm_is_fetched_though_its_setup_wants_a_torch_with_cuda(tmp_path, monkeypatch):
    """Its setup reads the version of CUDA, None without it, unless it is told to build nothing."""
    source = tmp_path / "mamba_ssm-1.0"
    source.mkdir()
    (source / "setup.py").write_text(
        "import os, setuptools\n"
        "assert os.environ.get('MAMBA_SKIP_CUDA_BUILD') == 'TRUE'\n"
        "setuptools.setup(name='mamba-ssm', version='1.0')\n"
    )
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: mamba-ssm\nVersion: 1.0\n")
    with tarfile.open(tmp_path / "mamba_ssm-1.0.tar.gz", "w:gz") as file:
        file.add(source, source.name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    into, scratch = tmp_path / "into", tmp_path / "scratch"
    into.mkdir()
    scratch.mkdir()
    assert gpu_prepare.mamba(into, scratch, None, "9.0", 1).startswith("source of mamba_ssm-1.0.tar.gz, to be built")
    assert [path.name for path in into.iterdir()] == ["mamba_ssm-1.0.tar.gz"]


def event(name: str, device: DeviceType, microseconds: float, **options: object) -> FunctionEvent:
    return FunctionEvent(len(name), name, 0, 0, microseconds, device_type=device, use_device="cuda", **options)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc, CUDA's compiler")
def test_cuda_is_found_where_nvcc_really_lies(tmp_path, monkeypatch):
    elsewhere = tmp_path / "bin" / "nvcc"
    elsewhere.parent.mkdir()
    elsewhere.write_text(f'#!/bin/sh\nexec "{shutil.which("nvcc")}" "$@"\n')
    elsewhere.chmod(0o755)
    monkeypatch.setenv("PATH", str(elsewhere.parent), prepend=os.pathsep)
    assert (mamba_kernel.toolkit() / "include" / "cuda_runtime.h").is_file()


def test_a_mamba_ssm_that_was_built_says_its_version(tmp_path):
    source, folder = tmp_path / "mamba_ssm-2.3.2", tmp_path / "built"
    (source / "mamba_ssm").mkdir(parents=True)
    (source / "mamba_ssm" / "__init__.py").write_text("")
    (source / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: mamba_ssm\nVersion: 2.3.2\n")
    folder.mkdir()
    mamba_kernel.lay_out(source, folder)
    found = "import importlib.metadata, mamba_ssm; print(importlib.metadata.version('mamba-ssm'))"
    environment = os.environ | {"PYTHONPATH": str(folder)}
    assert subprocess.check_output([sys.executable, "-c", found], env=environment, text=True) == "2.3.2\n"


def test_the_time_of_a_kernel_counts_once_in_the_profile_of_a_gpu():
    """As torch gives it: beside the kernel its time stands in what launched it, and in an annotation around that."""
    operation = event("aten::conv3d", DeviceType.CPU, 9)
    operation.append_kernel("conv", 0, 60)
    step = event("Optimizer.step", DeviceType.CUDA, 100, is_user_annotation=True)
    kernels = [event("conv", DeviceType.CUDA, 60), event("copy", DeviceType.CUDA, 40)]
    averages = [FunctionEventAvg().add(each) for each in (operation, step, *kernels)]
    assert {average.key: average.self_device_time_total for average in averages}["aten::conv3d"] == 60
    rows = list(gpu_steps.shares(averages, "cuda"))
    assert [(row["operation"], row["share"]) for row in rows] == [("conv", 0.6), ("copy", 0.4)]


WORKER = """
import pathlib, sys, gpu_journal

folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
gpu_journal.write(folder, sys.argv[1], "begin", circumstances={"commit": "a1"}, deadline=float("inf"))
gpu_journal.write(folder, sys.argv[1], "end")
sys.exit(sys.argv[1] == "scan")
"""
CRASHING = """
import os, pathlib, sys, gpu_journal

folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
gpu_journal.write(folder, sys.argv[1], "begin", circumstances={"commit": "a1"}, deadline=float("inf"))
os._exit(3)
"""


@pytest.fixture
def supervised(tmp_path, monkeypatch):
    """Has two steps run by another program, and gives what the journal says then."""
    monkeypatch.setattr(gpu_proof, "HERE", tmp_path)

    def run(program: str) -> dict[str, dict]:
        (tmp_path / "gpu_steps.py").write_text(program)
        environment = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
        gpu_proof.supervise(["scan", "network"], tmp_path, "a1", [], environment, time.time() + 60)
        return gpu_journal.read(tmp_path)

    return run


def test_a_step_that_has_ended_stays_so_if_its_process_goes_down_behind_it(supervised):
    found = supervised(WORKER)
    assert {name: step["state"] for name, step in found.items()} == {"scan": "end", "network": "end"}


def test_a_step_that_crashes_as_soon_as_it_has_begun_is_stopped_and_the_next_one_begins(supervised):
    found = supervised(CRASHING)
    assert {name: (step["state"], step["why"]) for name, step in found.items()} == dict.fromkeys(
        ("scan", "network"), ("stopped", "exit code 3")
    )


def test_a_process_that_cannot_begin_is_not_started_for_every_step_and_stops_none(supervised, capfd):
    found = supervised("import sys; sys.exit('there is no GPU')")
    said = capfd.readouterr()
    assert said.err.count("there is no GPU") == 1
    assert "no step has begun, exit code 1" in said.out
    assert found == {}


def test_the_commit_is_that_of_the_code_which_runs_and_not_of_another_that_was_prepared(tmp_path):
    """In a copy without git, as it travels to a machine with a GPU."""
    copy = tmp_path / "copy"
    for part in ("benchmarks", "nnunet_logvmamba"):
        shutil.copytree(BENCHMARKS.parent / part, copy / part, ignore=shutil.ignore_patterns("results", "__pycache__"))
    prepared = copy / ".gpu"
    prepared.mkdir()

    def said_by(script: str) -> str:
        environment = os.environ | {"PATH": "", "PYTHONPATH": str(copy)}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=copy / "benchmarks", env=environment, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    (prepared / "commit").write_text("a1 " + said_by("import checkout; print(checkout.digest_of_code())"))
    asks = "import gpu_proof; print(gpu_proof.commit_of_code(gpu_proof.PREPARED))"
    assert said_by(asks) == "a1\n"
    with (copy / "nnunet_logvmamba" / "ops" / "backends.py").open("a") as file:
        file.write("# changed\n")
    assert "the code is not that of commit a1, which was prepared" in said_by(asks)
    (prepared / "commit").unlink()
    assert "name the commit with --commit" in said_by(asks)


def test_a_commit_is_dirty_by_what_was_changed_and_not_by_what_was_measured(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    results, code = tmp_path / "benchmarks" / "results" / gpu_journal.NAME, tmp_path / "code.py"
    results.parent.mkdir(parents=True)
    for file in (results, code):
        file.write_text("1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    commit = checkout.commit_of_checkout()
    results.write_text("2\n")
    assert checkout.commit_of_checkout() == commit
    code.write_text("2\n")
    assert checkout.commit_of_checkout() == f"{commit}-dirty"


def children_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def runs(process: int) -> bool:
    """Whether it does: one that nobody has waited for yet has a state, too."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(true: Callable[[], object], seconds: float) -> None:
    end = time.time() + seconds
    while not true():
        assert time.time() < end
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("word", [signal.SIGTERM, signal.SIGKILL])
def test_a_proof_that_is_ended_leaves_no_process_and_goes_on_with_the_step_that_ran(tmp_path, word):
    command = [
        sys.executable,
        str(BENCHMARKS / "gpu_proof.py"),
        "--dry-run",
        "--commit",
        "none",
        "--steps",
        "checks,amp",
    ]
    proof = subprocess.Popen([*command, "--out", str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: "amp" in gpu_journal.read(tmp_path), 300)
        (worker,) = children_of(proof.pid)
    finally:
        proof.send_signal(word)
        proof.wait(timeout=30)
    wait_until(lambda: not runs(worker), 30 if word == signal.SIGKILL else 0.1)
    left = gpu_journal.missing(gpu_journal.read(tmp_path), "none")
    assert "amp" in left
    assert "checks" not in left


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_trainings_that_are_over_time_are_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("GPU_PROOF_WORK", str(tmp_path))
    plans = tmp_path / "nnunet" / "nnUNet_preprocessed" / "Dataset004_Hippocampus" / "nnUNetPlans.json"
    plans.parent.mkdir(parents=True)
    architecture = {"arch_kwargs": {"n_stages": 2}}
    plans.write_text(json.dumps({"configurations": {"3d_fullres": {"architecture": architecture}}}))
    before = children_of(os.getpid())
    rows = list(gpu_steps.hippocampus(gpu_steps.Setting("cpu", True, tmp_path, "a1", deadline=time.time())))
    assert [row["stopped"] for row in rows] == [True, True]
    assert children_of(os.getpid()) == before


def test_a_step_that_has_too_little_time_is_not_begun_and_keeps_its_rows(tmp_path):
    gpu_journal.write(tmp_path, "amp", "begin", circumstances={"commit": "a1"}, deadline=0)
    gpu_journal.write(tmp_path, "amp", "row", found=1)
    options = ["amp", "--out", str(tmp_path), "--commit", "a1", "--device", "cpu", "--tiny"]
    command = [sys.executable, str(BENCHMARKS / "gpu_steps.py"), *options, "--until", str(time.time() + 19)]
    subprocess.run(command, check=True, cwd=BENCHMARKS.parent)
    assert gpu_journal.read(tmp_path)["amp"]["rows"] == [{"found": 1}]
