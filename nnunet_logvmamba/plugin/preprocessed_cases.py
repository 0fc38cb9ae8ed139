"""Looks through preprocessed cases once: every value is finite, every label is one of the data set's."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_logvmamba.files import replace_text

OUTSIDE = -1
"""What nnU-Net writes into a label map where the image is empty."""

_ENDINGS = (".b2nd", "_seg.b2nd", ".npz", ".npy", "_seg.npy")
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError)

Stamps = list[list[int]]
"""Size in bytes and time of change in nanoseconds of each file of a case."""


def memory_file(folder: Path) -> Path:
    """Where it is kept which cases of a preprocessed folder were sound.

    Beside the folder, since nnU-Net tells the format of the data from the endings of all files in it.
    """
    return folder.with_name(f"{folder.name}.checked.json")


def known_cases(folder: Path, labels: Sequence[int]) -> dict[str, Stamps]:
    """Give the cases that were found sound with these labels; a file that says nothing useful counts for none."""
    try:
        content = json.loads(memory_file(folder).read_text(encoding="utf-8"))
        return dict(content["cases"]) if content["labels"] == list(labels) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def remember(folder: Path, labels: Sequence[int], cases: Mapping[str, Stamps]) -> None:
    """Add cases to those that are known to be sound.

    Raises:
        OSError: If the file cannot be written; what was there stays.
    """
    content = {"labels": list(labels), "cases": {**known_cases(folder, labels), **cases}}
    replace_text(memory_file(folder), json.dumps(content) + "\n")


def unchecked(folder: Path, cases: Iterable[str], labels: Sequence[int]) -> dict[str, Stamps]:
    """Give, in order, the cases that were not checked yet or whose files changed since, with what they are now."""
    known, names = known_cases(folder, labels), set(os.listdir(folder))
    now = {case: _stamps(folder, case, names) for case in dict.fromkeys(cases)}
    return {case: stamps for case, stamps in now.items() if not stamps or known.get(case) != stamps}


def _stamps(folder: Path, case: str, names: set[str]) -> Stamps:
    files = [(folder / f"{case}{ending}").stat() for ending in _ENDINGS if f"{case}{ending}" in names]
    return [[file.st_size, file.st_mtime_ns] for file in files]


def fault(dataset: nnUNetBaseDataset, case: str, labels: Sequence[int], channels: Mapping[str, str]) -> str | None:
    """Say what is wrong with one preprocessed case, None if nothing is.

    Args:
        dataset: What reads cases; images are (channel, z, y, x), label maps (1, z, y, x).
        labels: Values that a label map may hold.
        channels: Names of the channels by their number as a string, as in ``dataset.json``.
    """
    try:
        image, label_map, *_ = dataset.load_case(case)
        for channel in range(image.shape[0]):  # one at a time, since cases may be large
            number = np.count_nonzero(~np.isfinite(np.asarray(image[channel])))
            if number:
                return f"{channel_in_words(channel, channels)} holds {number} value(s) that are not finite"
        values = np.asarray(label_map[0])
        strange = ~np.isin(values, labels)
        if strange.any():
            found = ", ".join(f"{value:g}" for value in np.unique(values[strange])[:5].tolist())
            return f"its label map holds {found} in {np.count_nonzero(strange)} voxel(s)"
    except _UNREADABLE as error:
        return f"it cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
    return None


def channel_in_words(channel: int, channels: Mapping[str, Any]) -> str:
    """Number and, where ``dataset.json`` has one, name of a channel."""
    name = channels.get(str(channel))
    return f"channel {channel}" if name is None else f"channel {channel} ({name})"
