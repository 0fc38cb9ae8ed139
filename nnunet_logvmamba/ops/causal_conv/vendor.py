"""The CUDA kernel of ``causal-conv1d`` behind our contract, where that package is installed.

It wants (batch, channels, length), which may lie with the channels innermost if their number is a multiple of eight.
Only its public function is called, whose arguments stay the same from version to version; backward runs it once more.
"""

from __future__ import annotations

import torch
from causal_conv1d import causal_conv1d_fn
from torch import Tensor

_PACKED = 8
"""Channels that the kernel reads at once where they lie innermost."""


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Output (batch, length, channels)."""
    return _run(*_native(x, weight, bias), silu).transpose(1, 2)


def backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias; None where it is absent."""
    present = [leaf.detach().requires_grad_() for leaf in _native(x, weight, bias) if leaf is not None]
    with torch.enable_grad():  # its own autograd.Function, which is recorded below autograd as well
        y = _run(present[0], present[1], present[2] if len(present) > 2 else None, silu)
    grad_x, grad_weight, *grad_bias = torch.autograd.grad(y, present, _laid_out(grad_y.to(y.dtype)))
    return grad_x.transpose(1, 2), grad_weight, grad_bias[0] if grad_bias else None


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    return causal_conv1d_fn(x, weight, bias, activation="silu" if silu else None)


def _native(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    return _laid_out(x), weight.float().contiguous(), None if bias is None else bias.float().contiguous()


def _laid_out(x: Tensor) -> Tensor:
    if x.shape[2] % _PACKED:
        return x.transpose(1, 2).contiguous()
    return x.contiguous().transpose(1, 2)
