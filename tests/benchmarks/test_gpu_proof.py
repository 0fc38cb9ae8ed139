"""What is prepared for a GPU is found there, and the proof ends as it should, with nothing of it lost."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # the scripts import each other by their names, as when they are run

import correctness  # noqa: E402
import gpu_journal  # noqa: E402
import gpu_prepare  # noqa: E402
import gpu_proof  # noqa: E402
import gpu_steps  # noqa: E402
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
    assert tables.gpu_checks_section({"correctness": step})


def test_the_errors_of_mamba_ssm_are_written_and_are_not_ours(monkeypatch):
    there = replace(backends.BACKENDS["chunked"], complete=False)
    monkeypatch.setitem(backends.BACKENDS, "mamba_ssm", there)
    monkeypatch.setattr(correctness, "LARGEST_ERROR", dict.fromkeys(correctness.DTYPES, -1.0))
    names = ["mamba_ssm", "numba"]
    rows, wrong = correctness.errors_of_backends(names, "cpu", correctness.SMALL[:1], dtypes=["float32"])
    assert {row["backend"] for row in rows} == set(names)
    assert {line.split()[0] for line in wrong} == {"numba"}
