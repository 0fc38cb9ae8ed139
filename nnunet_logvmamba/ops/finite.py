"""The op through which a network's logits pass on their way out, so that NaN never becomes a mask.

An op, since a condition on values would break the graph of ``torch.compile``: its body runs on real tensors and is not
traced. It hands out a copy, because an op must not return its argument.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from nnunet_logvmamba.errors import NotFiniteError

_LIBRARY = torch.library.Library("nnunet_logvmamba", "FRAGMENT")

Listener = Callable[[Tensor, Tensor], bool]
LISTENERS: list[Listener] = []
"""Called with logits and image, both (batch, channels, *spatial), where logits are not finite: one who knows more, such
as the file, raises an error of its own; one that returns True lets them pass, since somebody else judges them."""


def all_finite(x: Tensor) -> bool:
    """Whether a tensor of real numbers holds neither NaN nor infinity; mostly one pass and one wait for the device."""
    # NaN and infinity stay in a sum, and opposite ones make NaN; of finite numbers it may overflow, which is rare.
    total = x.sum(dtype=torch.promote_types(x.dtype, torch.float32))
    return bool(total.isfinite()) or bool(x.isfinite().all())


def count_not_finite(x: Tensor) -> int:
    """Give the number of entries that are NaN or infinite."""
    return x.numel() - int(torch.isfinite(x).sum())


def in_words(logits: Tensor, image: Tensor) -> str:
    """Say in one sentence what is not finite: the image, by channel, or else only the logits."""
    bad = [count_not_finite(image[:, channel]) for channel in range(image.shape[1])]
    if any(bad):
        where = ", ".join(f"{number} in channel {channel}" for channel, number in enumerate(bad) if number)
        return (
            f"The image holds voxels that are NaN or infinite ({where}, of {image[:, 0].numel()} per channel), so "
            "there is no mask: repair or leave out the image."
        )
    return (
        f"{count_not_finite(logits)} of {logits.numel()} logits are NaN or infinite although the image is finite, so "
        "there is no mask: numbers overflow in the network, so compute in single precision, without autocast, or load "
        "other weights."
    )


def _body(logits: Tensor, image: Tensor) -> Tensor:
    if logits.is_cuda and torch.cuda.is_current_stream_capturing():
        return _copied(logits, image)  # a recording of kernels has no values to look at
    if not all_finite(logits):
        if any(listener(logits, image) for listener in LISTENERS):
            return _copied(logits, image)
        raise NotFiniteError(in_words(logits, image))
    return _copied(logits, image)


def _copied(logits: Tensor, image: Tensor) -> Tensor:
    return logits.clone(memory_format=torch.contiguous_format)


def _fake(logits: Tensor, image: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _below(keyset, logits: Tensor, image: Tensor) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return _OP.redispatch(keyset & torch._C._after_autograd_keyset, logits, image)


class _Identity(_SingleLevelFunction):
    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def forward(keyset, logits, image):
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):  # for further levels of torch.func
            return _below(keyset, logits, image)

    @staticmethod
    def backward(ctx, grad):
        return None, grad, None


def _autograd(keyset, logits: Tensor, image: Tensor) -> Tensor:
    if forward_ad.unpack_dual(logits, level=0).tangent is not None:
        return _copied(logits, image)
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return _below(keyset, logits, image)
    if not torch._C._are_functorch_transforms_active():
        return _Identity.apply(keyset, logits, image)
    # As in scan/library.py: a transform of torch.func calls this for each of its levels.
    with enable_single_level_autograd_function():
        return _Identity.apply(keyset, logits, image)


def _mapped(info, in_dims, logits: Tensor, image: Tensor) -> tuple[Tensor, int | None]:
    if in_dims[1] is not None:
        image = image.movedim(in_dims[1], 0).flatten(0, 1)
    return _OP(logits, image), in_dims[0]


# The second tag, which older torch lacks, keeps the op out of what compiled code records as a CUDA graph.
_TAGS = [getattr(torch.Tag, name) for name in ("pt2_compliant_tag", "cudagraph_unsafe") if hasattr(torch.Tag, name)]
_LIBRARY.define("finite(Tensor logits, Tensor image) -> Tensor", tags=_TAGS)
_OP = torch.ops.nnunet_logvmamba.finite.default
_LIBRARY.impl("finite", torch._disable_dynamo(_body), "CompositeExplicitAutograd")
_LIBRARY.impl("finite", _autograd, "Autograd", with_keyset=True)
torch.library.register_fake("nnunet_logvmamba::finite", _fake, lib=_LIBRARY)
torch.library.register_vmap("nnunet_logvmamba::finite", _mapped, lib=_LIBRARY)
register_decomposition(_OP)(_copied)


def finite(logits: Tensor, image: Tensor) -> Tensor:
    """Give logits as they are, or end whoever asked for them.

    Args:
        logits: Floating point, any shape.
        image: What the network was given, (batch, channels, *spatial); only looked at if logits are not finite.

    Returns:
        A copy, contiguous. Its derivatives are those of the identity.

    Raises:
        NotFiniteError: If a logit is NaN or infinite; or what one of ``LISTENERS`` raises.
    """
    return _OP(logits, image)
