"""Finds, reads and replaces plans files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.files import read_json, replace_text


def find_plans(dataset: str, plans_name: str) -> tuple[Path, dict, dict]:
    """Read the plans and the ``dataset.json`` of a preprocessed data set.

    Args:
        dataset: Number (``501``) or full name (``Dataset501_BraTS2020``).
        plans_name: Name of the plans, usually ``nnUNetPlans``.

    Returns:
        Path of the plans file, its content, content of ``dataset.json``.

    Raises:
        UserError: If ``nnUNet_preprocessed`` is unset or anything is not there.
    """
    root = nnUNet_preprocessed.get()
    if root is None:
        raise UserError("nnUNet_preprocessed is not set: export it as the folder of nnU-Net's preprocessed data")
    if dataset.isdecimal():
        pattern = f"Dataset{int(dataset):03d}_*"
    elif re.fullmatch(r"Dataset[0-9]+_[^/]+", dataset):
        pattern = dataset
    else:
        there = ", ".join(sorted(path.name for path in Path(root).glob("Dataset*_*") if path.is_dir()))
        raise UserError(
            f"'{dataset}' is neither the number of a data set nor a name such as Dataset501_BraTS2020; in {root} "
            + (f"there are {there}" if there else "there is none")
        )
    folders = sorted(path for path in Path(root).glob(pattern) if path.is_dir())
    if len(folders) != 1:
        found = " and ".join(folder.name for folder in folders) if folders else "none"
        raise UserError(f"one data set {pattern} is needed in {root}, found {found}: run nnUNetv2_plan_and_preprocess")
    path, dataset_file = folders[0] / f"{plans_name}.json", folders[0] / "dataset.json"
    contents = []
    for file in (path, dataset_file):
        if not file.is_file():
            raise UserError(f"{file} does not exist: run nnUNetv2_plan_and_preprocess for this data set")
        contents.append(read_json(file, "plan the data set anew"))
    check_dataset_json(contents[1], dataset_file)
    return path, *contents


def check_dataset_json(content: Any, file: Path) -> None:
    """Refuse a ``dataset.json`` whose labels or channels nnU-Net would not take.

    Raises:
        UserError: Naming the file and what is wrong in it.
    """
    from nnunet_logvmamba.evaluation.dataset_json import channels_of, labels_of  # late, since no training needs them

    try:
        labels_of(content, str(file))
        if not channels_of(content, str(file)):
            raise UserError(f"{file} names no channels in 'channel_names'")
        LabelManager(content["labels"], content.get("regions_class_order"))
    except (AssertionError, RuntimeError) as error:  # nnU-Net's words, which name no file
        raise UserError(f"{file}: {' '.join(str(error).split())}: correct it there, and plan anew") from error
    except ValueError as error:
        raise UserError(f"{error}: correct it there, and plan anew") from error


def write_plans(path: Path, plans: dict) -> None:
    """Replace a plans file in one step, so that nobody ever reads half of it."""
    replace_text(path, json.dumps(plans, indent=4) + "\n")
