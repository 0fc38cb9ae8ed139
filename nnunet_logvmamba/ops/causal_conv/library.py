"""The causal convolution as registered ops, for rows in any order; derivatives beyond the first are torch's own."""

from __future__ import annotations

import torch

from nnunet_logvmamba.ops.registration import derivative_of, register
from nnunet_logvmamba.ops.scan import rows

from . import backends, composed

_ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias, Tensor? order, bool silu, str backend"
_ORDER = -3  # its place in the arguments of either op
_WORDS = 2


def _convolve(x, weight, bias, order, silu, backend):
    """Output of the shape and dtype of ``x``; arguments are not checked here."""
    rows.check_order(order, x.shape[1])
    # Autocast stays active inside the body of an op and would convolve in half precision.
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        compute = backends.choose(backend, x, weight, bias)
        y = compute.forward(rows.in_order(x, order), weight, bias, silu)
        return rows.in_order(y, rows.places(order)).to(x.dtype).contiguous()


def _composed(x, weight, bias, order, silu, backend):
    y = composed.forward(rows.in_order(x, order), weight, bias, silu)
    return rows.in_order(y, rows.places(order)).to(x.dtype).contiguous()


def _gradients(grad_y, x, weight, bias, order, silu, backend):
    """Gradients of x, weight and bias; an empty one where it is absent."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        compute = backends.choose(backend, x, weight, bias)
        return _found(compute, grad_y, x, weight, bias, order, silu)


def _composed_gradients(grad_y, x, weight, bias, order, silu, backend):
    return _found(composed, grad_y, x, weight, bias, order, silu)


def _found(compute, grad_y, x, weight, bias, order, silu):
    grad_x, grad_weight, grad_bias = compute.backward(
        rows.in_order(grad_y, order), rows.in_order(x, order), weight, bias, silu
    )
    return (
        rows.in_order(grad_x, rows.places(order)).to(x.dtype).contiguous(),
        grad_weight.to(weight.dtype).contiguous(),
        x.new_empty(0) if bias is None else grad_bias.to(bias.dtype).contiguous(),
    )


def _fake(x, *others):
    return x.new_empty(x.shape)


def _fake_gradients(grad_y, x, weight, bias, *others):
    grad_bias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), grad_bias


def _derivative(ctx, grad_y):
    tensors = ctx.saved_tensors  # once: checkpointing recomputes them for each look
    grad_x, grad_weight, grad_bias = causal_conv1d_backward_op(grad_y, *tensors, *ctx.words)
    return grad_x, grad_weight, None if tensors[2] is None else grad_bias, None, None, None


def _assert_order(*arguments):
    rows.assert_order(arguments[_ORDER])


causal_conv1d_op = register(
    "causal_conv1d",
    f"({_ARGUMENTS}) -> Tensor",
    words=_WORDS,
    body=_convolve,
    fake=_fake,
    composition=_composed,
    derivative=_derivative,
    assertion=_assert_order,
)
causal_conv1d_backward_op = register(
    "causal_conv1d_backward",
    f"(Tensor grad_y, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    words=_WORDS,
    body=_gradients,
    fake=_fake_gradients,
    composition=_composed_gradients,
    derivative=derivative_of(_composed_gradients),
    assertion=_assert_order,
)
