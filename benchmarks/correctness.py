"""Whether the scan computes what it should; figures of what is not right are not published."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from checkout import commit_of_checkout
from torch import Tensor

from nnunet_logvmamba.ops import available_backends, selective_scan_with_state

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Relative to the largest expected value: as in tests/numerics.py for short sequences; over long ones sums of a quarter
# of a million float32 values add up.
LARGEST_ERROR = {"float64": 1e-10, "float32": 3e-6, "float16": 2.0**-11 + 3e-6, "bfloat16": 2.0**-8 + 3e-6}
LARGEST_ERROR_OF_LONG = 2e-5
# Batch, length, channels, states, groups and rows of context, all odd in some way.
SMALL = [(1, 1, 1, 1, 1, 0), (2, 97, 6, 4, 2, 5), (1, 33, 70, 17, 1, 1), (3, 260, 36, 16, 3, 0)]


def scan_arguments(
    batch: int, length: int, channels: int, state: int, groups: int, dtype: torch.dtype, device: str, extra: int = 0
) -> dict[str, Tensor]:
    """Inputs as a block makes them: decays -1, -2, …, steps around 0.02; ``extra`` rows of context, in some order."""
    generator = torch.Generator().manual_seed(0)
    inner = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, kind)

    tensors = {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length + extra, channels) - 4,
        "A": -torch.arange(1, state + 1.0, device=device, dtype=inner).repeat(channels, 1),
        "B": normal(batch, length + extra, groups, state),
        "C": normal(batch, length + extra, groups, state),
        "D": normal(channels, kind=inner),
        "delta_bias": normal(channels, kind=inner),
    }
    if extra:
        tensors["context"] = normal(batch, extra, channels)
        tensors["order"] = torch.randperm(length + extra, generator=generator).to(device)
    return tensors


def all_results(tensors: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    """Output, last state and all gradients, from the same upstream gradients whatever the dtype."""
    leaves = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in tensors.items()}
    y, state = selective_scan_with_state(**leaves, backend=backend)
    generator = torch.Generator().manual_seed(1)
    grad_y = torch.randn(*y.shape, generator=generator).to(tensors["u"].dtype).to(y.device, y.dtype)
    grad_state = torch.randn(*state.shape, generator=generator).to(state.device, state.dtype)
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    gradients = torch.autograd.grad((y, state), list(wanted.values()), (grad_y, grad_state))
    return {"y": y.detach(), "last_state": state.detach()} | {f"grad_{k}": g for k, g in zip(wanted, gradients)}


def errors_of_backends(
    names: Sequence[str],
    device: str,
    small: Sequence[tuple],
    real: Sequence[tuple] = (),
    dtypes: Sequence[str] = tuple(DTYPES),
) -> tuple[list[dict], list[str]]:
    """Backends in these dtypes against float64, by the recurrence for small shapes and by ``chunked`` for real ones.

    Returns:
        The relative errors of all results in a row per shape, backend and dtype, none of one that raises; and a line
        for each that is too large and for what was raised.
        Those of mamba-ssm have no line: it is built for speed rather than for the last bits, and is not ours to mend.
    """
    rows, wrong = [], []
    for shape in [*small, *real]:
        for dtype_name in dtypes:
            dtype = DTYPES[dtype_name]
            long = shape in real
            tensors = scan_arguments(*shape[:5], dtype, device, shape[5])
            exact = {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}
            expected = all_results(exact, "chunked" if long else "reference")
            allowed = LARGEST_ERROR[dtype_name] + LARGEST_ERROR_OF_LONG * (long and dtype_name != "float64")
            for backend in names:
                if backend == "reference" or (backend == "mamba_ssm" and dtype == torch.float64):
                    continue
                errors = {}
                try:
                    found = all_results(tensors, backend)
                    if device == "cuda":
                        torch.cuda.synchronize()
                except Exception as error:  # of compilers and drivers: the other backends and figures stand without it
                    said = f"raises {type(error).__name__}: {str(error)[:200]}"
                    wrong += [f"{backend} {dtype_name} {shape}: {said}"] * (backend != "mamba_ssm")
                    rows.append({"backend": backend, "dtype": dtype_name, "shape": shape, "errors": {}, "said": said})
                    continue
                for name, value in found.items():
                    scale = expected[name].abs().max().item()
                    difference = (value.double() - expected[name]).abs().max().item()
                    errors[name] = difference / scale if scale else difference
                    if not errors[name] <= allowed and backend != "mamba_ssm":  # NaN, too, is wrong
                        wrong.append(f"{backend} {dtype_name} {shape} {name}: {errors[name]:.1e}")
                rows.append({"backend": backend, "dtype": dtype_name, "shape": shape, "errors": errors})
    return rows, wrong


def compared(device: str, commit: str | None = None) -> dict[str, object]:
    """What figures carry as their ``correctness``: the commit, and what was wrong in our backends on small shapes."""
    # On a CPU, Triton's kernels run in its interpreter, if at all, and nobody times that.
    names = [name for name in available_backends(device) if (name, device) != ("triton", "cpu") and name != "mamba_ssm"]
    rows, wrong = errors_of_backends(names, device, SMALL[:2])
    return {"commit": commit or commit_of_checkout(), "checked": len(rows), "wrong": wrong}


def checked(device: str) -> dict[str, object]:
    """The same where nothing was wrong.

    Raises:
        SystemExit: If anything was; the message has the first of it.
    """
    found = compared(device)
    if wrong := found["wrong"]:
        sys.exit(f"the scan is wrong, so nothing is timed: {len(wrong)} result(s), first {wrong[0]}")
    return found
