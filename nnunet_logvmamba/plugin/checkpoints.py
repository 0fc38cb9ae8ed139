"""nnU-Net's checkpoints, read without running code from them, and compared with a network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.plugin.checkpoint_damage import damage_of

if TYPE_CHECKING:
    import torch
    from torch import nn

FINAL = "checkpoint_final.pth"
CHECKPOINTS = (FINAL, "checkpoint_latest.pth", "checkpoint_best.pth")
"""Those that a training leaves, the one to prefer first."""


class DamagedError(UserError):
    """A checkpoint is not whole; ``damage`` says in a few words what is wrong with it."""

    def __init__(self, path: Path, damage: str):
        super().__init__(f"{path} is damaged ({damage}): copy it anew")
        self.damage = damage


def check_whole(path: Path) -> None:
    """Raise DamagedError if a checkpoint is not whole."""
    damage = damage_of(path)
    if damage is not None:
        raise DamagedError(path, damage)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net; its tensors stay in the file until they are used.

    Raises:
        DamagedError: If it is not whole.
        UserError: If it is none, or holds more than tensors, numbers and text, which would have to be run to be read.
    """
    check_whole(path)
    from nnunet_logvmamba.plugin.trust import read_as_data  # late, because it imports torch

    content = read_as_data(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint of nnU-Net: copy the one that its training wrote")
    return content


def is_mask(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds nothing but zeros and minus infinity, as the buffer of an attention's mask."""
    allowed = tensor == 0
    return bool(allowed.any() and (allowed | (tensor == -inf)).all())


def _began(content: Mapping[str, Any]) -> float:
    """When the first epoch of a checkpoint's training began, which all of its checkpoints share; 0 if none has."""
    logging = content.get("logging")
    starts = logging.get("epoch_start_timestamps") if isinstance(logging, dict) else None
    return float(starts[0]) if starts else 0.0


def why_outdated(contents: Mapping[Path, Mapping[str, Any]]) -> dict[Path, str]:
    """Say which checkpoints of a fold are no longer where its training is, and why.

    They are of an earlier training, or the end of one that was made longer since.
    """
    newest = max(map(_began, contents.values()), default=0.0)
    why = {path: "of an earlier training" for path, content in contents.items() if _began(content) < newest}
    epochs = {path: content.get("current_epoch") or 0 for path, content in contents.items() if path not in why}
    return why | {
        path: f"of {done} epoch(s)"
        for path, done in epochs.items()
        if path.name == FINAL and done < max(epochs.values())
    }


def logging_of_checkpoints(fold: Path) -> dict[str, list] | None:
    """Give what was logged per epoch, and ``seconds``, by the training of a fold that began last.

    It is that of the first checkpoint that can be read, and that ``--c`` would take.
    """
    found = {}
    for path in (fold / name for name in CHECKPOINTS):
        with suppress(ValueError):  # one that is damaged, or would have to be run to be read
            content = read_checkpoint(path) if path.is_file() else {}
            if isinstance(content.get("logging"), dict):
                found[path] = content
    if not found:
        return None
    outdated = why_outdated(found)
    logging = next(content["logging"] for path, content in found.items() if path not in outdated)
    starts, ends = (logging.get(f"epoch_{which}_timestamps", []) for which in ("start", "end"))
    return {**logging, "seconds": [float(end) - float(start) for start, end in zip(starts, ends)]}


def first_difference(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> str | None:
    """Say in which tensor weights differ in name or shape from those of a network, None if they fit."""
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            there, here = (f"has shape {shapes[key]}" if key in shapes else "is absent" for shapes in (found, expected))
            return f"'{key}' {there} in the weights and {here} in the network"
    return None
