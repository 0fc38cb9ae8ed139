"""Which implementation of the causal convolution runs: torch's convolution, or the kernel of ``causal-conv1d``.

Each is a module with two functions that only compute, on rows in the order of the sequence::

    forward(x, weight, bias, silu) -> y
    backward(grad_y, x, weight, bias, silu) -> gradients of x, weight and bias (None where it is absent)
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from types import ModuleType

import torch
from torch import Tensor

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.ops.backends import IMPORT_FAILURES, LARGEST_ERROR, compute_dtype

BACKENDS = {
    "torch": "nnunet_logvmamba.ops.causal_conv.portable",
    "causal_conv1d": "nnunet_logvmamba.ops.causal_conv.vendor",
}
LONGEST_KERNEL = 4
"""Of the package's kernel; the shortest is 2."""


def check_name(name: str) -> None:
    """Raise UserError, listing the valid names, unless ``name`` is one of them."""
    if name not in ("auto", *BACKENDS):
        raise UserError(f"Unknown convolution backend {name!r}; choose one of: auto, {', '.join(BACKENDS)}.")


def obstacle(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """Say why ``causal_conv1d`` cannot take these, or None."""
    if not x.is_cuda:
        return "It runs on CUDA devices only."
    if importlib.util.find_spec("causal_conv1d") is None:
        return "causal-conv1d is not installed; it is in the extra [cuda]."
    if compute_dtype(x, weight, bias) == torch.float64:
        return "It has no float64."
    if not 2 <= weight.shape[1] <= LONGEST_KERNEL:
        return f"It takes kernels of 2 to {LONGEST_KERNEL}, this one has {weight.shape[1]}."
    return None


def choose(name: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> ModuleType:
    """Load the backend of that name, or for ``"auto"`` the package's kernel where it fits and works, else torch.

    Raises:
        ValueError: If the backend was named and cannot run; the message says why.
    """
    reason = obstacle(x, weight, bias)
    if name == "auto":
        fast = reason is None and works(x.device.type, x.device.index)
        return importlib.import_module(BACKENDS["causal_conv1d" if fast else "torch"])
    if name == "causal_conv1d" and reason is not None:
        raise ValueError(f"Convolution backend {name!r} cannot run: {reason} Choose 'torch'.")
    try:
        return importlib.import_module(BACKENDS[name])
    except IMPORT_FAILURES as error:
        raise ValueError(
            f"Convolution backend {name!r} cannot be imported ({type(error).__name__}: {error}). Choose 'torch'."
        ) from error


@functools.cache
def works(device_type: str, index: int | None = None) -> bool:
    """Run ``causal_conv1d`` once on a small input of a device, forward and backward, and compare it with torch.

    Warns:
        RuntimeWarning: Once per device, if it fails or gives other values.
    """
    # A compiled package can fail in as many ways as there are compilers and drivers; each is reported, none is fatal.
    try:
        error = _largest_error(torch.device(device_type, index))
        reason = None if error <= LARGEST_ERROR else f"It gives wrong values, off by {error:.0e} of the largest."
    except Exception as failure:
        reason = f"It raises {type(failure).__name__}: {(str(failure).strip() or '-').splitlines()[0]}."
    if reason is not None:
        warnings.warn(
            f"The causal convolution runs with torch, not with the installed causal-conv1d. {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason is None


@torch.no_grad()
def _largest_error(device: torch.device) -> float:
    """Largest error of the output and of each gradient, relative to the largest value of torch's; infinite for NaN."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 37, 24), (2, 37, 24), (24, LONGEST_KERNEL), (24,))
    grad_y, *tensors = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    found, expected = (
        [module.forward(*tensors, True), *module.backward(grad_y, *tensors, True)]
        for module in (importlib.import_module(BACKENDS[name]) for name in ("causal_conv1d", "torch"))
    )
    errors = [((x - y).abs().max() / y.abs().max()).item() for x, y in zip(found, expected, strict=True)]
    return max(error if error == error else float("inf") for error in errors)
