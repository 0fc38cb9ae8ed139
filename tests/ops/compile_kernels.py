"""Compile the GPU scan for a GPU that is not there: everything is compiled as it would be, and nothing runs.

Prints for each compiled kernel its name, bytes of machine code, bytes of shared memory, how often values move between
threads, registers and bytes of spills of a thread, for how many programs a multiprocessor has registers, and
instructions for each step of a state of a channel. Run by a test in a process of its own, since kernels are made either
for the compiler or for the interpreter.
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

STEPS_OF_A_TILE = 16
"""Of a thread: 16 of one channel, or 8 of two."""


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


def inspected(machine_code: bytes, tool: str, option: str) -> str:
    """What a tool that comes with Triton says of machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        command = [Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(machine_code: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of memory of its own, which is where registers are spilled to."""
    said = inspected(machine_code, "cuobjdump", "-res-usage")
    return tuple(map(int, re.search(r"REG:(\d+) STACK:(\d+)", said).groups()))


def instructions(machine_code: bytes, states: int = 16) -> float:
    """Instructions of a thread for each step of a state of a channel; 0 where no loop goes over tiles and states."""
    found, labels = [], {}
    for line in inspected(machine_code, "nvdisasm", "-c").splitlines():
        if label := re.match(r"\s*(\.L_\S+):", line):
            labels[label[1]] = len(found)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(\S.*?);", line):
            found.append(instruction[1])
    jumps = ((number, re.search(r"\bBRA\b.*`\((\.L_\S+?)\)", text)) for number, text in enumerate(found))
    ends = [(labels[jump[1]], number) for number, jump in jumps if jump and labels.get(jump[1], number) < number]
    loops = sorted((last - first + 1, first, last) for first, last in ends)
    if len(loops) < 2:
        return 0.0
    (inner, first, last), *around = [loop for loop in loops if any("MUFU.EX2" in x for x in found[loop[1] : loop[2]])]
    (outer,) = (size for size, begin, end in around if begin < first and last < end)
    return (outer + (states - 1) * inner) / (STEPS_OF_A_TILE * states)


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
        machine_code, moves = made.asm["cubin"], made.asm["ptx"].count("shfl.")
        registers, spilled = resources(machine_code)
        figures = len(machine_code), made.metadata.shared, moves, registers, spilled, programs_beside(registers)
        print(made.metadata.name, *figures, f"{instructions(machine_code):.1f}", flush=True)


if __name__ == "__main__":
    main()
