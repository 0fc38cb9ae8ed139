"""How a network predicts one patch on a CPU: with oneDNN, and with the channels of a voxel side by side in memory.

torch 2.13 sends a convolution in float32 to oneDNN only if the batch is above 1, or it is grouped, or batch times
channels times the first two spatial axes are above 20,480, or the last two sides of its kernel are above 3 (with one
thread, none of 1 x 1); all others take loops of its own, up to twelve times slower. nnU-Net predicts with a batch of
1. ``tests/networks/test_one_patch.py`` holds that rule and fails once torch has another one.

With channels innermost, oneDNN need not rearrange what it reads and writes, and pooling, interpolation and norms are
three to twelve times faster in torch itself; shapes stay, values differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnunet_logvmamba.networks.blocks.innermost import (
    CHANNELS_INNERMOST,
    is_undisturbed,
    norm_into,
    quick_training,
    trains_here,
)

Sides = int | Sequence[int]


def quick(forward: Callable) -> Callable:
    """Let a ``forward`` take the fast way where it predicts one patch on a CPU, and nothing else wants to look on."""

    @wraps(forward)
    def predicting(self: nn.Module, x: Tensor, *others: Any, **options: Any) -> Any:
        if trains_here():  # in the pass of another network, whose layers say nothing of these
            with quick_training(wanted=False):
                return predicting(self, x, *others, **options)
        if not predicts_one_patch(self, x):
            return forward(self, x, *others, **options)
        with _FastWay():
            return forward(self, x, *others, **options)

    return predicting


def predicts_one_patch(network: nn.Module, x: Tensor) -> bool:
    """Whether a network in evaluation mode is given one patch in float32 on a CPU, with no gradients or graph of it."""
    if network.training or torch.is_grad_enabled() or not is_undisturbed(x) or x.shape[:1] != (1,):
        return False
    return _is_as_we_know_it()


class _FastWay(TorchFunctionMode):
    """While it is on, convolutions and norms per channel go another way to the same values."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return _WAYS.get(function, function)(*args, **(kwargs or {}))


def _convolution(own: Callable) -> Callable:
    def convolve(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Sides = 1,
        padding: Sides | str = 0,
        dilation: Sides = 1,
        groups: int = 1,
    ) -> Tensor:
        if not _fits(input, weight) or input.ndim != weight.ndim or isinstance(padding, str):
            return own(input, weight, bias, stride, padding, dilation, groups)
        x = input.contiguous(memory_format=CHANNELS_INNERMOST[input.ndim])
        steps = ([side] * (x.ndim - 2) if isinstance(side, int) else side for side in (padding, stride, dilation))
        # Weights that are not dense it would read as if they were.
        bias = None if bias is None else bias.contiguous()
        return torch.mkldnn_convolution(x, weight.contiguous(), bias, *steps, groups)

    return convolve


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not _is_one_map(input) or not use_input_stats or running_mean is not None:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return _norm(input, weight, bias, eps)


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    if not _is_one_map(input) or num_groups != input.shape[1]:
        return F.group_norm(input, num_groups, weight, bias, eps)
    return _norm(input, weight, bias, eps)


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise each channel of one map by its own mean and variance."""
    x = x.contiguous(memory_format=CHANNELS_INNERMOST[x.ndim])
    y = torch.empty_like(x)
    norm_into(y, x, weight, bias, eps)
    return y


def _is_one_map(x: Tensor) -> bool:
    return _fits(x, x) and x.ndim in CHANNELS_INNERMOST and x.shape[0] == 1 and x[0, 0].numel() > 1


def _fits(x: Tensor, weight: Tensor) -> bool:
    return x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0


_WAYS: dict[Any, Callable] = {own: _convolution(own) for own in (F.conv2d, F.conv3d)}
_WAYS |= {F.instance_norm: _instance_norm, F.group_norm: _group_norm}


@cache
def _is_as_we_know_it() -> bool:
    """Whether what is called here is in this torch, and gives what torch's own way gives; else that way is taken."""
    x = torch.linspace(-1, 2, 4 * 7 * 5 * 6, device="cpu").sin().view(1, 4, 7, 5, 6)
    weight = torch.linspace(-2, 2, 8 * 4 * 27, device="cpu").cos().view(8, 4, 3, 3, 3)
    calls: list[tuple[Any, tuple]] = [(F.conv3d, (x, weight, None, 2, 1)), (F.instance_norm, (x,))]
    calls.append((F.conv2d, (x[:, :, 0], weight[:, :, 0], weight[:, 0, 0, 0, 0])))
    try:
        return all(torch.allclose(_WAYS[own](*given), own(*given), rtol=1e-4, atol=1e-4) for own, given in calls)
    except Exception:  # whatever a later torch raises: what was taken away, or takes other arguments
        return False
