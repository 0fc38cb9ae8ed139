"""How a network trains on a CPU: with the channels of a voxel side by side in memory, sample by sample.

With channels innermost, oneDNN need not rearrange what its convolutions read and write, and pooling and interpolation
are quicker in torch itself. torch has no norm of each sample for that which is both quick and exact, so it is put
together here of what torch has. Shapes stay, values differ by rounding.

A network asks ``trains_quickly`` once, at the beginning of its forward pass, and calls its layers in
``quick_training``; what is computed again in the backward pass goes the same way, whatever has changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from nnunet_logvmamba.networks.blocks.norms import InstanceNorm2d, InstanceNorm3d

CHANNELS_INNERMOST = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_NORMS = (InstanceNorm2d, InstanceNorm3d)
_QUICK = ContextVar("quick", default=False)


def trains_quickly(x: Tensor) -> bool:
    """Whether an image in float32 on a CPU is followed by a backward pass, and nothing else wants to look on."""
    return is_undisturbed(x) and torch.is_grad_enabled() and x.numel() > 0 and _is_as_we_know_it()


@contextmanager
def quick_training(wanted: bool = True) -> Iterator[None]:
    """Let the layers called inside have channels innermost, or the common layout."""
    token = _QUICK.set(wanted)
    try:
        yield
    finally:
        _QUICK.reset(token)


def trains_here() -> bool:
    """Whether this is within ``quick_training``."""
    return not torch.compiler.is_compiling() and _QUICK.get()


def innermost(x: Tensor) -> Tensor:
    """The same map with its channels innermost."""
    return x.clone(memory_format=CHANNELS_INNERMOST[x.ndim])  # of one channel, contiguous() would leave the strides


def normalised(x: Tensor, norm: nn.Module, nonlin: nn.Module, skip: Tensor | None = None) -> Tensor:
    """The activation of the norm of a map, to which ``skip`` is added in between.

    Shape: (batch, channels, *spatial) for all
    """
    if trains_here() and x.dtype == torch.float32:  # not in an autocast that begins inside
        return _Normalised.apply(x, norm.weight, norm.bias, skip, norm.eps, nonlin.negative_slope)
    y = norm(x)
    if skip is not None:
        return nonlin(y + skip)
    return nonlin(y.clone() if y is x else y)  # it may work in place, and x may be read again


def pointwise(x: Tensor, conv: nn.Module) -> Tensor:
    """A convolution, as a product where it is one and channels lie innermost."""
    if trains_here() and _is_a_product(conv):
        return F.linear(_as_is_or_innermost(x).movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)
    return conv(x)


def are_known(norm: nn.Module, nonlin: nn.Module) -> bool:
    """Whether norm and activation are those of nnU-Net, and nothing waits for their calls."""
    known = type(norm) in _NORMS and not norm.track_running_stats
    known = known and type(nonlin) is nn.LeakyReLU and nonlin.negative_slope >= 0
    return known and not is_watched(norm) and not is_watched(nonlin)


def is_watched(module: nn.Module) -> bool:
    """Whether something waits for the calls of a module, or they were replaced."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module) or nn.modules.module._has_any_global_hook()


