"""What can run here, which backend "auto" means, and how to say no politely.

A backend is a module with two functions that only compute::

    forward(u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus) -> (y, last_state)
    backward(grad_y, grad_last_state, u, delta, ..., initial_state, delta_softplus) -> eight gradients

Everything they promise beyond that (dtypes, layout, aliasing, rows in another order) is written in ``ops/README.md``.
"""

from __future__ import annotations

import functools
import getpass
import hashlib
import importlib
import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.files import may_be_written


@dataclass(frozen=True)
class Backend:
    """Where a backend lives and when it can run.

    ``obstacle`` gets a device and returns None, or one sentence with the reason and, where there is one, the remedy. It
    imports nothing. ``made_for`` is the device type whose fast path this is, None for the portable ones. One that is
    not ``complete`` refuses some arguments, and is never what "auto" means.
    """

    module: str
    obstacle: Callable[[torch.device], str | None]
    made_for: str | None = None
    complete: bool = True


def _runs_everywhere(device: torch.device) -> str | None:
    return None


def _needs_numba(device: torch.device) -> str | None:
    if device.type != "cpu":
        return "It runs on the CPU only."
    return None if importlib.util.find_spec("numba") else "numba is not installed; run: pip install numba"


def _needs_triton(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; it comes with torch for CUDA on Linux, else run: pip install triton"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type == "cuda" and interpreted:
        return "TRITON_INTERPRET=1 is set, so its kernels would run on the CPU; unset it."
    if device.type == "cuda" or (device.type == "cpu" and interpreted):
        return None
    return "It runs on GPUs, and for checks, slowly, on a CPU when Python is started with TRITON_INTERPRET=1."


MAMBA_KERNEL = "selective_scan_cuda"
"""Module of mamba-ssm's kernel, which the package can do without; its main builds it only when asked to."""

MAMBA_BUILD = "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm"
MAMBA_REBUILD = f"{MAMBA_BUILD} --force-reinstall --no-deps --no-cache-dir"


def _needs_mamba_ssm(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "It runs on CUDA devices only."
    if importlib.util.find_spec("mamba_ssm") is None:
        return f"mamba-ssm is not installed; it is the extra [cuda], and its kernel is built by {MAMBA_BUILD}."
    return (
        None if importlib.util.find_spec(MAMBA_KERNEL) else f"mamba-ssm was built without its kernel: {MAMBA_REBUILD}."
    )


# In order of preference: "auto" is the first that can run on the device at hand.
BACKENDS = {
    "numba": Backend("nnunet_logvmamba.ops.scan.numba_launch", _needs_numba, made_for="cpu"),
    "triton": Backend("nnunet_logvmamba.ops.scan.triton_launch", _needs_triton, made_for="cuda"),
    "mamba_ssm": Backend("nnunet_logvmamba.ops.scan.vendor", _needs_mamba_ssm, made_for="cuda", complete=False),
    "chunked": Backend("nnunet_logvmamba.ops.scan.chunked", _runs_everywhere),
    "reference": Backend("nnunet_logvmamba.ops.scan.reference", _runs_everywhere),
}
BACKEND_NAMES = ("auto", *BACKENDS)
# What an optional package can raise while it is imported: it is absent, built for another system, or broken.
IMPORT_FAILURES = (ImportError, OSError, RuntimeError)


def obstacle(name: str, device: torch.device | str) -> str | None:
    """Say why a backend cannot run on a device, or None if nothing speaks against it.

    Raises:
        ValueError: If there is no backend of that name; the message lists the names there are.
    """
    check_name(name)
    return None if name == "auto" else BACKENDS[name].obstacle(torch.device(device))


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Names of the backends that can run on a device, the preferred one first."""
    return tuple(name for name in BACKENDS if obstacle(name, device) is None)


def check_name(name: str) -> None:
    """Raise UserError, listing the valid names, unless ``name`` is one of them."""
    if name not in BACKEND_NAMES:
        raise UserError(f"Unknown scan backend {name!r}; choose one of: {', '.join(BACKEND_NAMES)}.")


def choose(name: str, device: torch.device) -> ModuleType:
    """Load the backend of that name, or for ``"auto"`` the preferred one that works on that device.

    Raises:
        ValueError: If the name is unknown, or the backend cannot run on the device; the message says why and names
            those that can.
    """
    if name == "auto":
        name = automatic(device.type, device.index)
    reason = obstacle(name, device)
    if reason is None:
        try:
            return importlib.import_module(BACKENDS[name].module)
        except IMPORT_FAILURES as error:
            reason = f"It cannot be imported ({type(error).__name__}: {error})."
    others = ", ".join(other for other in available_backends(device) if other != name)
    raise ValueError(f"Scan backend {name!r} cannot run on device {device}: {reason} Available here: {others}.")


@functools.cache
def automatic(device_type: str, index: int | None = None) -> str:
    """Name of the preferred backend that works on a device: each is run once and compared with the reference.

    Warns:
        RuntimeWarning: Once per device, if its own fast path does not work or there is none, with the reason.
    """
    device = torch.device(device_type, index)
    complaints = []
    for name, backend in BACKENDS.items():
        if backend.made_for is None:
            break
        if backend.made_for != device_type or not backend.complete:
            continue
        reason = backend.obstacle(device) or what_fails(name, device)
        if reason is None:
            break
        complaints.append(f"{name!r}: {reason}")
    if complaints:
        warnings.warn(
            f"The selective scan runs on {device} with the slow portable backend {name!r}. {' '.join(complaints)} "
            f"`logvmamba doctor` shows what works.",
            RuntimeWarning,
            stacklevel=2,
        )
    return name


# Relative to the largest value of the float64 reference. Backends sum in float32, whose rounding is 6e-8, over a few
# dozen steps here; a wrong formula is off by far more.
LARGEST_ERROR = 1e-4


def what_fails(name: str, device: torch.device | str) -> str | None:
    """Run a backend once on a small input and say in a sentence what went wrong, or None if it agrees with the
    reference.
    """
    return try_once(name, device)[1]


def try_once(name: str, device: torch.device | str) -> tuple[float, str | None]:
    """Give the largest error of a backend on a small input, infinite if it raises, and what ``what_fails`` says.

    Raises:
        torch.OutOfMemoryError: If the device has no memory left for it, which says nothing of the backend.
    """
    # A backend can fail in as many ways as there are compilers and drivers; each is what we are asked to report.
    try:
        error = largest_error(name, device)
    except torch.OutOfMemoryError:
        raise  # of this moment and not of the backend
    except Exception as failure:
        return float("inf"), f"It raises {type(failure).__name__}: {(str(failure).strip() or '-').splitlines()[0]}."
    return error, None if error <= LARGEST_ERROR else f"It gives wrong values, off by {error:.0e} of the largest."


def largest_error(name: str, device: torch.device | str) -> float:
    """Run a backend forward and backward on a small float32 input and compare with the float64 reference.

    A backend that is not ``complete`` is given no state to start from.

    Returns:
        The largest absolute difference of the output and of each gradient, each relative to the largest absolute
        value of its reference; infinite if a value is not finite.
    """
    from nnunet_logvmamba.ops.scan import rows  # not above, since the backends import this module

    inputs, upstream, order = check_arguments()
    tested = importlib.import_module(BACKENDS[name].module)
    if not BACKENDS[name].complete:
        inputs = (*inputs[:7], None, inputs[8])

    # Below autograd: "auto" asks from inside the op.
    @torch.no_grad()
    def values(dtype: torch.dtype, device: torch.device | str, compute: ModuleType) -> list[torch.Tensor]:
        tensors = [None if tensor is None else tensor.to(dtype).to(device) for tensor in inputs]
        gradients = [tensor.to(dtype).to(device) for tensor in upstream]
        arguments = (*tensors, order.to(device), True)
        with torch.device("cpu"):  # as inside the op, which no default device reaches
            outputs = (*rows.forward(compute, *arguments), *rows.backward(compute, *gradients, *arguments))
        return [tensor.cpu().double() for tensor in outputs if tensor is not None]

    expected = values(torch.float64, "cpu", importlib.import_module(BACKENDS["reference"].module))
    found = values(torch.float32, device, tested)
    errors = [((x - y).abs().max() / y.abs().max()).item() for x, y in zip(found, expected, strict=True)]
    return max(error if error == error else float("inf") for error in errors)


def check_arguments() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """What a backend is tried on, in float64 on the CPU: tensors, upstream gradients and the order of rows."""
    batch, length, extra, channels, groups, state = 2, 67, 3, 72, 2, 16
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")

    inputs = (
        normal(batch, length, channels),  # u
        normal(batch, length + extra, channels),  # delta
        -torch.exp(normal(channels, state)),  # A
        normal(batch, length + extra, groups, state),  # B
        normal(batch, length + extra, groups, state),  # C
        normal(channels),  # D
        normal(channels),  # delta_bias
        normal(batch, channels, state),  # initial_state
        normal(batch, extra, channels),  # context
    )
    upstream = (normal(batch, length, channels), normal(batch, channels, state))
    return inputs, upstream, torch.randperm(length + extra, generator=generator, device="cpu")


_birthplace = os.getpid()


def forked() -> bool:
    """Whether this process was forked after the package was imported: threads of the parent are then not here, and
    waiting for an OpenMP team of theirs would never end.
    """
    return os.getpid() != _birthplace


def compiled_code_folder() -> Path:
    """Folder in which the compiled scan is kept, below ``NUMBA_CACHE_DIR`` or in the user's cache folder.

    A part of a checksum of the sources is in its name, so that no version runs the code of another.

    Raises:
        RuntimeError: If the user has no home folder and names none.
    """
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named:
        base = Path(named)
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    sources = sorted((Path(__file__).parent / "scan").glob("numba_*.py"))
    checksum = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return base / "nnunet_logvmamba" / f"numba-{checksum[:8]}"


# Read before torch.compile sets it for its own kernels, to a folder that may not outlive the machine's next start.
_TRITON_CACHE_DIR = os.environ.get("TRITON_CACHE_DIR")


def triton_cache_folder() -> Path:
    """Folder in which the kernels of the scan are kept, Triton's own: what ``TRITON_CACHE_DIR`` named when this package
    was imported, else ``.triton/cache`` below ``TRITON_HOME`` or the user's home.

    Where that home cannot be written to, as in many containers, it is one of this user for files that may go.
    """
    if _TRITON_CACHE_DIR:
        return Path(_TRITON_CACHE_DIR)
    kept = Path(os.environ.get("TRITON_HOME") or os.path.expanduser("~"), ".triton", "cache")
    return kept if may_be_written(kept) else _passing_folder()


@functools.cache
def _passing_folder() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    folder = Path(tempfile.gettempdir(), f"triton_{user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not folder.is_symlink() and (not hasattr(os, "getuid") or folder.stat().st_uid == user):
            return folder
    except OSError:
        pass  # it is a file, or nobody may make one there
    return Path(tempfile.mkdtemp(prefix="triton_"))  # nobody else's code is run


def compute_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """Type of the state and of all sums: float64 if any tensor is float64, else float32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32
