"""Everything torch.library needs: schema, shapes without data (fake), gradients, and the call of the chosen backend.

One schema serves all backends. The op bodies run on real tensors, below autograd, and are never traced; they keep the
contract of the op (dtypes, contiguous outputs, no aliasing), so that one fake tells the truth for every backend.
"""

from __future__ import annotations

import torch

from nnunet_logvmamba.ops import backends

from . import rows

_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, Tensor? initial_state, "
    "Tensor? context, Tensor? order, bool delta_softplus, str backend"
)


@torch.library.custom_op(
    "nnunet_logvmamba::selective_scan", mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)"
)
def selective_scan_op(u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus, backend):
    """Output (batch, length, channels) and last state (batch, channels, state); arguments are not checked here."""
    # Autocast stays active inside the body of an op and would run matrix products in half precision.
    with torch.no_grad(), torch.autocast(u.device.type, enabled=False):
        compute = backends.choose(backend, u.device)
        y, last_state = rows.forward(
            compute, u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus
        )
        return y.to(u.dtype).contiguous(), last_state.contiguous()


@selective_scan_op.register_fake
def _(u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus, backend):
    batch, _, channels = u.shape
    dtype = backends.compute_dtype(u, delta, A, B, C, D, delta_bias, initial_state, context)
    return u.new_empty(u.shape), u.new_empty((batch, channels, A.shape[1]), dtype=dtype)


@torch.library.custom_op(
    "nnunet_logvmamba::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor grad_y, Tensor grad_last_state, {_ARGUMENTS}) -> ({', '.join(['Tensor'] * 9)})",
)
def selective_scan_backward_op(
    grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus, backend
):
    """Gradients of the tensors but for ``order``; an empty one where the argument is absent."""
    inputs = (u, delta, A, B, C, D, delta_bias, initial_state, context)
    with torch.no_grad(), torch.autocast(u.device.type, enabled=False):
        compute = backends.choose(backend, u.device)
        gradients = rows.backward(compute, grad_y, grad_last_state, *inputs, order, delta_softplus)
        return tuple(
            u.new_empty(0) if x is None else gradient.to(x.dtype).contiguous() for x, gradient in zip(inputs, gradients)
        )


@selective_scan_backward_op.register_fake
def _(
    grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus, backend
):
    inputs = (u, delta, A, B, C, D, delta_bias, initial_state, context)
    return tuple(u.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs)


def _save(ctx, inputs, output):
    *tensors, delta_softplus, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.delta_softplus = delta_softplus
    ctx.backend = backend


def _backward(ctx, grad_y, grad_last_state):
    tensors = ctx.saved_tensors
    gradients = selective_scan_backward_op(grad_y, grad_last_state, *tensors, ctx.delta_softplus, ctx.backend)
    present = (None if x is None else gradient for x, gradient in zip(tensors, gradients))
    return (*present, None, None, None)


selective_scan_op.register_autograd(_backward, setup_context=_save)
