"""mamba-ssm's CUDA kernel behind our contract, where that package is installed; for comparison, so never "auto".

It wants (batch, channels, length), one dtype for everything that has a length, float32 for the rest, and starts from
zero. Its own gradient leaves out the last state; here that state is read out by further steps, which carry it. Its
sums for the gradients of A, B, C, D and the bias are atomic: two runs may differ in their last bits.
"""

from __future__ import annotations

import functools

import torch
from mamba_ssm.ops import selective_scan_interface
from torch import Tensor

from nnunet_logvmamba.ops.backends import MAMBA_REBUILD, compute_dtype

if getattr(selective_scan_interface, "selective_scan_cuda", None) is None:
    raise ImportError(f"mamba-ssm was built without the CUDA kernel of Mamba-1: {MAMBA_REBUILD}")
kernel = selective_scan_interface.selective_scan_cuda

MOST_STATES = 256
# Before the softplus; after it the step is exactly zero, and a state stays.
_NO_STEP = -1e4


def forward(u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus):
    """Output (batch, length, channels) and last state (batch, channels, state)."""
    _refuse(u, delta, A, B, C, D, delta_bias, initial_state)
    y, states = _run(_native(u, delta, A, B, C, D, delta_bias, delta_softplus), delta_softplus)
    return y.transpose(1, 2), states[:, :, -1, 1::2]


def backward(grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus):
    """Gradients of the eight tensor arguments in their order; None where one is absent. Runs the scan once more."""
    _refuse(u, delta, A, B, C, D, delta_bias, initial_state)
    length = u.shape[1]
    if grad_last_state.any():  # waits for the GPU, but spares copies of everything where nobody asks for that state
        u, delta, B, C, grad_y = _with_readout(u, delta, B, C, grad_y, grad_last_state, delta_softplus, delta_bias)
    native = _native(u, delta, A, B, C, D, delta_bias, delta_softplus)
    _, states = _run(native, delta_softplus)
    grad_y = grad_y.to(native[0].dtype).transpose(1, 2).contiguous()
    *tensors, bias = native
    found = kernel.bwd(*tensors, None, bias, grad_y, states, None, None, delta_softplus, False)
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias = found[:7]
    grad_u, grad_delta = (x.transpose(1, 2)[:, :length] for x in (grad_u, grad_delta))
    grad_B, grad_C = (x.permute(0, 3, 1, 2)[:, :length] for x in (grad_B, grad_C))
    if not delta_softplus and delta_bias is not None:
        grad_bias = grad_delta.sum((0, 1), dtype=torch.float32)
    return (
        grad_u,
        grad_delta,
        grad_A,
        grad_B,
        grad_C,
        None if D is None else grad_D,
        None if delta_bias is None else grad_bias,
        None,
    )


def _run(native: tuple, delta_softplus: bool) -> tuple[Tensor, Tensor]:
    """Output, and the states and decays at the ends of the kernel's own chunks."""
    *tensors, bias = native
    return kernel.fwd(*tensors, None, bias, delta_softplus)[:2]


def _native(u, delta, A, B, C, D, delta_bias, delta_softplus) -> tuple[Tensor | None, ...]:
    """u, delta, A, B, C, D and bias as the kernel wants them."""
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in (u, delta, B, C)))
    if not delta_softplus and delta_bias is not None:  # so that a step of the read-out is zero
        delta, delta_bias = delta + delta_bias, None
    u, delta = (x.to(dtype).transpose(1, 2).contiguous() for x in (u, delta))
    B, C = (x.to(dtype).permute(0, 2, 3, 1).contiguous() for x in (B, C))
    A, D, delta_bias = (None if x is None else x.float().contiguous() for x in (A, D, delta_bias))
    return u, delta, A, B, C, D, delta_bias


def _with_readout(u, delta, B, C, grad_y, grad_last_state, delta_softplus, delta_bias) -> tuple[Tensor, ...]:
    """Append a step for every state, whose output is that state of the last step; all in float32, for its gradient."""
    batch, _, channels = u.shape
    groups, states = B.shape[2:]
    u, delta, B, C, grad_y = (x.float() for x in (u, delta, B, C, grad_y))
    no_step = delta.new_full((batch, states, channels), _NO_STEP if delta_softplus else 0.0)
    if not delta_softplus and delta_bias is not None:
        no_step -= delta_bias
    one_each = torch.eye(states, device=C.device)[None, :, None].expand(batch, -1, groups, -1)
    return (
        torch.cat((u, torch.zeros_like(no_step)), dim=1),
        torch.cat((delta, no_step), dim=1),
        torch.cat((B, torch.zeros_like(one_each)), dim=1),
        torch.cat((C, one_each), dim=1),
        torch.cat((grad_y, grad_last_state.transpose(1, 2).float()), dim=1),
    )


def _refuse(u, delta, A, B, C, D, delta_bias, initial_state: Tensor | None) -> None:
    if initial_state is not None:
        raise ValueError("Scan backend 'mamba_ssm' cannot start from a given state; choose another backend.")
    if compute_dtype(u, delta, A, B, C, D, delta_bias) == torch.float64:
        raise ValueError("Scan backend 'mamba_ssm' has no float64; convert the arguments or choose another backend.")
    if not 1 <= A.shape[1] <= MOST_STATES:
        raise ValueError(
            f"Scan backend 'mamba_ssm' takes 1 to {MOST_STATES} states, A has {A.shape[1]}; choose another backend."
        )
    if u.numel() == 0:
        raise ValueError(f"Scan backend 'mamba_ssm' has nothing to do for u of shape {tuple(u.shape)}.")
