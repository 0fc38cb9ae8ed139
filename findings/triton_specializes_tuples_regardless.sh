#!/usr/bin/env bash
# A Triton kernel that is told not to specialise the extents of a volume is compiled eight times for cropped volumes.
#
# Expected: do_not_specialize names arguments of which values are not looked at, so that one compiled kernel serves all.
# Seen with triton 3.9.0: that holds for a number and not for the members of a tuple. Each extent in a tuple is looked
#   at: 1 becomes a constant, a multiple of 16 is marked, whatever do_not_specialize says. Nothing is said about it.
# Why: the flag goes with the whole argument to native_specialize_impl, which gives the same for the members of a tuple
#   with the flag and without it.
# Source: triton/runtime/jit.py, create_function_from_signature.
# Cost: scans differ in size, so a kernel over (depth, height, width) waits for the compiler anew in the middle of an
#   epoch, up to 27 times; and a kernel that was compiled ahead for one size is not the one that runs for another.
# Remedy: extents as three arguments of their own.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check triton==3.9.0
cd "$folder"

cat > kernels.py <<'PYTHON'
import itertools
import sys
from importlib.metadata import version

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature


@triton.jit(do_not_specialize=["depth", "height", "width"])
def three_numbers(depth, height, width):
    pass


@triton.jit(do_not_specialize=["extents"])
def one_tuple(extents):
    pass


def kernels(function, calls):
    """How many kernels are compiled for these calls: what is looked at in the arguments is the key of the cache."""
    look_at = create_function_from_signature(
        function.signature, function.params, make_backend(GPUTarget("cuda", 90, 32))
    )
    return len({str(look_at(*arguments)[1]) for arguments in calls})


print("Versions: triton", version("triton"))
sides = 128, 131, 137, 144, 150, 155, 160, 163
volumes = list(itertools.product(sides, repeat=3))
slices = [(1, *sides) for sides in itertools.product(sides, repeat=2)]
print(f"Expected: one kernel for {len(volumes)} volumes and {len(slices)} slices, whose extents are not specialised")
seen = {
    "three numbers": [kernels(three_numbers, volumes), kernels(three_numbers, volumes + slices)],
    "one tuple": [kernels(one_tuple, [(each,) for each in sizes]) for sizes in (volumes, volumes + slices)],
}
for name, (of_volumes, of_both) in seen.items():
    print(f"Seen:     {name}: {of_volumes} for the volumes, {of_both} with the slices")
sys.exit(0 if seen == {"three numbers": [1, 1], "one tuple": [8, 12]} else "the behaviour has changed")
PYTHON
"$python" kernels.py