def norm_into(y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Write the norm of each channel of each sample into other maps, both with channels innermost.

    Shape: (batch, channels, *spatial) for ``y`` and ``x``
    Returns: what was taken off, and by what it was multiplied, before ``weight`` and ``bias``, (batch, channels) each.
    """
    # A map may be the same nearly everywhere, as the air around a body is. Less its usual value it has no rounding.
    usual = _usual(x)
    torch.sub(_rows(x), _per_row(usual, x), out=_rows(y))
    mean, variance = moments(y)
    scale = (variance + eps).rsqrt()
    factor = scale if weight is None else weight * scale
    _scaled(y, factor, -mean * factor if bias is None else bias - mean * factor, y)
    return mean + usual, scale


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of each sample, of maps with channels innermost.

    Shape: (batch, channels, *spatial) -> (batch, channels), (batch, channels)
    """
    # torch adds up such a map in single precision, voxel by voxel. So first along all axes but the last one.
    found = [part for rows in _rows(x) for part in torch.batch_norm_update_stats(rows, None, None, 0.0)]
    mean, variance = torch.stack(found).double().view(len(x), 2, -1, x.shape[1]).unbind(1)
    return mean.mean(1).to(x.dtype), (variance.mean(1) + mean.var(1, correction=0)).to(x.dtype)


def is_undisturbed(x: Tensor) -> bool:
    """Whether a map in float32 lies on a CPU, and nothing wants to look on but what a backward pass needs."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    watched = torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack()
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype == torch.float32
    return plain and not watched and forward_ad._current_level < 0 and torch.backends.mkldnn.enabled


class _Normalised(torch.autograd.Function):
    """Part by part of the batch, so that what an operation leaves is still near when the next one reads it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, skip: Tensor | None, eps: float, slope: float
    ) -> Tensor:
        given, x = x, _as_is_or_innermost(x)
        skip = None if skip is None else _as_is_or_innermost(skip)
        y, kept = torch.empty_like(x), list[Tensor]()
        for here in _parts(x):
            kept += norm_into(y[here], x[here], weight, bias, eps)
            if skip is not None:
                y[here] += skip[here]
            F.leaky_relu_(y[here], slope)
        ctx.save_for_backward(given, y, weight, bias, *kept)  # a copy would have no graph behind it
        ctx.eps, ctx.slope = eps, slope
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, bias, *kept = ctx.saved_tensors
        if torch.is_grad_enabled() or _is_batched(grad):
            all_four = _gradients(grad, x, y, weight, ctx.eps, ctx.slope)
            return *(one if is_wanted else None for one, is_wanted in zip(all_four, ctx.needs_input_grad)), None, None
        of_x, of_weight, of_bias, of_skip, *_ = ctx.needs_input_grad
        x, y, grad = (_as_is_or_innermost(each) for each in (x, y, grad))
        grad_x, sums, width = torch.empty_like(x), [], x.shape[-1]
        behind = torch.empty_like(x) if of_skip else grad_x  # the activation
        for here, mean, scale in zip(_parts(x), kept[::2], kept[1::2]):
            inner = behind[here]
            torch.ops.aten.leaky_relu_backward.grad_input(grad[here], y[here], ctx.slope, True, grad_input=inner)
            moments_of_rows = zip(mean.repeat(1, width), scale.repeat(1, width))
            found = [
                torch.ops.aten.native_batch_norm_backward(
                    rows, of, None, None, None, *moments_of_one, True, ctx.eps, [False, True, True]
                )[1:]
                for rows, of, moments_of_one in zip(_rows(inner), _rows(x[here]), moments_of_rows)
            ]
            both = torch.stack([part for of_sample in found for part in of_sample]).double()
            both = both.view(len(inner), 2, width, -1).sum(2)
            sums.append(both.sum(0))
            if of_x:
                by_weight, by_bias = (both / x[0, 0].numel()).to(x.dtype).unbind(1)
                factor = scale if weight is None else weight * scale
                slope = -factor * scale * by_weight
                _scaled(inner, factor, -factor * by_bias - slope * mean, grad_x[here])
                _rows(grad_x[here]).addcmul_(_rows(x[here]), _per_row(slope, x))
        of_affine = (one.to(x.dtype) if is_wanted else None for one, is_wanted in zip(sum(sums), (of_weight, of_bias)))
        return grad_x if of_x else None, *of_affine, behind if of_skip else None, None, None


