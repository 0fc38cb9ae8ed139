"""How a network trains on a CPU: with the channels of a voxel side by side in memory, sample by sample.

With channels innermost, oneDNN need not rearrange what its convolutions read and write, and pooling and interpolation
are quicker in torch itself. torch has no norm of each sample for that which is both quick and exact, so it is put
together here of what torch has. Shapes stay, values differ by rounding.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from nnunet_logvmamba.networks.blocks.norms import InstanceNorm2d, InstanceNorm3d

CHANNELS_INNERMOST = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_NORMS = (InstanceNorm2d, InstanceNorm3d)
_ACTIVATIONS = (nn.LeakyReLU, nn.ReLU)


def innermost_to_train(x: Tensor, norm: nn.Module, nonlin: nn.Module) -> Tensor:
    """The image with channels innermost, if a network with this norm and activation is trained with it on a CPU."""
    if _leads_to_backward(x) and norm.training and _are_known(norm, nonlin) and _is_as_we_know_it():
        return x.clone(memory_format=CHANNELS_INNERMOST[x.ndim])  # of one channel, contiguous() would leave the strides
    return x


def normalised(x: Tensor, norm: nn.Module, nonlin: nn.Module, skip: Tensor | None = None) -> Tensor:
    """The activation of the norm of a map, to which ``skip`` is added in between.

    Shape: (batch, channels, *spatial) for all
    """
    if _leads_to_backward(x) and _lies_innermost(x) and _fits(skip) and _are_known(norm, nonlin):
        return _Normalised.apply(x, norm.weight, norm.bias, skip, norm.eps, getattr(nonlin, "negative_slope", 0.0))
    y = norm(x)
    if skip is not None:
        return nonlin(y + skip)
    return nonlin(y.clone() if y is x else y)  # it may work in place, and x may be read again


def pointwise(x: Tensor, conv: nn.Module) -> Tensor:
    """A convolution of one voxel, as the product that it is where channels lie innermost."""
    if _leads_to_backward(x) and _lies_innermost(x) and _is_a_product(conv):
        return F.linear(x.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)
    return conv(x)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of one map with channels innermost.

    Shape: (1, channels, *spatial) -> (channels,), (channels,)
    """
    # torch adds up such a map in single precision, voxel by voxel. So first along all axes but the last one.
    rows = x.movedim(1, -1).flatten(0, -3).flatten(1)  # (rows, width * channels)
    mean, variance = torch.stack(torch.batch_norm_update_stats(rows, None, None, 0.0)).double().view(2, -1, x.shape[1])
    return mean.mean(0).to(x.dtype), (variance.mean(0) + mean.var(0, correction=0)).to(x.dtype)


