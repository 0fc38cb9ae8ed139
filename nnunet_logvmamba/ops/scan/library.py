"""Everything torch.library needs: schema, shapes without data (fake), derivatives, and the call of the chosen backend.

One schema serves all backends. The op bodies run on real tensors, below autograd, and are never traced; they keep the
contract of the op (dtypes, contiguous outputs, no aliasing), so that one fake tells the truth for every backend.

First gradients are the second op's. All other derivatives come from ``composed.py``: where an argument has a tangent
(forward mode) the ops are replaced by that composition, and the second op's own gradient is a gradient of it. It is
also what the ops are to be decomposed into, for ONNX.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._decomp import register_decomposition
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad

from nnunet_logvmamba.ops import backends

from . import composed, rows

_NAMESPACE = "nnunet_logvmamba"
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")
_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, Tensor? initial_state, "
    "Tensor? context, Tensor? order, bool delta_softplus, str backend"
)
_NUM_TENSORS = 9  # without the order, which has no gradient
_ORDER = -3  # its place in the arguments of either op


def _register(
    name: str, signature: str, *, body: Callable, fake: Callable, composition: Callable, derivative: Callable
) -> torch._ops.OpOverload:
    """Register an op.

    Not by ``torch.library.custom_op``, whose ops drop tangents without a word.

    Args:
        name: Of the op in our namespace.
        signature: Arguments and returns, in the language of schemas.
        body: Computes values, on real tensors below autograd.
        fake: Makes empty outputs of the right shape, dtype and layout.
        composition: Computes the same of torch's own operations, for forward mode and decompositions.
        derivative: Gets a context with ``saved_tensors``, ``delta_softplus`` and ``backend``, and the gradients of the
            outputs; gives those of all arguments.
    """
    qualified = f"{_NAMESPACE}::{name}"
    _LIBRARY.define(name + signature, tags=(torch.Tag.pt2_compliant_tag,))
    op = getattr(getattr(torch.ops, _NAMESPACE), name).default
    _LIBRARY.impl(name, torch._disable_dynamo(body), "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)

    def below(keyset, *arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    class Derivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx, keyset, *arguments):
            *tensors, ctx.delta_softplus, ctx.backend = arguments
            ctx.save_for_backward(*tensors)
            # Off in here; but below may be further levels of torch.func, which differentiate too.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return below(keyset, *arguments)

        @staticmethod
        def backward(ctx, *grads):
            return None, *derivative(ctx, *grads)

    def autograd(keyset, *arguments):
        if any(_has_tangent(x) for x in arguments):
            rows.assert_order(arguments[_ORDER])
            return composition(*arguments)
        if not torch.is_grad_enabled() or not torch._C._any_requires_grad(*arguments):
            return below(keyset, *arguments)
        if not torch._C._are_functorch_transforms_active():
            return Derivative.apply(keyset, *arguments)
        # A transform of torch.func calls this for each of its levels, which ``Function.apply`` does not know.
        with enable_single_level_autograd_function():
            return super(torch.autograd.Function, Derivative).apply(keyset, *arguments)

    def mapped(info, in_dims, *arguments):
        outputs = [
            op(*(x if dim is None else x.select(dim, index) for x, dim in zip(arguments, in_dims)))
            for index in range(info.batch_size)
        ]
        return tuple(map(torch.stack, zip(*outputs))), (0,) * len(outputs[0])

    def decomposition(*arguments):
        if any(
            isinstance(size, torch.SymInt) for x in arguments if isinstance(x, torch.Tensor) for size in x.shape[1:]
        ):
            raise ValueError(
                "The selective scan is decomposed for one length: give the image a fixed size; only the batch may be "
                "dynamic."
            )
        return composition(*arguments)

    _LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)
    torch.library.register_vmap(qualified, mapped, lib=_LIBRARY)
    register_decomposition(op)(decomposition)
    register_decomposition(op, type="meta")(
        fake
    )  # else a decomposition would stand in for it where lengths are symbols
    return op


def _has_tangent(argument: object) -> bool:
    # Torch has no level but 0. Left to itself, forward_ad does not know of one that compiled code has entered.
    return isinstance(argument, torch.Tensor) and forward_ad.unpack_dual(argument, level=0).tangent is not None


def _scan(u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus, backend):
    """Output (batch, length, channels) and last state (batch, channels, state); arguments are not checked here."""
    rows.check_order(order, delta.shape[1])
    # Autocast stays active inside the body of an op and would run matrix products in half precision.
    with torch.no_grad(), torch.autocast(u.device.type, enabled=False):
        compute = backends.choose(backend, u.device)
        y, last_state = rows.forward(
            compute, u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus
        )
        return y.to(u.dtype).contiguous(), last_state.contiguous()


def _fake_scan(u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus, backend):
    batch, _, channels = u.shape
    dtype = backends.compute_dtype(u, delta, A, B, C, D, delta_bias, initial_state, context)
    return u.new_empty(u.shape), u.new_empty((batch, channels, A.shape[1]), dtype=dtype)


def _composed_scan(u, *others):
    y, last_state = rows.forward(composed, u, *others[:-1])
    return y.to(u.dtype).contiguous(), last_state.contiguous()


def _scan_derivative(ctx, grad_y, grad_last_state):
    tensors = ctx.saved_tensors  # once: checkpointing recomputes them for each look
    gradients = selective_scan_backward_op(grad_y, grad_last_state, *tensors, ctx.delta_softplus, ctx.backend)
    present = (None if x is None else gradient for x, gradient in zip(tensors, gradients))
    return (*present, None, None, None)


def _gradients(grad_y, grad_last_state, *arguments):
    """Gradients of the tensors but for ``order``; an empty one where the argument is absent."""
    *inputs, order, delta_softplus, backend = arguments
    u = inputs[0]
    with torch.no_grad(), torch.autocast(u.device.type, enabled=False):
        compute = backends.choose(backend, u.device)
        gradients = rows.backward(compute, grad_y, grad_last_state, *inputs, order, delta_softplus)
        return tuple(
            u.new_empty(0) if x is None else gradient.to(x.dtype).contiguous() for x, gradient in zip(inputs, gradients)
        )


def _fake_gradients(grad_y, grad_last_state, u, *others):
    return tuple(u.new_empty(0) if x is None else x.new_empty(x.shape) for x in (u, *others[:_ORDER]))


def _composed_gradients(grad_y, grad_last_state, u, *others):
    gradients = rows.backward(composed, grad_y, grad_last_state, u, *others[:-1])
    return tuple(u.new_empty(0) if x is None else gradient.to(x.dtype) for x, gradient in zip((u, *others), gradients))


def _gradients_derivative(ctx, *grads):
    wanted = [index for index, needed in enumerate(ctx.needs_input_grad[1:-2]) if needed]
    with torch.enable_grad():
        # Another name for each, so that the walk back ends here; what they depend on stays reachable for a next one.
        tensors = [None if x is None else x.view_as(x) for x in ctx.saved_tensors]
        gradients = _composed_gradients(*tensors, ctx.delta_softplus, ctx.backend)
        pairs = [(gradient, grad) for gradient, grad in zip(gradients, grads) if gradient.requires_grad]
    found = torch.autograd.grad(
        [gradient for gradient, _ in pairs],
        [tensors[index] for index in wanted],
        [grad for _, grad in pairs],
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
    )
    by_index = dict(zip(wanted, found))
    return *(by_index.get(index) for index in range(len(tensors))), None, None


selective_scan_op = _register(
    "selective_scan",
    f"({_ARGUMENTS}) -> (Tensor, Tensor)",
    body=_scan,
    fake=_fake_scan,
    composition=_composed_scan,
    derivative=_scan_derivative,
)
selective_scan_backward_op = _register(
    "selective_scan_backward",
    f"(Tensor grad_y, Tensor grad_last_state, {_ARGUMENTS}) -> ({', '.join(['Tensor'] * _NUM_TENSORS)})",
    body=_gradients,
    fake=_fake_gradients,
    composition=_composed_gradients,
    derivative=_gradients_derivative,
)