def _gradients(
    grad: Tensor, x: Tensor, y: Tensor, weight: Tensor | None, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of map, weight, bias and skip in operations that can be differentiated and mapped themselves."""
    spatial = tuple(range(2, x.ndim))
    behind = grad * torch.where(y > 0, 1.0, slope).to(x.dtype)
    centred = x - x.mean(spatial, keepdim=True)
    scale = (centred.square().mean(spatial, keepdim=True) + eps).rsqrt()
    z = centred * scale
    inner = behind if weight is None else behind * weight.view(-1, *(1 for _ in spatial))
    inner = inner - inner.mean(spatial, keepdim=True) - z * (inner * z).mean(spatial, keepdim=True)
    return inner * scale, (behind * z).sum((0, *spatial)), behind.sum((0, *spatial)), behind


def _parts(x: Tensor) -> list[slice]:
    """A batch in parts of a few MiB, of a sample at least."""
    size = max(1, 2**20 // x[0].numel())
    return [slice(begin, begin + size) for begin in range(0, len(x), size)]


def _rows(x: Tensor) -> Tensor:
    """Maps with channels innermost as (batch, rows, width * channels), the same memory."""
    return x.movedim(1, -1).view(len(x), -1, x.shape[-1] * x.shape[1])


def _per_row(of_channels: Tensor, x: Tensor) -> Tensor:
    """What stands once for each channel, (batch, channels), beside ``_rows`` of maps."""
    return of_channels.repeat(1, x.shape[-1])[:, None]


def _usual(x: Tensor) -> Tensor:
    """The middle one of a few voxels of each channel, (batch, channels)."""
    voxels = x.movedim(1, -1).view(len(x), -1, x.shape[1])
    step = max(1, voxels.shape[1] // 5)
    return voxels[:, step // 2 :: step].median(1).values


def _scaled(x: Tensor, factor: Tensor, shift: Tensor, into: Tensor) -> None:
    """Write ``factor * x + shift``, both (batch, channels), into other maps or into the same."""
    torch.addcmul(_per_row(shift, x), _rows(x), _per_row(factor, x), out=_rows(into))


def _as_is_or_innermost(x: Tensor) -> Tensor:
    """A map whose memory has its channels innermost, which those of a network have but those of a hook may not."""
    return x.contiguous(memory_format=CHANNELS_INNERMOST[x.ndim])


def _is_a_product(conv: nn.Module) -> bool:
    """Whether a convolution is one of single voxels."""
    if type(conv) not in _CONVOLUTIONS or conv.groups > 1 or conv.weight[0, 0].numel() > 1:
        return False
    return set(conv.stride) == {1} and set(conv.padding) == {0}


def _is_batched(grad: Tensor) -> bool:
    """Whether a backward pass is asked for many gradients at once."""
    of_torch = torch._C._functorch
    return of_torch.is_batchedtensor(grad) or of_torch.is_legacy_batchedtensor(grad)


@cache
def _is_as_we_know_it() -> bool:
    """Whether what is called here is in this torch and gives what its own way gives; else that way is taken."""
    x = torch.linspace(-1, 2, 2 * 4 * 7 * 5 * 6, device="cpu").sin().view(2, 4, 7, 5, 6)
    try:
        if is_watched(nn.Identity()):
            return False
        with torch.enable_grad(), saved_tensors_hooks(lambda kept: kept, lambda kept: kept):
            weight, bias = (x[0, part, 0, 0, :4].clone().requires_grad_() for part in (0, 1))
            sides = [image.requires_grad_() for image in (x.clone(), innermost(x))]
            theirs = F.leaky_relu(F.group_norm(sides[0], 4, weight, bias) + x, 0.01)
            ours = _Normalised.apply(sides[1], weight, bias, innermost(x), 1e-5, 0.01)
            grads = (torch.autograd.grad(y, (side, weight, bias), x.cos()) for side, y in zip(sides, (theirs, ours)))
            pairs = [(theirs, ours), *zip(*grads)]
        return all(torch.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in pairs)
    except Exception:  # whatever another torch raises: what was taken away, or takes other arguments
        return False
