"""Console scripts, run as a user runs them: in a process of their own and from another folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent

# What a test must not inherit: the user's data, a search path that only a running Python has set, what only tests of
# kernels need, how malloc keeps memory, and a limit on OpenMP, under which nnU-Net's own trainers wait forever for a
# thread on a CPU.
_NOT_INHERITED = (
    "nnUNet_raw",
    "nnUNet_preprocessed",
    "nnUNet_results",
    "nnUNet_extTrainer",
    "nnUNet_compile",
    "TRITON_INTERPRET",
    "nnUNet_wandb_enabled",
    "nnUNet_logvmamba_pretrained",
    "PYTHONPATH",
    "OMP_THREAD_LIMIT",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "GLIBC_TUNABLES",
)


@dataclass(frozen=True)
class NnunetFolders:
    """The three folders of nnU-Net, all below one that belongs to a test."""

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def below(cls, root: Path) -> NnunetFolders:
        """Create the folders ``raw``, ``preprocessed`` and ``results``."""
        folders = cls(*(Path(root) / name for name in ("raw", "preprocessed", "results")))
        for folder in (folders.raw, folders.preprocessed, folders.results):
            folder.mkdir(parents=True, exist_ok=True)
        return folders

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead nnU-Net to these folders; for ``run_command(..., **folders.environment)``."""
        return {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
        }


@contextmanager
def environment_with(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process for a while, for what need not run in one of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def run_command(
    args, *, check: bool = True, cwd: Path | None = None, timeout: float = 1800, **env: str
) -> subprocess.CompletedProcess:
    """Run a console script of this environment, e.g. ``["nnUNetv2_train", 501, "2d", 0]``, and give what it printed.

    Args:
        args: Script or program, then its arguments; converted to strings. ``python`` is this interpreter.
        check: Fail, showing the end of the output, if the exit code is not 0.
        cwd: Where to run; a new empty folder by default, so that nothing is found because of where the test runs.
        env: Variables to set. Of the user's nnU-Net settings none is inherited.

    Returns:
        The finished process; ``stdout`` and ``stderr`` are text.
    """
    program, *rest = map(str, args)
    script = Path(sys.executable) if program == "python" else BIN / program
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [str(script) if script.exists() else program, *rest],
            cwd=cwd or elsewhere,
            env=inherited | {name: str(value) for name, value in env.items()},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    if check and done.returncode != 0:
        raise AssertionError(
            f"{' '.join([program, *rest])}: exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return done


def commands_in(text: str) -> list[str]:
    """The commands that a plan of work prints behind a dollar."""
    return re.findall(r"^\$ (.*)$", text, re.M)
