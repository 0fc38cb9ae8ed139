"""The selective scan: arguments are checked here, the graph sees one registered op, backends only compute."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_logvmamba.ops import backends
from nnunet_logvmamba.ops.arguments import check_tensors

from .library import selective_scan_op

__all__ = ["selective_scan", "selective_scan_with_state"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    context: Tensor | None = None,
    order: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Run the selective state-space recurrence along the length.

    With ``dt = softplus(delta + delta_bias)`` and a state ``h`` that starts at zero, for every channel::

        h[t] = exp(dt[t] * A) * h[t-1] + dt[t] * B[t] * u[t]
        y[t] = <C[t], h[t]> + D * u[t]

    The sequence need not be laid out: with ``context`` it has more rows than ``u``, and with ``order`` they come in
    another order than they lie in. So further tokens are inserted, and directions changed, without a copy.

    Args:
        u: Input, (batch, length, channels); half precision is welcome, the state and all sums are kept in float32
            (float64 if any argument is float64).
        delta: Step before bias and softplus, (batch, rows, channels); rows = length + those of ``context``.
        A: Decay, (channels, state), float32, negative; at zero or above the state never fades.
        B: Input weights, (batch, rows, groups, state); channel c belongs to group c // (channels / groups).
        C: Output weights, same shape as ``B``.
        D: Weight of the direct path from input to output, (channels,); absent means zero.
        delta_bias: Added to ``delta`` before the softplus, (channels,); absent means zero.
        delta_softplus: If False, ``dt = delta + delta_bias`` is used as it is and should not be negative.
        context: Further inputs, (batch, extra, channels): rows after those of ``u``, whose outputs are not wanted.
        order: Row that comes t-th, (rows,), int64, a permutation; absent means as they lie. On a GPU it is not checked.
        backend: ``"auto"`` or a name from ``available_backends(u.device)``.

    Returns:
        Output for the rows of ``u``, (batch, length, channels), dtype of ``u``, contiguous.

    Raises:
        ValueError: If two shapes or devices disagree (the message names both tensors and both shapes), if an argument
            is no tensor or its dtype not a real floating-point one, if ``order`` is not a permutation, or if the
            backend is unknown or cannot run on the device.

    References: Gu and Dao (2023), Algorithm 2.
    """
    _check_arguments(u, delta, A, B, C, D, delta_bias, None, context, order)
    backends.check_name(backend)
    return selective_scan_op(u, delta, A, B, C, D, delta_bias, None, context, order, delta_softplus, backend)[0]


def selective_scan_with_state(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    initial_state: Tensor | None = None,
    context: Tensor | None = None,
    order: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run the selective scan from a given state and return the state it ends in, so that a sequence can come in parts.

    Args:
        u: As in :func:`selective_scan`, like all arguments that are not listed here.
        initial_state: State before the first step, (batch, channels, state); absent means zero.

    Returns:
        Output as in :func:`selective_scan`, and the state after the last step, (batch, channels, state), float32
        (float64 if any argument is float64). Both carry gradients.

    Raises:
        ValueError: As in :func:`selective_scan`.
    """
    _check_arguments(u, delta, A, B, C, D, delta_bias, initial_state, context, order)
    backends.check_name(backend)
    return selective_scan_op(u, delta, A, B, C, D, delta_bias, initial_state, context, order, delta_softplus, backend)


def _check_arguments(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *optional: Tensor | None) -> None:
    D, delta_bias, initial_state, context, order = optional
    given = dict(zip(_AXES, (u, delta, A, B, C, *optional), strict=True))
    check_tensors(given, needed=("u", "delta", "A", "B", "C"))
    named = {name: tensor for name, tensor in given.items() if tensor is not None}
    for name, tensor in named.items():
        if name == "order":
            if tensor.dtype != torch.int64:
                raise ValueError(f"order has dtype {tensor.dtype}; it must be int64.")
        elif not tensor.is_floating_point():
            raise ValueError(
                f"{name} has dtype {tensor.dtype}; the selective scan takes real floating-point tensors only."
            )
        if tensor.device != u.device:
            raise ValueError(f"{name} is on {tensor.device} but u is on {u.device}; move them to one device.")

    for name, tensor in named.items():
        if tensor.dim() != len(_AXES[name]):
            raise ValueError(
                f"{name} has shape {_shape(tensor)} and u has shape {_shape(u)}; {name} must be {_axes(name)}."
            )

    batch, length, channels = u.shape
    groups, state = B.shape[2], A.shape[1]
    if length < 1:
        raise ValueError(f"u has shape {_shape(u)}; the selective scan needs at least one step.")
    if groups < 1 or channels % groups != 0:
        raise ValueError(
            f"u has shape {_shape(u)} and B has shape {_shape(B)}: "
            f"{channels} channels cannot be split into {groups} equal groups."
        )
    rows, source = length, ("u", u)
    if context is not None:
        _check_shape("context", context, (batch, context.shape[1], channels), "u", u)
        rows, source = length + context.shape[1], ("context", context)
    _check_shape("delta", delta, (batch, rows, channels), *source)
    _check_shape("A", A, (channels, state), "u", u)
    _check_shape("B", B, (batch, rows, groups, B.shape[3]), *source)
    _check_shape("B", B, (batch, rows, groups, state), "A", A)
    _check_shape("C", C, (batch, rows, groups, state), "B", B)
    if D is not None:
        _check_shape("D", D, (channels,), "u", u)
    if delta_bias is not None:
        _check_shape("delta_bias", delta_bias, (channels,), "u", u)
    if initial_state is not None:
        _check_shape("initial_state", initial_state, (batch, channels, initial_state.shape[2]), "u", u)
        _check_shape("initial_state", initial_state, (batch, channels, state), "A", A)
    if order is not None:
        _check_shape("order", order, (rows,), *source)


_AXES = {
    "u": ("batch", "length", "channels"),
    "delta": ("batch", "rows", "channels"),
    "A": ("channels", "state"),
    "B": ("batch", "rows", "groups", "state"),
    "C": ("batch", "rows", "groups", "state"),
    "D": ("channels",),
    "delta_bias": ("channels",),
    "initial_state": ("batch", "channels", "state"),
    "context": ("batch", "extra", "channels"),
    "order": ("rows",),
}


def _axes(name: str) -> str:
    return f"({', '.join(_AXES[name])})"


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], other_name: str, other: Tensor) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(
            f"{name} has shape {_shape(tensor)} but {other_name} has shape {_shape(other)}; "
            f"{name} must be {_axes(name)} = {tuple(expected)}."
        )


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
