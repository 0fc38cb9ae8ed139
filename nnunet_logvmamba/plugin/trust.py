"""Files that somebody else may have made are read as data: tensors, numbers and text, and nothing that would be run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_logvmamba.errors import UserError

ALLOWED = [
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
]
"""What a checkpoint may hold beside what torch allows (tensors, plain containers, devices): NumPy's numbers, as nnU-Net
logs them, under their names of NumPy 1 and 2. They stay allowed, since of torch's contexts the inner one would end what
the outer one allows."""
torch.serialization.add_safe_globals(ALLOWED)

_FORCED, _LIFTED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def read_as_data(path: Path) -> Any:
    """Read a file of PyTorch without running code from it; its tensors stay in the file until they are used.

    Raises:
        UserError: If it holds anything that would have to be run, or cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception as error:  # torch has no class of its own for what it refuses
        names = _more_than_data(path)
        if names:
            raise UserError(
                f"{path} holds more than weights and settings ({', '.join(names)}), which would be run to read it: do "
                "not use it, unless you trust whoever made it; ask for a checkpoint as nnU-Net writes it"
            ) from error
        reason = " ".join(str(error).split(". ")[0].split())[:200] or type(error).__name__
        raise UserError(f"{path} cannot be read as a checkpoint ({reason}): copy it anew") from error


def _more_than_data(path: Path) -> list[str]:
    """Names of functions and classes in a file of PyTorch that are not allowed, found without running any."""
    with suppress(Exception):  # it may be no such file
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return []


_readers: list[dict[str, str | None]] = []


@contextmanager
def data_only() -> Iterator[None]:
    """Have ``torch.load`` in this process read data alone, whatever it is asked; torch has a variable for that.

    It ends when the last one does, in whatever order they end.
    """
    found = {name: os.environ.pop(name, None) for name in (_FORCED, _LIFTED)}  # torch refuses to read if both are set
    _readers.append(_readers[0] if _readers else found)
    os.environ[_FORCED] = "1"
    try:
        yield
    finally:
        before = _readers.pop()
        if not _readers:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
