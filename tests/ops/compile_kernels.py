"""Compile the GPU scan for a GPU that is not there: everything is compiled as it would be, and nothing runs.

Prints for each compiled kernel its name, bytes of machine code, bytes of shared memory, how often values move between
threads, registers and bytes of spills of a thread, and for how many programs a multiprocessor has registers. Run by a
test in a process of its own, since kernels are made either for the compiler or for the interpreter.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

from nnunet_logvmamba.ops.scan import triton_launch


class AbsentGpu:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def scan(channels: int, dtype: torch.dtype, extra: int) -> tuple:
    """Arguments of a stage of a network, without data, B and C being parts of one projection."""
    batch, length, state = 2, 4000, 16
    rows = length + extra
    with torch.device("meta"):
        weights = torch.zeros(batch, rows, 1, 6 + 2 * state, dtype=dtype)
        return (
            torch.zeros(batch, length, channels, dtype=dtype),
            torch.zeros(batch, rows, channels, dtype=dtype),
            torch.ones(channels, state),
            weights[..., 6 : 6 + state],
            weights[..., 6 + state :],
            torch.ones(channels),
            torch.ones(2, channels)[1],
            None,
            torch.zeros(batch, extra, channels, dtype=dtype) if extra else None,
            torch.arange(rows) if extra else None,
            True,
        )


def resources(machine_code: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of memory of its own, which is where registers are spilled to."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.search(r"REG:(\d+) STACK:(\d+)", said).groups()))


def programs_beside(registers: int) -> int:
    """Warps for which the registers of a multiprocessor suffice: 16,384 in each quarter, eight at a time."""
    return 4 * (16384 // (32 * 8 * -(-registers // 8)))


def absent_gpu(capability: int) -> torch.device:
    """Make Triton compile for a GPU that is not there, and give the device to compile for."""
    triton.runtime.driver.set_active(AbsentGpu(capability))
    triton_launch.INTERPRETED_STATES = None
    triton_launch._processors = lambda device: 132
    return torch.device("cpu")


def main() -> None:
    """Compile what the stages of the paper's network need: ``compile_kernels.py CAPABILITY CHANNELS...``."""
    scans = [scan(channels, torch.float16, extra=8) for channels in map(int, sys.argv[2:])]
    for made in triton_launch.compile_ahead(scans, absent_gpu(int(sys.argv[1]))):
        moves = made.asm["ttgir"].count("ttg.convert_layout") + made.asm["ptx"].count("shfl.")
        registers, spilled = resources(made.asm["cubin"])
        size, shared = len(made.asm["cubin"]), made.metadata.shared
        print(made.metadata.name, size, shared, moves, registers, spilled, programs_beside(registers), flush=True)


if __name__ == "__main__":
    main()
