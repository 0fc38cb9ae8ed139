"""What is prepared for a GPU is found there, and the proof ends as it should, with nothing of it lost."""

import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # the scripts import each other by their names, as when they are run

import gpu_prepare  # noqa: E402
import gpu_proof  # noqa: E402
import gpu_steps  # noqa: E402

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
