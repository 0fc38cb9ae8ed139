"""Everything torch.library needs of an op: schema, shapes without data (fake), derivatives, vmap, decomposition.

Op bodies run on real tensors, below autograd, and are never traced; they keep the contract of the op (dtypes,
contiguous outputs, no aliasing), so that one fake tells the truth for every backend. An op takes tensors, or None, and
after them ``words``: flags and the name of a backend.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

_NAMESPACE = "nnunet_logvmamba"
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")


def register(
    name: str,
    signature: str,
    *,
    words: int,
    body: Callable,
    fake: Callable,
    composition: Callable,
    derivative: Callable,
    assertion: Callable | None = None,
    decomposition: Callable | None = None,
) -> torch._ops.OpOverload:
    """Register an op.

    Not by ``torch.library.custom_op``, whose ops drop tangents without a word.

    Args:
        name: Of the op in our namespace.
        signature: Arguments and returns, in the language of schemas.
        words: Number of arguments that are no tensors; they are the last ones.
        body: Computes values, on real tensors below autograd.
        fake: Makes empty outputs of the right shape, dtype and layout.
        composition: Computes the same of torch's own operations, for forward mode and decompositions.
        derivative: Gets a context with ``saved_tensors`` and ``words``, and the gradients of the outputs; gives those
            of all arguments.
        assertion: Checks the values of arguments in forward mode, by an assertion that can be recorded.
        decomposition: Stands in for ``composition`` where the op is decomposed.
    """
    qualified = f"{_NAMESPACE}::{name}"
    _LIBRARY.define(name + signature, tags=(torch.Tag.pt2_compliant_tag,))
    op = getattr(getattr(torch.ops, _NAMESPACE), name).default
    _LIBRARY.impl(name, torch._disable_dynamo(body), "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)

    def below(keyset, *arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    class Derivative(_SingleLevelFunction):
        @staticmethod
        def forward(keyset, *arguments):
            # Off in here; but below may be further levels of torch.func, which differentiate too.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return below(keyset, *arguments)

        @staticmethod
        def setup_context(ctx, inputs, output):
            _, *tensors = inputs[:-words]
            ctx.words = inputs[-words:]
            ctx.save_for_backward(*tensors)

        @staticmethod
        def backward(ctx, *grads):
            return None, *derivative(ctx, *grads)

    def autograd(keyset, *arguments):
        if any(_has_tangent(x) for x in arguments):
            if assertion is not None:
                assertion(*arguments)
            return composition(*arguments)
        if not torch.is_grad_enabled() or not any(isinstance(x, Tensor) and x.requires_grad for x in arguments):
            return below(keyset, *arguments)
        if not torch._C._are_functorch_transforms_active():
            return Derivative.apply(keyset, *arguments)
        # A transform of torch.func calls this for each of its levels, as it does with its own functions of one level.
        with enable_single_level_autograd_function():
            return Derivative.apply(keyset, *arguments)

    def mapped(info, in_dims, *arguments):
        outputs = [
            op(*(x if dim is None else x.select(dim, index) for x, dim in zip(arguments, in_dims)))
            for index in range(info.batch_size)
        ]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs), 0
        return tuple(map(torch.stack, zip(*outputs))), (0,) * len(outputs[0])

    _LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)
    torch.library.register_vmap(qualified, mapped, lib=_LIBRARY)
    register_decomposition(op)(decomposition or composition)
    register_decomposition(op, type="meta")(
        fake
    )  # else a decomposition would stand in for it where lengths are symbols
    return op


def derivative_of(composition: Callable) -> Callable:
    """Give the derivative of an op, for :func:`register`, that is torch's own of its composition."""

    def derivative(ctx, *grads):
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad[1 : -len(ctx.words)]) if needed]
        with torch.enable_grad():
            # Another name for each, so that the walk back ends here; what they depend on stays within reach.
            tensors = [None if x is None else x.view_as(x) for x in ctx.saved_tensors]
            outputs = composition(*tensors, *ctx.words)
            pairs = [(output, grad) for output, grad in zip(outputs, grads) if output.requires_grad]
        found = torch.autograd.grad(
            [output for output, _ in pairs],
            [tensors[index] for index in wanted],
            [grad for _, grad in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
        by_index = dict(zip(wanted, found))
        return *(by_index.get(index) for index in range(len(tensors))), *(None for _ in ctx.words)

    return derivative


def _has_tangent(argument: object) -> bool:
    # Torch has no level but 0. Left to itself, forward_ad does not know of one that compiled code has entered.
    return isinstance(argument, Tensor) and forward_ad.unpack_dual(argument, level=0).tangent is not None
