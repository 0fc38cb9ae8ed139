"""Random arguments for the scan, and the float64 answer to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_logvmamba.ops import selective_scan_with_state
from nnunet_logvmamba.ops.scan import reference

BACKENDS = ("reference", "chunked", "numba")
"""Every backend that runs on a CPU; values, gradients, registration and properties are tested for each."""
GPU_BACKENDS = ("triton", "mamba_ssm")
"""Those that do not: the first has tests of its own, since in an interpreter it takes seconds."""
PLAIN = ("u", "delta", "A", "B", "C", "D", "delta_bias", "initial_state")
"""What a backend gets that wants a sequence."""
NAMES = (*PLAIN, "context", "order")
"""What the op gets."""


def random_arguments(
    batch: int = 2,
    length: int = 11,
    channels: int = 6,
    state: int = 4,
    groups: int = 2,
    *,
    extra: int = 0,
    shuffled: bool = False,
    dtype: torch.dtype = torch.float64,
    absent: tuple[str, ...] = (),
    seed: int = 0,
) -> dict[str, Tensor]:
    """Arguments in the order of the op, without those named in ``absent``; A in (-1.6, -0.1), all else normal.

    With ``extra`` there are that many rows of context, and with ``shuffled`` an order of all rows.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows = length + extra
    arguments = {
        "u": normal(batch, length, channels),
        "delta": normal(batch, rows, channels),
        "A": -0.1 - 1.5 * torch.rand(channels, state, generator=generator, dtype=torch.float64),
        "B": normal(batch, rows, groups, state),
        "C": normal(batch, rows, groups, state),
        "D": normal(channels),
        "delta_bias": normal(channels),
        "initial_state": normal(batch, channels, state),
    }
    if extra:
        arguments["context"] = normal(batch, extra, channels)
    arguments = {name: value.to(dtype) for name, value in arguments.items() if name not in absent}
    if shuffled:
        arguments["order"] = torch.randperm(rows, generator=generator)
    return arguments


def nothing_fades() -> dict[str, Tensor]:
    """Arguments with A above zero and an input of zero but for the end, until which the state stays zero."""
    arguments = random_arguments(length=700, dtype=torch.float32, absent=("initial_state",))
    arguments["A"] = -arguments["A"]
    arguments["u"][:, :695] = 0
    return arguments


def run(arguments: dict[str, Tensor], **options) -> tuple[Tensor, Tensor]:
    """Output and last state for arguments by name."""
    return selective_scan_with_state(**arguments, **options)


def run_with_gradients(
    arguments: dict[str, Tensor], grad_y: Tensor, grad_last_state: Tensor, **options
) -> dict[str, Tensor]:
    """Everything there is to compare: ``y``, ``last_state`` and ``grad <name>`` for each argument."""
    fixed = {name: value for name, value in arguments.items() if name == "order"}
    leaves = {name: value.detach().requires_grad_() for name, value in arguments.items() if name != "order"}
    y, last_state = run(leaves | fixed, **options)
    gradients = torch.autograd.grad((y, last_state), list(leaves.values()), (grad_y, grad_last_state))
    return {"y": y, "last_state": last_state} | {f"grad {name}": g for name, g in zip(leaves, gradients)}


def expected_with_gradients(
    arguments: dict[str, Tensor], grad_y: Tensor, grad_last_state: Tensor, *, delta_softplus: bool = True
) -> dict[str, Tensor]:
    """The same from torch's own autograd through the recurrence as printed, in float64."""
    order = arguments.get("order")
    leaves = {name: value.detach().double().requires_grad_() for name, value in arguments.items() if name != "order"}
    length = leaves["u"].shape[1]
    rows = dict(leaves)
    if "context" in rows:
        rows["u"] = torch.cat((rows["u"], rows.pop("context")), dim=1)
    if order is not None:
        rows |= {name: rows[name][:, order] for name in ("u", "delta", "B", "C")}
    y, last_state = reference.forward(*(rows.get(name) for name in PLAIN), delta_softplus)
    if order is not None:
        y = y[:, order.argsort()]
    y = y[:, :length]
    gradients = torch.autograd.grad((y, last_state), list(leaves.values()), (grad_y.double(), grad_last_state.double()))
    return {"y": y, "last_state": last_state} | {f"grad {name}": g for name, g in zip(leaves, gradients)}


def upstream(arguments: dict[str, Tensor], seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random gradients of output and last state, in the dtypes these have."""
    generator = torch.Generator().manual_seed(seed)
    u, A = arguments["u"], arguments["A"]
    inner = torch.float64 if any(x.dtype == torch.float64 for x in arguments.values()) else torch.float32
    return (
        torch.randn(u.shape, generator=generator, dtype=torch.float64).to(u.dtype),
        torch.randn(u.shape[0], *A.shape, generator=generator, dtype=torch.float64).to(inner),
    )
