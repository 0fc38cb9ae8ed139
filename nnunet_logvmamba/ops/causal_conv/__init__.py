"""The causal convolution of the Mamba block: arguments are checked here, the graph sees one registered op."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from nnunet_logvmamba.ops.arguments import check_tensors

from .backends import check_name
from .library import causal_conv1d_op

__all__ = ["FLOPS", "causal_conv1d"]


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    order: Tensor | None = None,
    silu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Convolve each channel along the length with its own kernel, looking back only.

    With zeros before the first step, for every channel::

        y[t] = bias + sum over j of weight[j] * x[t - (kernel - 1) + j]

    As in :func:`nnunet_logvmamba.ops.selective_scan` rows stay where they lie: with ``order`` the step t is the row
    ``order[t]``, of ``x`` and of the output.

    Args:
        x: Input, (batch, length, channels); half precision is welcome, sums are kept in float32 (float64 if any
            argument is float64).
        weight: Kernels, (channels, kernel), kernel at least 1.
        bias: (channels,); absent means zero.
        order: Row that comes t-th, (length,), int64, a permutation; absent means as they lie; not checked on a GPU.
        silu: Whether the output goes through SiLU.
        backend: ``auto``, ``torch`` or ``causal_conv1d``, the CUDA kernel of that package, which "auto" takes where it
            is installed, works and fits.

    Returns:
        Output, shape and dtype of ``x``, contiguous.

    Raises:
        ValueError: If shapes or devices disagree, an argument is no tensor, a dtype is not a real floating-point one,
            ``order`` is not a permutation, or the backend is unknown or cannot run on the device.
    """
    tensors = {"x": x, "weight": weight, "bias": bias}
    check_tensors(tensors | {"order": order}, needed=("x", "weight"))
    shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items() if t is not None)
    if x.dim() != 3 or weight.dim() != 2 or (bias is not None and bias.dim() != 1):
        raise ValueError(f"x is (batch, length, channels), weight (channels, kernel), bias (channels,); got {shapes}.")
    if weight.shape[0] != x.shape[2] or (bias is not None and bias.shape[0] != x.shape[2]) or weight.shape[1] < 1:
        raise ValueError(f"x, weight and bias must have as many channels, and a kernel of at least 1; got {shapes}.")
    if x.shape[1] < 1 or x.shape[2] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; the causal convolution needs at least one step and channel.")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}; the causal convolution takes real numbers only.")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} but x is on {x.device}; move them to one device.")
    if order is not None and (order.dtype != torch.int64 or order.shape != x.shape[1:2] or order.device != x.device):
        raise ValueError(
            f"order is {order.dtype} of shape {tuple(order.shape)} on {order.device}; one int64 for each of "
            f"{x.shape[1]} rows on {x.device} is needed."
        )
    check_name(backend)
    return causal_conv1d_op(x, weight, bias, order, silu, backend)


def _flops(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], *_: object, **__: object) -> int:
    return 2 * prod(x_shape) * weight_shape[1]


FLOPS = {torch.ops.nnunet_logvmamba.causal_conv1d: _flops}
"""For ``torch.utils.flop_counter``, which knows torch's own ops by itself."""
