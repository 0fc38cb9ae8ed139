"""The record of a training, ``logvmamba.json`` beside its checkpoints; read without torch and nnU-Net."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path, PurePosixPath, PureWindowsPath

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.files import read_json

RECORD_NAME = "logvmamba.json"
"""Lies in the folder of a fold; read by ``logvmamba compare`` and ``logvmamba report``."""

FORMAT = 1
_WORD, _WHOLE, _NUMBER = (str,), (int,), (int, float)
KEYS = {
    "format": _WHOLE,
    "trainer": _WORD,
    "network": _WORD,
    "dataset": _WORD,
    "plans": _WORD,
    "configuration": _WORD,
    "fold": (int, str),
    "seed": _WHOLE,
    "recipe": (dict,),
    "epochs": _WHOLE,
    "iterations_per_epoch": _WHOLE,
    "validation_iterations_per_epoch": _WHOLE,
    "patch_size": (list,),
    "batch_size": _WHOLE,
    "spacing": (list,),
    "split": (dict,),
    "parameters": _WHOLE,
    "multiply_adds": _WHOLE,
    "device": (dict,),
    "versions": (dict,),
    "sessions": (list,),
    "peak_memory_bytes": _WHOLE,
    "epochs_done": _WHOLE,
    "median_seconds_per_epoch": _NUMBER,
    "seconds_per_epoch": (list,),
    "validated_epochs": _WHOLE,
}
"""What a record holds, in this order, and of which types; any of it may be absent or null but lists and versions."""

_NEVER_NULL = ("patch_size", "spacing", "sessions", "seconds_per_epoch", "versions")


@dataclass(frozen=True)
class Cost:
    """What a training takes: the key in its record, and how tables and pages show it, in units of ``size``."""

    key: str
    title: str
    unit: str
    size: float
    decimals: int = 2

    def text(self, value: float) -> str:
        """Give a value without its unit."""
        return f"{value / self.size:.{self.decimals}f}"


COSTS = (
    Cost("parameters", "parameters", "M", 1e6),
    Cost("multiply_adds", "multiply-adds", "G", 1e9),
    Cost("median_seconds_per_epoch", "s per epoch", "", 1, decimals=1),
    Cost("peak_memory_bytes", "peak memory", "GiB", 2**30),
)


def read_record(fold: Path) -> dict | None:
    """Read the record in the folder of a fold; None where there is none.

    Raises:
        UserError: If the file is not a record.
    """
    path = fold / RECORD_NAME
    if not path.is_file():
        return None
    record = read_json(path, "remove it, or copy it anew")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path} is not a record of format {FORMAT}: remove it, or update this package")
    for key, value in record.items():
        if not _fits(key, value):
            raise UserError(f"{path} is damaged, '{key}' cannot be {value!r:.40}: remove it, or copy it anew")
    return record


def _fits(key: str, value: object) -> bool:
    types = KEYS.get(key)
    if types is None:
        return True  # of a newer version
    if value is None:
        return key not in _NEVER_NULL
    if not isinstance(value, types) or isinstance(value, bool):
        return False
    if isinstance(value, float):
        return isfinite(value)
    if key == "sessions":
        return isinstance(value, list) and all(isinstance(session, dict) for session in value)
    return True


def without_paths(words: Sequence[str]) -> str:
    """Join the words of a command line, absolute paths and those of options (``--x=/a/b``) reduced to the last name."""
    return shlex.join(name_alone(word) for word in words)


def name_alone(word: str) -> str:
    """Reduce an absolute path, or that of an option, to its last name; any other word stays as it is."""
    option, sign, value = word.partition("=")
    if sign and option.startswith("-"):
        return f"{option}={name_alone(value)}"
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(word).is_absolute():
            return kind(word).name or word
    return word
