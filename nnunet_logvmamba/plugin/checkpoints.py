"""nnU-Net's checkpoints, read without running code from them, and compared with a network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nnunet_logvmamba.errors import UserError

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
"""Those that a training leaves, the one to prefer first."""

# Numbers of NumPy, as nnU-Net logs them; loading with these alone runs no code from the file.
_SAFE = [
    *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net; its tensors stay in the file until they are used.

    Raises:
        UserError: If it is none, or holds more than tensors, numbers and text, which would have to be run to be read.
    """
    try:
        with torch.serialization.safe_globals(_SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch has no class of its own for what it refuses
        if isinstance(error, MemoryError):
            raise
        reason = " ".join(str(error).split(". ")[0].split())[:200] or type(error).__name__
        raise UserError(f"{path} cannot be read as a checkpoint ({reason}): copy it anew") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint of nnU-Net: copy the one that its training wrote")
    return content


def logging_of_checkpoints(fold: Path) -> dict[str, list] | None:
    """Give what was logged per epoch, and ``seconds``, out of the first checkpoint of a fold that can be read."""
    for path in (fold / name for name in CHECKPOINTS):
        with suppress(ValueError):  # one that would have to be run to be read
            logging = read_checkpoint(path).get("logging") if path.is_file() else None
            if isinstance(logging, dict):
                starts, ends = (logging.get(f"epoch_{which}_timestamps", []) for which in ("start", "end"))
                return {**logging, "seconds": [float(end) - float(start) for start, end in zip(starts, ends)]}
    return None


def first_difference(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> str | None:
    """Say in which tensor weights differ in name or shape from those of a network, None if they fit."""
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            there, here = (f"has shape {shapes[key]}" if key in shapes else "is absent" for shapes in (found, expected))
            return f"'{key}' {there} in the weights and {here} in the network"
    return None
