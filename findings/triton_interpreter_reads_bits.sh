#!/usr/bin/env bash
# A Triton kernel that is right on a GPU adds 1 and 1 to 1.7e+38 on a CPU, in bfloat16.
#
# Expected: with TRITON_INTERPRET=1 a kernel computes what it computes on a GPU, up to rounding, or says what it lacks.
# Seen with triton 3.9.0: sums, products and tl.sum of bfloat16 are meaningless, float16 and float32 are right. Nothing
#   is raised or printed. Casting to float32 before, as mixed-precision kernels should, gives the right values.
# Why: NumPy has no bfloat16, so the interpreter keeps the 16 bits as unsigned integers and computes with these.
#   Only conversions know what the bits mean.
# Source: triton/runtime/interpreter.py, table of NumPy dtypes and its comment on bfloat16; Triton's guide "Debugging
#   Triton", limitations of the interpreter.
# Cost: a day of looking for a race or a mask in a scan kernel that is fine; or a test that skips bfloat16 altogether.
# Remedy: tl.load(...).to(tl.float32) at once, which GPU kernels want anyway.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.13.0 triton==3.9.0
cd "$folder"

cat > kernel.py <<'PYTHON'
import sys
from importlib.metadata import version

import torch
import triton
import triton.language as tl


@triton.jit
def sums(x_pointer, each_pointer, all_pointer, as_float: tl.constexpr, size: tl.constexpr):
    steps = tl.arange(0, size)
    x = tl.load(x_pointer + steps)
    if as_float:
        x = x.to(tl.float32)
    tl.store(each_pointer + steps, (x + x).to(tl.float32))
    tl.store(all_pointer + steps, tl.sum(x, 0).to(tl.float32) + tl.zeros([size], tl.float32))


def run(dtype, as_float):
    x = torch.ones(8, dtype=dtype)
    each, total = torch.zeros(8), torch.zeros(8)
    sums[(1,)](x, each, total, as_float, 8)
    return each[0].item(), total[0].item()


print("Versions:", *(f"{name} {version(name)}" for name in ("triton", "torch", "numpy")))
print("Expected: 1 + 1 = 2 and a sum of eight ones = 8, for every dtype")
right = []
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for as_float in (False, True):
        seen = run(dtype, as_float)
        right.append(seen == (2.0, 8.0))
        print(f"Seen:     1 + 1 = {seen[0]:.6g}, sum {seen[1]:.6g}", dtype, "cast to float32 first" if as_float else "")
sys.exit(0 if right == [True, True, True, True, False, True] else "the behaviour has changed")
PYTHON
TRITON_INTERPRET=1 "$python" kernel.py
