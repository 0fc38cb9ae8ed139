"""How close is close enough: one table for all tests, never looser on one machine than on another."""

from __future__ import annotations

import torch
from torch import Tensor

# Largest allowed error, relative to the largest magnitude in the expected tensor.
RELATIVE_TOLERANCE = {
    # Limit for scan files in the README of the golden data; observed 1e-15.
    torch.float64: 1e-10,
    # Observed up to 8e-7 over a thousand steps (gradient of A, reference backend); the rest is room for another order
    # of summation.
    torch.float32: 3e-6,
    # Rounding on store: half a unit in the last place is 2**-11 and 2**-8; sums are float32, so nothing adds to it.
    torch.float16: 2.0**-11 + 3e-6,
    torch.bfloat16: 2.0**-8 + 3e-6,
}


def assert_matches_reference(
    actual: Tensor, expected: Tensor, *, what: str = "tensor", backend: str = "", tolerance: float | None = None
) -> None:
    """Assert that two tensors have one shape and agree within the tolerance of ``actual``'s dtype.

    Errors are relative to the largest magnitude of ``expected``. NaN and infinity never pass. ``tolerance`` replaces
    the entry of the table where the source of the expected values states a limit of its own.
    """
    label = f"{what}{f' of backend {backend}' if backend else ''} ({tuple(actual.shape)}, {actual.dtype})"
    assert actual.shape == expected.shape, f"{label} should have shape {tuple(expected.shape)}"
    if tolerance is None:
        tolerance = RELATIVE_TOLERANCE[actual.dtype]
    if expected.numel() == 0:
        return
    difference = (actual.detach().double() - expected.detach().double()).abs().max().item()
    scale = expected.detach().double().abs().max().item()
    assert difference <= tolerance * scale, (
        f"{label} differs by {difference:.3e} absolute, {difference / scale if scale else float('inf'):.3e} of the "
        f"largest expected magnitude {scale:.3e}; allowed is {tolerance:.1e}"
    )
