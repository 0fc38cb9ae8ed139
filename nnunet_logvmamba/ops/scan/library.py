"""The scan as registered ops: schema, shapes without data (fake), derivatives, and the call of the chosen backend.

One schema serves all backends, and one fake tells the truth for all.

First gradients are the second op's. All other derivatives come from ``composed.py``: where an argument has a tangent
(forward mode) the ops are replaced by that composition, and the second op's own gradient is a gradient of it. It is
also what the ops are to be decomposed into, for ONNX.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from nnunet_logvmamba.ops import backends
from nnunet_logvmamba.ops.registration import derivative_of, register

from . import composed, rows

_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, Tensor? initial_state, "
    "Tensor? context, Tensor? order, bool delta_softplus, str backend"
)
_WORDS = 2  # arguments that are no tensors
_NUM_TENSORS = 9  # without the order, which has no gradient
_ORDER = -3  # its place in the arguments of either op


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
    gradients = selective_scan_backward_op(grad_y, grad_last_state, *tensors, *ctx.words)
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


def _assert_order(*arguments):
    rows.assert_order(arguments[_ORDER])


def _for_one_length(composition: Callable) -> Callable:
    def decomposition(*arguments):
        if any(
            isinstance(size, torch.SymInt) for x in arguments if isinstance(x, torch.Tensor) for size in x.shape[1:]
        ):
            raise ValueError(
                "The selective scan is decomposed for one length: give the image a fixed size; only the batch may be "
                "dynamic."
            )
        return composition(*arguments)

    return decomposition


selective_scan_op = register(
    "selective_scan",
    f"({_ARGUMENTS}) -> (Tensor, Tensor)",
    words=_WORDS,
    body=_scan,
    fake=_fake_scan,
    composition=_composed_scan,
    derivative=_scan_derivative,
    assertion=_assert_order,
    decomposition=_for_one_length(_composed_scan),
)
selective_scan_backward_op = register(
    "selective_scan_backward",
    f"(Tensor grad_y, Tensor grad_last_state, {_ARGUMENTS}) -> ({', '.join(['Tensor'] * _NUM_TENSORS)})",
    words=_WORDS,
    body=_gradients,
    fake=_fake_gradients,
    composition=_composed_gradients,
    derivative=derivative_of(_composed_gradients),
    assertion=_assert_order,
    decomposition=_for_one_length(_composed_gradients),
)
