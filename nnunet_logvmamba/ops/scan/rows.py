"""Rows and their order: the same scan for backends that read rows where they lie and for those that want a sequence.

The rows are those of ``u`` and then those of ``context``; ``order[t]`` is the row that comes t-th. A backend that says
``READS_ROWS = True`` gets both and does this with its own index arithmetic. For the others the rows are gathered into a
sequence, once, and the results put back.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor


def forward(compute: ModuleType, u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus):
    """Output for the rows of ``u`` and last state by the backend ``compute``."""
    if getattr(compute, "READS_ROWS", False):
        return compute.forward(u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus)
    inputs, steps, entries, exits = (in_order(x, order) for x in (_joined(u, context), delta, B, C))
    y, last_state = compute.forward(inputs, steps, A, entries, exits, D, delta_bias, initial_state, delta_softplus)
    return in_order(y, places(order))[:, : u.shape[1]], last_state


def backward(compute: ModuleType, grad_y, grad_last_state, *arguments):
    """Gradients of u, delta, A, B, C, D, delta_bias, initial_state and context; None where one is absent.

    ``arguments`` are those of :func:`forward`.
    """
    if getattr(compute, "READS_ROWS", False):
        return compute.backward(grad_y, grad_last_state, *arguments)
    u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus = arguments
    if context is not None:
        grad_y = torch.cat((grad_y, grad_y.new_zeros(context.shape)), dim=1)
    grad_outputs, inputs, steps, entries, exits = (
        in_order(x, order) for x in (grad_y, _joined(u, context), delta, B, C)
    )
    grad_inputs, grad_steps, grad_A, grad_entries, grad_exits, *others = compute.backward(
        grad_outputs, grad_last_state, inputs, steps, A, entries, exits, D, delta_bias, initial_state, delta_softplus
    )
    back = places(order)
    grad_rows, grad_delta, grad_B, grad_C = (
        in_order(x, back) for x in (grad_inputs, grad_steps, grad_entries, grad_exits)
    )
    grad_u, grad_context = grad_rows, None
    if context is not None:  # copies: with one batch entry the parts would be contiguous and share their memory
        grad_u, grad_context = (
            part.clone(memory_format=torch.contiguous_format)
            for part in grad_rows.split((u.shape[1], context.shape[1]), dim=1)
        )
    return grad_u, grad_delta, grad_A, grad_B, grad_C, *others, grad_context


def check_order(order: Tensor | None, rows: int) -> None:
    """Refuse an order that is not a permutation; on a GPU this would wait for it, and is left to the caller."""
    if order is None or order.device.type != "cpu":
        return
    if order.min() < 0 or order.max() >= rows or torch.bincount(order, minlength=rows).max() > 1:
        raise ValueError(_no_permutation(rows))


def assert_order(order: Tensor | None) -> None:
    """The same where values may not be looked at, because a graph is being recorded; so a RuntimeError."""
    if order is not None and order.device.type == "cpu":
        rows = order.shape[0]
        torch._assert_async((order.sort().values == torch.arange(rows)).all(), _no_permutation(rows))


def _no_permutation(rows: int) -> str:
    return f"order is not a permutation of 0 to {rows - 1}: each row must come exactly once."


def _joined(u: Tensor, context: Tensor | None) -> Tensor:
    return u if context is None else torch.cat((u, context), dim=1)


def in_order(rows: Tensor, order: Tensor | None) -> Tensor:
    return rows if order is None else rows.index_select(1, order)


def places(order: Tensor | None) -> Tensor | None:
    """Where in the sequence each row came, the inverse of ``order``."""
    if order is None:
        return None
    return torch.zeros_like(order).scatter(0, order, torch.arange(order.shape[0], device=order.device))
