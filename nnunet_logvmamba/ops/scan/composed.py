"""The scan composed of torch's own operations, for whatever goes beyond values and first gradients.

Each operation is one that torch differentiates again, forwards and backwards, maps over batches and translates:
derivatives of higher order, forward mode and ONNX come from here. All states are kept, batch x length x channels x
state numbers, several times over; training never comes here.

The sequence is cut into lanes of ``LANE_LENGTH`` steps. Inside a lane the recurrence is solved by doubling: each step
takes in the one before, then the one two before, then four; the ends of the lanes obey the same recurrence. So the
number of operations grows with the logarithm of the length. Decays are only ever multiplied, never divided by. Sums are
no matrix products: below a transform of torch.func autocast would round those, and cannot be kept from it.

Axes inside: (batch, length, group, channel in group, state).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import in_compute_dtype, step, step_slope

LANE_LENGTH = 16


def forward(u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus):
    """Output (batch, length, channels) and last state (batch, channels, state), both in the compute dtype."""
    u, delta, A, B, C, D, delta_bias, initial_state = in_compute_dtype(u, delta, A, B, C, D, delta_bias, initial_state)
    _, _, states = _states(u, delta, A, B, delta_bias, initial_state, delta_softplus)
    y = (states * C.unsqueeze(3)).sum(-1).flatten(2)
    return (y if D is None else y + D * u), states.select(1, states.shape[1] - 1).flatten(1, 2)


def backward(grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus):
    """Gradients of the eight tensor arguments in their order, in the compute dtype; None where one is absent."""
    grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, initial_state = in_compute_dtype(
        grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, initial_state
    )
    groups = B.shape[2]
    dt, decay, states = _states(u, delta, A, B, delta_bias, initial_state, delta_softplus)
    before = _shifted(states, 1, 1, 0.0)
    if initial_state is not None:
        before = torch.cat(
            (_grouped(initial_state, 1, groups).unsqueeze(1), before.narrow(1, 1, u.shape[1] - 1)), dim=1
        )

    # From the last step to the first, where the gradient of the last state comes in without a decay.
    wanted = _grouped(grad_y, 2, groups).unsqueeze(-1)
    reach, product = recurrence(_shifted(decay.flip(1), 1, 1, 1.0), (wanted * C.unsqueeze(3)).flip(1))
    grad_h = (reach + product * _grouped(grad_last_state, 1, groups).unsqueeze(1)).flip(1)

    grad_exponent = grad_h * decay * before  # of dt * A
    grad_input = (grad_h * B.unsqueeze(3)).sum(-1).flatten(2)  # of dt * u
    grad_dt = grad_input * u + (grad_exponent * _grouped(A, 0, groups)).sum(-1).flatten(2)
    grad_delta = grad_dt * step_slope(delta, delta_bias, delta_softplus)
    grad_u = grad_input * dt
    return (
        grad_u if D is None else grad_u + grad_y * D,
        grad_delta,
        (grad_exponent * _grouped(dt, 2, groups).unsqueeze(-1)).sum((0, 1)).flatten(0, 1),
        (grad_h * _grouped(dt * u, 2, groups).unsqueeze(-1)).sum(3),
        (wanted * states).sum(3),
        None if D is None else (grad_y * u).sum((0, 1)),
        None if delta_bias is None else grad_delta.sum((0, 1)),
        None if initial_state is None else (grad_h.select(1, 0) * decay.select(1, 0)).flatten(1, 2),
    )


def recurrence(decay: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """Solve ``h[t] = decay[t] * h[t-1] + added[t]`` along axis 1, from h = 0.

    Returns:
        All h, and the products of all decays up to each step; both have the shape of the arguments.
    """
    length = decay.shape[1]
    if length <= LANE_LENGTH:
        return _doubled(decay, added, 1)
    lanes = -(-length // LANE_LENGTH)
    missing = lanes * LANE_LENGTH - length
    decay = _padded(decay, 1, 0, missing, 1.0).unflatten(1, (lanes, LANE_LENGTH))
    added = _padded(added, 1, 0, missing, 0.0).unflatten(1, (lanes, LANE_LENGTH))
    h, product = _doubled(decay, added, 2)
    ends, products_of_lanes = recurrence(product.select(2, LANE_LENGTH - 1), h.select(2, LANE_LENGTH - 1))
    h = h + product * _shifted(ends, 1, 1, 0.0).unsqueeze(2)
    product = _finite(product * _shifted(products_of_lanes, 1, 1, 1.0).unsqueeze(2))
    return h.flatten(1, 2).narrow(1, 0, length), product.flatten(1, 2).narrow(1, 0, length)


def _doubled(product: Tensor, h: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    reach = 1
    while reach < h.shape[axis]:
        h = h + product * _shifted(h, axis, reach, 0.0)
        product = _finite(product * _shifted(product, axis, reach, 1.0))
        reach *= 2
    return h, product


def _finite(product: Tensor) -> Tensor:
    """What is too large, where A is above zero, times a state of zero is zero and not NaN."""
    return product.clamp(max=torch.finfo(product.dtype).max)


def _states(u, delta, A, B, delta_bias, initial_state, delta_softplus) -> tuple[Tensor, Tensor, Tensor]:
    """Steps (batch, length, channels), decays and states after every step."""
    groups = B.shape[2]
    dt = step(delta, delta_bias, delta_softplus)
    decay = (_grouped(dt, 2, groups).unsqueeze(-1) * _grouped(A, 0, groups)).exp()
    states, product = recurrence(decay, _grouped(dt * u, 2, groups).unsqueeze(-1) * B.unsqueeze(3))
    if initial_state is not None:
        states = states + product * _grouped(initial_state, 1, groups).unsqueeze(1)
    return dt, decay, states


def _grouped(x: Tensor, axis: int, groups: int) -> Tensor:
    """Split an axis of channels into (group, channel in group)."""
    return x.unflatten(axis, (groups, x.shape[axis] // groups))


def _shifted(x: Tensor, axis: int, steps: int, value: float) -> Tensor:
    """Move everything so many steps later along an axis; ``value`` comes in, the end falls out."""
    return _padded(x.narrow(axis, 0, x.shape[axis] - steps), axis, steps, 0, value)


def _padded(x: Tensor, axis: int, before: int, after: int, value: float) -> Tensor:
    return F.pad(x, [0, 0] * (x.dim() - 1 - axis) + [before, after], value=value)
