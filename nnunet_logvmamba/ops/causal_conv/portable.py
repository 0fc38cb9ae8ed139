"""The causal convolution by torch's own, on any device, in the compute dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_logvmamba.ops.scan.reference import in_compute_dtype


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Output (batch, length, channels)."""
    y = _convolved(*in_compute_dtype(x, weight, bias))
    return F.silu(y) if silu else y


def backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias; None where it is absent."""
    grad_y, x, weight, bias = in_compute_dtype(grad_y, x, weight, bias)
    if silu:
        grad_y = before_silu(grad_y, _convolved(x, weight, bias))
    channels, kernel = weight.shape
    grad_y = F.pad(grad_y.transpose(1, 2), (0, kernel - 1))
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad_y,
        x.transpose(1, 2),
        weight.unsqueeze(1),
        None if bias is None else [channels],
        [1],
        [kernel - 1],
        [1],
        False,
        [0],
        channels,
        [True, True, bias is not None],
    )
    return grad_x.transpose(1, 2), grad_weight.squeeze(1), grad_bias if bias is not None else None


def before_silu(grad_y: Tensor, y: Tensor) -> Tensor:
    """Gradient of what SiLU was applied to, ``y``."""
    share = torch.sigmoid(y)
    return grad_y * share * (1 + y * (1 - share))


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    channels, kernel = weight.shape
    y = F.conv1d(x.transpose(1, 2), weight.unsqueeze(1), bias, padding=kernel - 1, groups=channels)
    return y[..., : x.shape[1]].transpose(1, 2)