def is_undisturbed(x: Tensor) -> bool:
    """Whether a map in float32 lies on a CPU, and nothing wants to look on but what a backward pass needs."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    watched = torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack()
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype == torch.float32
    return plain and not watched and forward_ad._current_level < 0 and torch.backends.mkldnn.enabled


class _Normalised(torch.autograd.Function):
    """One sample after the other, so that what an operation leaves is still near when the next one reads it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, skip: Tensor | None, eps: float, slope: float
    ) -> Tensor:
        y, unused, means, scales = torch.empty_like(x), x.new_empty(0), [], []
        for index, (one, into) in enumerate(zip(x.split(1), y.split(1))):
            mean, variance = moments(one)
            torch.ops.aten.native_batch_norm.out(
                one, weight, bias, mean, variance, False, 0.0, eps, out=into, save_mean=unused, save_invstd=unused
            )
            if skip is not None:
                into += skip[index]
            F.leaky_relu_(into, slope)
            means.append(mean)
            scales.append((variance + eps).rsqrt())
        ctx.save_for_backward(x, y, weight, bias, *means, *scales)
        ctx.eps, ctx.slope = eps, slope
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, bias, *parts = ctx.saved_tensors
        *wanted, of_skip = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():  # second derivatives may follow
            behind = grad * torch.where(y > 0, 1.0, ctx.slope).to(grad)
            z = F.group_norm(x, x.shape[1], weight, bias, ctx.eps)
            inputs = [tensor for tensor, is_wanted in zip((x, weight, bias), wanted) if is_wanted]
            found = iter(torch.autograd.grad(z, inputs, behind, create_graph=True) if inputs else ())
            return (
                *(next(found) if is_wanted else None for is_wanted in wanted),
                behind if of_skip else None,
                None,
                None,
            )
        grad = grad.contiguous(memory_format=CHANNELS_INNERMOST[x.ndim])
        grad_x = torch.empty_like(x)
        behind = torch.empty_like(x) if of_skip else grad_x  # the activation
        affine = []
        for index, (one, into) in enumerate(zip(x.split(1), grad_x.split(1))):
            here = slice(index, index + 1)
            torch.ops.aten.leaky_relu_backward.grad_input(grad[here], y[here], ctx.slope, True, grad_input=behind[here])
            mean, scale = parts[index], parts[index + len(x)]
            found, *of_affine = torch.ops.aten.native_batch_norm_backward(
                behind[here], one, weight, None, None, mean, scale, True, ctx.eps, wanted
            )
            if wanted[0]:
                into.copy_(found)
            affine.append(of_affine)
        of_weight, of_bias = (
            sum(of_samples) if is_wanted else None for of_samples, is_wanted in zip(zip(*affine), wanted[1:])
        )
        return grad_x if wanted[0] else None, of_weight, of_bias, behind if of_skip else None, None, None


def _lies_innermost(x: Tensor) -> bool:
    """Whether the channels of a voxel lie side by side, and behind them those of its neighbour."""
    innermost = x.ndim in CHANNELS_INNERMOST and x.is_contiguous(memory_format=CHANNELS_INNERMOST[x.ndim])
    return innermost and x.stride(1) == 1  # which says it of one channel, too


def _fits(skip: Tensor | None) -> bool:
    return skip is None or _lies_innermost(skip)


def _leads_to_backward(x: Tensor) -> bool:
    return is_undisturbed(x) and torch.is_grad_enabled() and x.numel() > 0


def _are_known(norm: nn.Module, nonlin: nn.Module) -> bool:
    """Whether norm and activation are those of nnU-Net, and nothing waits for their calls."""
    known = type(norm) in _NORMS and not norm.track_running_stats and type(nonlin) in _ACTIVATIONS
    return known and not _is_watched(norm) and not _is_watched(nonlin)


def _is_a_product(conv: nn.Module) -> bool:
    return type(conv) in _CONVOLUTIONS and max(conv.stride) == 1 and not _is_watched(conv)


def _is_watched(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module) or _has_any_global_hook()


@cache
def _is_as_we_know_it() -> bool:
    """Whether what is called here is in this torch and gives what its own way gives; else that way is taken."""
    x = torch.linspace(-1, 2, 2 * 4 * 7 * 5 * 6, device="cpu").sin().view(2, 4, 7, 5, 6)
    grad, innermost = x.cos(), x.clone(memory_format=CHANNELS_INNERMOST[x.ndim])
    try:
        with torch.enable_grad():
            weight, bias = (x[0, part, 0, 0, :4].clone().requires_grad_() for part in (0, 1))
            sides = [image.requires_grad_() for image in (x.clone(), innermost)]
            theirs = F.leaky_relu(F.group_norm(sides[0], 4, weight, bias) + x, 0.01)
            ours = _Normalised.apply(sides[1], weight, bias, innermost.detach(), 1e-5, 0.01)
        pairs = [(theirs, ours)]
        pairs += zip(*(torch.autograd.grad(y, (side, weight, bias), grad) for side, y in zip(sides, (theirs, ours))))
        return all(torch.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in pairs)
    except Exception:  # whatever another torch raises: what was taken away, or takes other arguments
        return False
