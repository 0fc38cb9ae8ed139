"""What takes long to make is made once, by the first process of the tests that wants it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

_base: list[Path] = []


def begin(base: Path) -> None:
    """Say where this process keeps its files; processes of pytest-xdist share the folder above."""
    _base[:] = [base.parent if "PYTEST_XDIST_WORKER" in os.environ else base]


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Give a folder that ``make`` filled; to be read. What fails is made again by the next that wants it."""
    folder = _base[0] / name
    done = folder.with_name(f"{name}.done")
    with FileLock(folder.with_name(f"{name}.lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
