"""The causal convolution composed of products and sums, for whatever goes beyond values and first gradients.

No convolution of torch's: below a transform of torch.func autocast would round it, and cannot be kept from it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_logvmamba.ops.scan.reference import in_compute_dtype

from .portable import before_silu


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Output (batch, length, channels) in the compute dtype."""
    y = _convolved(*in_compute_dtype(x, weight, bias))
    return F.silu(y) if silu else y


def backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias in the compute dtype; None where it is absent."""
    grad_y, x, weight, bias = in_compute_dtype(grad_y, x, weight, bias)
    if silu:
        grad_y = before_silu(grad_y, _convolved(x, weight, bias))
    kernel = weight.shape[1]
    grad_x = sum(weight[:, k] * _later(grad_y, k - kernel + 1) for k in range(kernel))
    grad_weight = torch.stack([(grad_y * _later(x, kernel - 1 - k)).sum((0, 1)) for k in range(kernel)], dim=1)
    return grad_x, grad_weight, None if bias is None else grad_y.sum((0, 1))


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    kernel = weight.shape[1]
    y = sum(weight[:, k] * _later(x, kernel - 1 - k) for k in range(kernel))
    return y if bias is None else y + bias


def _later(x: Tensor, steps: int) -> Tensor:
    """Move everything so many steps later, or earlier if below 0; zeros come in, and what leaves is gone."""
    return F.pad(x, (0, 0, max(steps, 0), max(-steps, 0))).narrow(1, max(-steps, 0), x.shape[1])
