"""Which files are adopted; nothing in them is looked at but whether they are whole, so torch is not needed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.plugin.checkpoints import check_whole
from nnunet_logvmamba.plugin.environment import not_written_out

DATASET = re.compile(r"Dataset\d+_[\w.-]+")
"""Names of data sets that a model can be adopted for."""


def find_checkpoints(source: Path, dataset: str, checkpoint: str, fold: str | None) -> list[tuple[str | None, Path]]:
    """Give the files to adopt, each with the fold that the user or a folder names.

    Args:
        source, dataset, checkpoint, fold: As for ``adopt``.

    Raises:
        UserError: If there are none, one is damaged, the data set has no such name, or ``nnUNet_results`` is not set.
    """
    if not os.environ.get("nnUNet_results", "").strip():  # noqa: SIM112 - nnU-Net's name
        raise UserError("nnUNet_results is not set: export it as the folder of nnU-Net's trained models")
    if (fault := not_written_out("nnUNet_results")) is not None:
        raise UserError(fault)
    if not dataset.isdecimal() and not DATASET.fullmatch(dataset):
        raise UserError(f"'{dataset}' is neither the number of a data set nor a name such as Dataset501_BraTS2020")
    found = _named(source, checkpoint, fold)
    for _, path in found:
        check_whole(path)
    return found


def _named(source: Path, checkpoint: str, fold: str | None) -> list[tuple[str | None, Path]]:
    source = source.absolute()
    if source.is_file():
        return [(fold or _fold_of(source.parent), source)]
    if not source.is_dir():
        raise UserError(f"{source} is not there: name the results folder of a fork, a fold of it, or a checkpoint")
    alone = _fold_of(source) is not None
    folds = [source] if alone else folds_of(source)
    if not folds:
        raise UserError(
            f"{source} has no folds: name the folder TRAINER__PLANS__CONFIGURATION of a training, a fold of it, or a "
            "checkpoint"
        )
    if fold is not None and not alone:
        folds = [one for one in folds if one.name == f"fold_{fold}"]
        if not folds:
            there = ", ".join(one.name[5:] for one in folds_of(source))
            raise UserError(f"{source} has no fold {fold}, it has {there}: name one of these")
    files = [one / checkpoint for one in folds]
    missing = [path for path in files if not path.is_file()]
    if missing:
        others = sorted(path.name for path in missing[0].parent.glob("*.pth"))
        remedy = f"name another with --checkpoint, there is {' and '.join(others)}" if others else "copy it anew"
        raise UserError(f"{missing[0]} does not exist: {remedy}")
    return [((fold if alone else None) or _fold_of(path.parent), path) for path in files]


def _fold_of(folder: Path) -> str | None:
    """The fold that a folder is called after, whatever the folder around it is called."""
    found = re.fullmatch(r"fold_(\d+|all)", folder.name)
    return None if found is None else found[1]


def folds_of(model: Path) -> list[Path]:
    """Give the folders of folds in a folder, whatever that is called, fold 10 behind fold 9."""
    folds = [path for path in model.iterdir() if path.is_dir() and _fold_of(path) is not None]
    return sorted(folds, key=lambda path: (len(path.name), path.name))
