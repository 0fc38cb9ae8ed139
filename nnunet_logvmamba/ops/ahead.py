"""Kernels before the first step: the scans that a network will run, found without running it, compiled all at once.

Left to itself, the first step would compile them one after the other.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from . import backends
from .scan.library import selective_scan_op

_SCAN = selective_scan_op


def compile_ahead(network: nn.Module, shape: Sequence[int], device: torch.device) -> int:
    """Compile the kernels that training a network in mixed precision will need on a GPU, all at once.

    Those of the check behind "auto" are among them.

    Args:
        network: On the device.
        shape: Of its input, (batch, channels, *spatial).
        device: Where it will run; nothing is done where Triton's kernels do not.

    Returns:
        How many kernels there are.
    """
    if device.type != "cuda" or backends.obstacle("triton", device) is not None:
        return 0
    scans = [(*tensors, softplus) for *tensors, softplus, name in scans_of(network, shape, device) if name in _TRITON]
    if not scans:
        return 0
    scans.append(scan_of_check())
    launch = importlib.import_module(backends.BACKENDS["triton"].module)
    return len(launch.compile_ahead(scans, device))


def scans_of(
    network: nn.Module, shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float16
) -> list[tuple]:
    """Arguments of all scans of a network under autocast to ``dtype``, with on device "meta"; nothing is computed."""
    recorder = _Recorder()
    # Copies, since even without data a norm counts its batches.
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with FakeTensorMode(allow_non_fake_inputs=True), recorder, torch.no_grad(), torch.autocast(device.type, dtype):
        functional_call(network, buffers, (torch.empty(tuple(shape), device=device),))
    # Out of the mode, in which even these would be fake tensors, of which torch 2.11 does not like to tell an address.
    return [tuple(_without_data(x) if isinstance(x, Tensor) else x for x in scan) for scan in recorder.scans]


def scan_of_check() -> tuple:
    """Arguments of the scan on which a backend is tried, in float32."""
    inputs, _, order = backends.check_arguments()
    return (*(x.to("meta", torch.float32) for x in inputs), order.to("meta"), True)


_TRITON = {"auto", "triton"}


class _Recorder(TorchDispatchMode):
    """Keeps the arguments of every scan."""

    def __init__(self) -> None:
        super().__init__()
        self.scans: list[tuple] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is _SCAN:
            self.scans.append(tuple(arguments))
        return function(*arguments, **(keywords or {}))


def _without_data(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
