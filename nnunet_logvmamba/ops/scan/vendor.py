"""mamba-ssm's CUDA kernel behind our contract, where that package is installed: for comparison, and as a second choice.

It wants (batch, channels, length), one dtype for everything that has a length, float32 for the rest, and starts from
zero. Its own gradient leaves out the last state; here that state is read out by further steps, which carry it.
"""

from __future__ import annotations

import functools

import torch
from mamba_ssm.ops import selective_scan_interface
from torch import Tensor

from nnunet_logvmamba.ops.backends import compute_dtype

if getattr(selective_scan_interface, "selective_scan_cuda", None) is None:
    raise ImportError("mamba-ssm was built without the CUDA kernel of Mamba-1")

STARTS_FROM_ZERO = True

# Before the softplus; after it the step is exactly zero, and a state stays.
_NO_STEP = -1e4


def forward(u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus):
    """Output (batch, length, channels) and last state (batch, channels, state)."""
    _refuse(u, delta, A, B, C, D, delta_bias, initial_state)
    y, last_state = _scan(u, delta, A, B, C, D, delta_bias, delta_softplus, return_last_state=True)
    return y, last_state.float()


def backward(grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus):
    """Gradients of the eight tensor arguments in their order; None where one is absent. Runs the scan once more."""
    _refuse(u, delta, A, B, C, D, delta_bias, initial_state)
    tensors = (u, delta, A, B, C, D, delta_bias)
    if grad_last_state.any():  # waits for the GPU, but spares copies of everything where nobody asks for that state
        tensors, grad_y = _with_readout(*tensors, grad_y, grad_last_state, delta_softplus)
    leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
    with torch.enable_grad():
        y = _scan(*leaves, delta_softplus)
        present = [x for x in leaves if x is not None]
        found = iter(torch.autograd.grad(y, present, grad_y.to(y.dtype)))
    gradients = [None if x is None else next(found) for x in leaves]
    length = u.shape[1]
    return *(g[:, :length] if i in (0, 1, 3, 4) else g for i, g in enumerate(gradients)), None


def _scan(u, delta, A, B, C, D, delta_bias, delta_softplus, **options):
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in (u, delta, B, C)))
    results = selective_scan_interface.selective_scan_fn(
        u.to(dtype).transpose(1, 2),
        delta.to(dtype).transpose(1, 2),
        A.float(),
        B.to(dtype).permute(0, 2, 3, 1),
        C.to(dtype).permute(0, 2, 3, 1),
        None if D is None else D.float(),
        delta_bias=None if delta_bias is None else delta_bias.float(),
        delta_softplus=delta_softplus,
        **options,
    )
    if not options:
        return results.transpose(1, 2)
    y, last_state = results
    return y.transpose(1, 2), last_state


def _with_readout(u, delta, A, B, C, D, delta_bias, grad_y, grad_last_state, delta_softplus):
    """Append a step for every state, whose output is that state of the last step; and their upstream gradients."""
    batch, _, channels = u.shape
    groups, states = B.shape[2:]
    nothing = u.new_zeros(batch, states, channels)
    no_step = delta.new_full((batch, states, channels), _NO_STEP if delta_softplus else 0.0)
    no_entry = B.new_zeros(batch, states, groups, states)
    one_each = torch.eye(states, dtype=C.dtype, device=C.device)[None, :, None].expand(batch, -1, groups, -1)
    longer = (
        torch.cat((u, nothing), dim=1),
        torch.cat((delta, no_step), dim=1),
        A,
        torch.cat((B, no_entry), dim=1),
        torch.cat((C, one_each), dim=1),
        D,
        delta_bias,
    )
    return longer, torch.cat((grad_y, grad_last_state.transpose(1, 2).to(grad_y.dtype)), dim=1)


def _refuse(u, delta, A, B, C, D, delta_bias, initial_state: Tensor | None) -> None:
    if initial_state is not None:
        raise ValueError("Scan backend 'mamba_ssm' cannot start from a given state; choose another backend.")
    if compute_dtype(u, delta, A, B, C, D, delta_bias) == torch.float64:
        raise ValueError("Scan backend 'mamba_ssm' has no float64; convert the arguments or choose another backend.")
