#!/usr/bin/env bash
# torch.compile on a CPU leaves the end of an index vector unwritten where a step does not divide its length.
#
# Expected: arange(288) // 11, compiled, is arange(288) // 11; positions in blocks, rows of a grid and the like are often
#   computed so.
# Seen with torch 2.13.0 on a CPU: compiled, the last 288 mod 11 = 2 values are whatever lay in the memory, the last 14 of
#   1,000 for 17. Nothing is raised or printed. Right are steps up to 8, steps that divide the length, a division in double
#   precision, and the backends "eager" and "aot_eager", which most tests of compilation use.
# Why: a loop over such a division is turned into two, of length // step and of step turns, so that no division is left.
#   What remains beyond the last whole block belongs to neither. Steps of 8 and less are not treated so.
# Source: torch/_inductor/codegen/cpp.py, try_loop_split of CppScheduling, whose conditions do not ask for a length that
#   the step divides.
# Cost: as an index, a wrong element or an error about bounds from a kernel that nobody wrote; as a value, noise.
# Remedy: divide in double precision, with half a step to spare, torch.floor((index.double() + 0.5) / step).long(): on CUDA
#   a division by a number is a product with its reciprocal, and 49 * (1 / 49.0) is less than 1. Or build the vector by
#   repeat_interleave outside of what is compiled.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.13.0 setuptools==80.9.0
cd "$folder"
export TORCHINDUCTOR_CACHE_DIR="$folder/cache" CUDA_VISIBLE_DEVICES=

cat > divide.py <<'PYTHON'
import sys

import torch


def blocks(length, step):
    index = torch.arange(length)
    return index + torch.div(index, step, rounding_mode="floor")


def blocks_in_double(length, step):
    index = torch.arange(length)
    return index + torch.floor((index.double() + 0.5) / step).long()


def wrong(function, length, step, backend="inductor"):
    """How many values differ, and whether all of them stand at the end."""
    torch._dynamo.reset()
    expected = function(length, step)
    found = torch.compile(function, dynamic=False, backend=backend)(length, step)
    differ = (found != expected).nonzero().flatten().tolist()
    return len(differ), differ == list(range(length - len(differ), length))


print("Versions: torch", torch.__version__)
print("Expected: 0 wrong values")
seen = {}
for length, step in ((288, 11), (1000, 17), (288, 12), (100, 7)):
    seen[length, step] = wrong(blocks, length, step)
    print(f"Seen:     arange({length}) // {step}: {seen[length, step][0]} wrong, which should be 0; rest {length % step}")
double, eager = wrong(blocks_in_double, 288, 11), wrong(blocks, 288, 11, "aot_eager")
print(f"Seen:     in double precision {double[0]} wrong, with the backend aot_eager {eager[0]} wrong")
same = seen == {(288, 11): (2, True), (1000, 17): (14, True), (288, 12): (0, True), (100, 7): (0, True)}
sys.exit(0 if same and double[0] == eager[0] == 0 else "the behaviour has changed")
PYTHON
"$python" divide.py
