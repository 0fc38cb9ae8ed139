"""Launch the GPU scan for a GPU that is not there: everything is compiled as it would be, and nothing runs.

Prints for each compiled kernel its name, bytes of machine code, bytes of shared memory, and how often values move
between threads. Run by a test in a process of its own, since kernels are made either for the compiler or for the
interpreter.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

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


def compile_instead(kernel: JITFunction, grid: tuple[int, ...]):
    """What stands for ``kernel[grid]``."""

    def compiled(*args, **kwargs) -> None:
        made = kernel.run(*args, grid=grid, warmup=True, **kwargs)
        if id(made) not in seen:
            seen[id(made)] = made
            moves = made.asm["ttgir"].count("ttg.convert_layout") + made.asm["ptx"].count("shfl.")
            print(kernel.__name__, len(made.asm["cubin"]), made.metadata.shared, moves, flush=True)

    return compiled


def launch(channels: int, dtype: torch.dtype, extra: int) -> None:
    """Forward and backward of a stage of a network, B and C being parts of one projection."""
    batch, length, state = 2, 4000, 16
    rows = length + extra
    weights = torch.zeros(batch, rows, 1, 6 + 2 * state, dtype=dtype)
    u, delta = torch.zeros(batch, length, channels, dtype=dtype), torch.zeros(batch, rows, channels, dtype=dtype)
    tensors = (
        u,
        delta,
        -torch.ones(channels, state),
        weights[..., 6 : 6 + state],
        weights[..., 6 + state :],
        torch.ones(channels),
        torch.ones(2, channels)[1],
        None,
        torch.zeros(batch, extra, channels, dtype=dtype) if extra else None,
        torch.arange(rows) if extra else None,
        True,
    )
    triton_launch.forward(*tensors)
    triton_launch.backward(torch.zeros_like(u), torch.zeros(batch, channels, state), *tensors)


def main() -> None:
    """Compile what the stages of the paper's network need: ``compile_kernels.py CAPABILITY CHANNELS...``."""
    triton.runtime.driver.set_active(AbsentGpu(int(sys.argv[1])))
    JITFunction.__getitem__ = compile_instead
    triton_launch.INTERPRETED_STATES = None
    triton_launch._processors = lambda device: 132
    for channels in map(int, sys.argv[2:]):
        launch(channels, torch.float16, extra=8)


seen: dict[int, object] = {}
if __name__ == "__main__":
    main()
