"""Finds, reads and replaces plans files."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_logvmamba.evaluation.cases import CaseError
from nnunet_logvmamba.evaluation.dataset_json import channels_of, labels_of


def find_plans(dataset: str, plans_name: str) -> tuple[Path, dict, dict]:
    """Read the plans and the ``dataset.json`` of a preprocessed data set.

    Args:
        dataset: Number (``501``) or full name (``Dataset501_BraTS2020``).
        plans_name: Name of the plans, usually ``nnUNetPlans``.

    Returns:
        Path of the plans file, its content, content of ``dataset.json``.

    Raises:
        ValueError: If ``nnUNet_preprocessed`` is unset or anything is not there.
    """
    root = nnUNet_preprocessed.get()
    if root is None:
        raise ValueError("nnUNet_preprocessed is not set: export it as the folder of nnU-Net's preprocessed data")
    if dataset.isdecimal():
        pattern = f"Dataset{int(dataset):03d}_*"
    elif re.fullmatch(r"Dataset[0-9]+_[^/]+", dataset):
        pattern = dataset
    else:
        there = ", ".join(sorted(path.name for path in Path(root).glob("Dataset*_*") if path.is_dir()))
        raise ValueError(
            f"'{dataset}' is neither the number of a data set nor a name such as Dataset501_BraTS2020; in {root} "
            + (f"there are {there}" if there else "there is none")
        )
    folders = sorted(path for path in Path(root).glob(pattern) if path.is_dir())
    if len(folders) != 1:
        found = " and ".join(folder.name for folder in folders) if folders else "none"
        raise ValueError(f"one data set {pattern} is needed in {root}, found {found}: run nnUNetv2_plan_and_preprocess")
    path, dataset_file = folders[0] / f"{plans_name}.json", folders[0] / "dataset.json"
    contents = []
    for file in (path, dataset_file):
        if not file.is_file():
            raise ValueError(f"{file} does not exist: run nnUNetv2_plan_and_preprocess for this data set")
        try:
            contents.append(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{file} is not valid JSON ({error}): plan the data set anew") from error
    check_dataset_json(contents[1], dataset_file)
    return path, *contents


def check_dataset_json(content: object, file: Path) -> None:
    """Refuse a ``dataset.json`` whose labels or channels nnU-Net would not take.

    Raises:
        ValueError: Naming the file and what is wrong in it.
    """
    try:
        labels_of(content, str(file))
        if not channels_of(content, str(file)):
            raise ValueError(f"{file} names no channels in 'channel_names'")
        LabelManager(content["labels"], content.get("regions_class_order"))
    except (AssertionError, RuntimeError) as error:  # nnU-Net's words, which name no file
        raise ValueError(f"{file}: {' '.join(str(error).split())}: correct it there, and plan anew") from error
    except (CaseError, ValueError) as error:
        raise ValueError(f"{error}: correct it there, and plan anew") from error


def write_plans(path: Path, plans: dict) -> None:
    """Replace a plans file in one step, so that nobody ever reads half of it."""
    path = path.resolve()  # a link stays a link
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(plans, file, indent=4)
            file.write("\n")
        shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
