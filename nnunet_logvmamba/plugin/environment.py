"""What an installation still needs once pip is done: a torchvision that fits a CPU build of torch.

The wheels of torchvision on PyPI are made for the CUDA build of torch. Beside a CPU build they cannot be imported
("operator torchvision::nms does not exist"), and because nnU-Net's networks import timm, and timm torchvision, every
look-up of a trainer then fails. With CUDA, torch chooses torchvision and triton itself, and nothing here is touched.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.plugin.startup import FORGIVING_TORCHVISION

if TYPE_CHECKING:
    import torch

FORGIVING_TORCHVISION_PYTHON = (3, 11)  # the last one that this release has wheels for


def torch_build() -> str:
    """Say for what the installed torch was built: ``"CPU"``, or ``"CUDA 13.0"`` and the like."""
    import torch

    if torch.version.cuda is not None:
        return f"CUDA {torch.version.cuda}"
    if getattr(torch.version, "hip", None) is not None:
        return f"ROCm {torch.version.hip}"
    return "CPU"


def best_device() -> str:
    """Name the fastest device that torch finds here, as ``-device`` of nnU-Net's commands does: cuda, mps or cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_option() -> str:
    """Give what nnU-Net's commands need in order to run here, `` -device cpu`` or so; nothing where CUDA will do."""
    device = best_device()
    return "" if device == "cuda" else f" -device {device}"


def not_written_out(variable: str) -> str | None:
    """Say that a variable names a folder below ``~``, which nnU-Net takes for a name; None if it does not."""
    folder = os.environ.get(variable, "").strip()
    if not folder.startswith("~"):
        return None
    return (
        f"{variable} is {folder}, in which nnU-Net does not replace ~ by your home: export the whole path, or without "
        "the quotes around it"
    )


def version_of(distribution: str) -> str | None:
    """Give the installed version of a distribution, or None where there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def peak_memory_bytes(device: torch.device) -> int | None:
    """Give the most memory that was in use so far: tensors on a CUDA device, else what this process had resident.

    Processes that only augment are not counted. None where the system does not say.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:  # of this program alone, where getrusage may tell what the program that started it had
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not on Linux
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def torchvision_error() -> str | None:
    """Import torchvision in a fresh interpreter and give the last line of what went wrong, None if nothing did."""
    check = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    if check.returncode == 0:
        return None
    return (check.stderr.strip() or f"exit code {check.returncode}").splitlines()[-1]


def torchvision_remedy(python: tuple[int, int] = sys.version_info[:2]) -> str:
    """Say in half a sentence what makes torchvision importable beside a CPU build of torch for that Python."""
    if python <= FORGIVING_TORCHVISION_PYTHON:
        return f"run: {sys.executable} -m pip install --no-deps torchvision=={FORGIVING_TORCHVISION}"
    return "install torch and torchvision together from the CPU channel of pytorch.org"


def repair_torchvision() -> str:
    """Make torchvision importable beside a CPU build of torch and say in a line what was done.

    Raises:
        UserError: If it cannot be repaired with this interpreter; the message says what to do instead.
    """
    error = torchvision_error()
    if error is None:
        return f"torchvision {version_of('torchvision')}: can be imported"
    if sys.version_info[:2] <= FORGIVING_TORCHVISION_PYTHON:
        before = version_of("torchvision") or "(missing)"
        if _pip_install(f"torchvision=={FORGIVING_TORCHVISION}") and torchvision_error() is None:
            return f"torchvision {before}: made for CUDA, replaced by {FORGIVING_TORCHVISION}, which can be imported"
    raise UserError(
        f"torchvision {version_of('torchvision') or '(missing)'} cannot be imported beside this CPU build of torch "
        f"({error}), so nnU-Net would find no trainer: {torchvision_remedy()}"
    )


def add_triton() -> str:
    """Add a triton that interprets kernels on a CPU where torch brought none; only our tests need it."""
    if importlib.util.find_spec("triton") is not None:
        return f"triton {version_of('triton')}: present"
    if not sys.platform.startswith("linux"):
        return "triton: there is none for this platform; tests of its kernels will be skipped"
    wanted = "3.9.0" if sys.version_info >= (3, 11) else "3.8.0"
    if _pip_install(f"triton=={wanted}"):
        return f"triton {wanted}: added, to interpret kernels on the CPU in tests"
    return f"triton: version {wanted} could not be installed; tests of its kernels will be skipped"


def _pip_install(requirement: str) -> bool:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", requirement]
    return subprocess.run(command, check=False).returncode == 0


def main(argv: Sequence[str] = ()) -> int:
    """Finish the installation; called by `make install`, and by `make install-dev` with ``--tests``."""
    try:
        build = torch_build()
        print(f"torch {version_of('torch')}: {build} build")
        if build == "CPU":
            print(repair_torchvision())
            if "--tests" in argv:
                print(add_triton())
    except UserError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
