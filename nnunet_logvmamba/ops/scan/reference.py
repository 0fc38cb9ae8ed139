"""The recurrence as printed in the paper: one step after the other, any floating dtype; every backend is checked
against it.

``forward`` is made of differentiable operations, so that ``backward``, written by hand because the body of a registered
op runs below autograd, can be checked against autograd. ``backward`` keeps the states of all steps: readable, not
thrifty.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_logvmamba.ops.backends import compute_dtype


def forward(u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus):
    """Output (batch, length, channels) and last state (batch, channels, state), both in the compute dtype."""
    u, delta, A, B, C, D, delta_bias, initial_state = in_compute_dtype(u, delta, A, B, C, D, delta_bias, initial_state)
    B, C = _per_channel(B, u.shape[2]), _per_channel(C, u.shape[2])
    dt = step(delta, delta_bias, delta_softplus)
    h = _first_state(u, A) if initial_state is None else initial_state

    outputs = []
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + dt[:, t, :, None] * B[:, t] * u[:, t, :, None]
        outputs.append((C[:, t] * h).sum(-1))
    y = torch.stack(outputs, dim=1)
    return (y if D is None else y + D * u), h


def backward(grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus):
    """Gradients of the eight tensor arguments in their order, in the compute dtype; None where one is absent."""
    grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, initial_state = in_compute_dtype(
        grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, initial_state
    )
    groups = B.shape[2]
    B, C = _per_channel(B, u.shape[2]), _per_channel(C, u.shape[2])
    dt = step(delta, delta_bias, delta_softplus)

    states = [_first_state(u, A) if initial_state is None else initial_state]
    for t in range(u.shape[1]):
        states.append(torch.exp(dt[:, t, :, None] * A) * states[-1] + dt[:, t, :, None] * B[:, t] * u[:, t, :, None])

    grad_u, grad_dt = torch.zeros_like(u), torch.zeros_like(dt)
    grad_A, grad_B, grad_C = torch.zeros_like(A), torch.zeros_like(B), torch.zeros_like(C)
    grad_h = grad_last_state  # of the state after step t, from all later steps
    for t in reversed(range(u.shape[1])):
        decay = torch.exp(dt[:, t, :, None] * A)
        grad_h = grad_h + grad_y[:, t, :, None] * C[:, t]
        grad_C[:, t] = grad_y[:, t, :, None] * states[t + 1]
        grad_B[:, t] = grad_h * (dt[:, t] * u[:, t])[..., None]
        grad_input = (grad_h * B[:, t]).sum(-1)  # of dt * u
        grad_exponent = grad_h * decay * states[t]  # of dt * A
        grad_u[:, t] = grad_input * dt[:, t]
        grad_dt[:, t] = grad_input * u[:, t] + (grad_exponent * A).sum(-1)
        grad_A += (grad_exponent * dt[:, t, :, None]).sum(0)
        grad_h = grad_h * decay

    grad_D = None
    if D is not None:
        grad_u += grad_y * D
        grad_D = (grad_y * u).sum((0, 1))
    grad_delta = grad_dt * step_slope(delta, delta_bias, delta_softplus)
    return (
        grad_u,
        grad_delta,
        grad_A,
        _per_group(grad_B, groups),
        _per_group(grad_C, groups),
        grad_D,
        None if delta_bias is None else grad_delta.sum((0, 1)),
        None if initial_state is None else grad_h,
    )


def step_slope(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """Derivative of the step by ``delta``: 1 above the threshold of torch's softplus (20), else the sigmoid."""
    if not delta_softplus:
        return torch.ones_like(delta)
    raw = delta if delta_bias is None else delta + delta_bias
    return torch.where(raw > 20.0, 1.0, torch.sigmoid(raw))


def in_compute_dtype(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in the type of the state and of all sums."""
    dtype = compute_dtype(*tensors)
    return [None if x is None else x.to(dtype) for x in tensors]


def step(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """The step dt of the recurrence."""
    raw = delta if delta_bias is None else delta + delta_bias
    return F.softplus(raw) if delta_softplus else raw


def _first_state(u: Tensor, A: Tensor) -> Tensor:
    return u.new_zeros(u.shape[0], u.shape[2], A.shape[1])


def _per_channel(weights: Tensor, channels: int) -> Tensor:
    """(batch, length, groups, state) -> (batch, length, channels, state)."""
    return weights.repeat_interleave(channels // weights.shape[2], dim=2)


def _per_group(gradient: Tensor, groups: int) -> Tensor:
    """Sum of the channels of each group: (batch, length, channels, state) -> (batch, length, groups, state)."""
    return gradient.unflatten(2, (groups, -1)).sum(3)
