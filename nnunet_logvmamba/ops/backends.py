"""What can run here, which backend "auto" means, and how to say no politely.

A backend is a module with two functions that only compute::

    forward(u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus) -> (y, last_state)
    backward(grad_y, grad_last_state, u, delta, ..., initial_state, delta_softplus) -> eight gradients

Everything they promise beyond that (dtypes, layout, aliasing) is written in ``ops/README.md``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch


@dataclass(frozen=True)
class Backend:
    """Where a backend lives and when it can run.

    ``obstacle`` gets a device and returns None, or one sentence with the reason and, where there is one, the remedy.
    """

    module: str
    obstacle: Callable[[torch.device], str | None]


def _runs_everywhere(device: torch.device) -> str | None:
    return None


# In order of preference: "auto" is the first that can run on the device at hand.
BACKENDS = {
    "chunked": Backend("nnunet_logvmamba.ops.scan.chunked", _runs_everywhere),
    "reference": Backend("nnunet_logvmamba.ops.scan.reference", _runs_everywhere),
}
BACKEND_NAMES = ("auto", *BACKENDS)


def obstacle(name: str, device: torch.device | str) -> str | None:
    """Say why a backend cannot run on a device, or None if it can.

    Raises:
        ValueError: If there is no backend of that name; the message lists the names there are.
    """
    check_name(name)
    return None if name == "auto" else BACKENDS[name].obstacle(torch.device(device))


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Names of the backends that can run on a device, the preferred one first."""
    return tuple(name for name in BACKENDS if obstacle(name, device) is None)


def check_name(name: str) -> None:
    """Raise ValueError, listing the valid names, unless ``name`` is one of them."""
    if name not in BACKEND_NAMES:
        raise ValueError(f"Unknown scan backend {name!r}; choose one of: {', '.join(BACKEND_NAMES)}.")


def choose(name: str, device: torch.device) -> ModuleType:
    """Load the backend of that name, or for ``"auto"`` the preferred one on that device.

    Raises:
        ValueError: If the name is unknown, or the backend cannot run on the device; the message says why and names
            those that can.
    """
    reason = obstacle(name, device)
    if reason is not None:
        others = ", ".join(available_backends(device))
        raise ValueError(f"Scan backend {name!r} cannot run on device {device}: {reason} Available here: {others}.")
    if name == "auto":
        name = available_backends(device)[0]
    return importlib.import_module(BACKENDS[name].module)


def compute_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """Type of the state and of all sums: float64 if any tensor is float64, else float32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32
