"""The scan with the name, arguments and axis order of mamba-ssm, so that code written for it runs here, also on CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_logvmamba.ops.arguments import check_tensors
from nnunet_logvmamba.ops.scan import selective_scan_with_state


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective scan with the argument list of ``mamba_ssm.ops.selective_scan_interface.selective_scan_fn``.

    Note the axis order, (batch, channels, length), and that the softplus is off unless asked for.

    Args:
        u: Input, (batch, channels, length).
        delta: Step before bias and softplus, (batch, channels, length).
        A: Decay, (channels, state), real.
        B: Input weights: (channels, state), the same at every step; (batch, state, length), the same for all channels;
            or (batch, groups, state, length). Constant weights are expanded, and their gradient costs
            batch * length * channels * state numbers.
        C: Output weights, in any of the three forms, whatever the form of ``B``.
        D: Weight of the direct path, (channels,).
        z: Gate, (batch, channels, length): the output is multiplied by silu(z).
        delta_bias: Added to ``delta``, (channels,).
        delta_softplus: Whether the step goes through a softplus.
        return_last_state: Whether to return the last state too.

    Returns:
        Output, (batch, channels, length), dtype of ``u``; with ``return_last_state`` a pair of it and the state after
        the last step, (batch, channels, state), float32 or float64. Unlike in mamba-ssm the last state carries a
        gradient.

    Raises:
        ValueError: If an argument is no tensor, A, B or C is complex, or two shapes disagree; messages of the latter
            kind come from :func:`nnunet_logvmamba.ops.selective_scan` and give shapes in its order, (batch, length,
            channels).

    References: Gu and Dao (2023), Algorithm 2; interface of mamba-ssm 2.2.
    """
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    check_tensors(named, needed=("u", "delta", "A", "B", "C"))
    for name, tensor in (("A", A), ("B", B), ("C", C)):
        if tensor.is_complex():
            raise ValueError(f"{name} is complex; only real A, B and C are supported, pass a real tensor.")
    for name, tensor in (("u", u), ("delta", delta)):
        if tensor.dim() != 3:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be (batch, channels, length).")
    if z is not None and z.shape != u.shape:
        raise ValueError(f"z has shape {tuple(z.shape)} but u has shape {tuple(u.shape)}; they must be equal.")

    B, C = _step_weights("B", B, u), _step_weights("C", C, u)
    if B.shape[2] != C.shape[2]:
        groups = max(B.shape[2], C.shape[2])
        B, C = _with_groups("B", B, groups), _with_groups("C", C, groups)
    # The gate is applied before rounding to half precision.
    gated = u if z is None else u.to(torch.promote_types(u.dtype, torch.float32))
    arguments = (gated.transpose(1, 2), delta.transpose(1, 2), A, B, C, D)
    y, last_state = selective_scan_with_state(*arguments, delta_bias=delta_bias, delta_softplus=delta_softplus)
    y = y.transpose(1, 2)
    if z is not None:
        y = (y * F.silu(z.to(y.dtype))).to(u.dtype)
    return (y, last_state) if return_last_state else y


def _step_weights(name: str, weights: Tensor, u: Tensor) -> Tensor:
    """Bring B or C to (batch, length, groups, state)."""
    batch, channels, length = u.shape
    if weights.dim() == 2:
        if weights.shape[0] != channels:
            raise ValueError(
                f"{name} has shape {tuple(weights.shape)} but u has shape {tuple(u.shape)}; "
                f"constant {name} must be (channels, state) with {channels} channels."
            )
        return weights.expand(batch, length, *weights.shape)
    if weights.dim() == 3:
        return weights.transpose(1, 2).unsqueeze(2)
    if weights.dim() == 4:
        return weights.permute(0, 3, 1, 2)
    raise ValueError(
        f"{name} has shape {tuple(weights.shape)} and u has shape {tuple(u.shape)}; {name} must be (channels, state), "
        f"(batch, state, length) or (batch, groups, state, length)."
    )


def _with_groups(name: str, weights: Tensor, groups: int) -> Tensor:
    """Repeat (batch, length, groups, state) so that it has as many groups as its partner."""
    own = weights.shape[2]
    if own < 1 or groups % own != 0:
        raise ValueError(f"{name} has {own} groups and its partner {groups}; one number must divide the other.")
    return weights.repeat_interleave(groups // own, dim=2)
