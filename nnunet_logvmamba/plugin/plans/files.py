"""Finds, reads and replaces plans files. It imports neither torch nor nnU-Net, so that commands can ask at once."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.files import read_json, replace_text

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    from nnunet_logvmamba.evaluation.dataset_json import Labels

NNUNETS_FOLDS = 5
NNUNETS_PLANS = "nnUNetPlans"
NNUNETS_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
"""Those that nnU-Net's planners write."""
SPLITS = "splits_final.json"


def find_plans(dataset: str, plans_name: str) -> tuple[Path, dict, dict]:
    """Read the plans and the ``dataset.json`` of a preprocessed data set.

    Args:
        dataset: Number (``501``) or full name (``Dataset501_BraTS2020``).
        plans_name: Name of the plans, usually ``nnUNetPlans``.

    Returns:
        Path of the plans file, its content, content of ``dataset.json``.

    Raises:
        UserError: If ``nnUNet_preprocessed`` is unset, anything is not there, or nnU-Net would not take it.
    """
    path, plans, dataset_json = read_plans(dataset, plans_name)
    check_dataset_json(dataset_json, path.with_name("dataset.json"))
    return path, plans, dataset_json


def read_plans(dataset: str, plans_name: str) -> tuple[Path, dict, Any]:
    """Do the same without asking nnU-Net whether it would take the ``dataset.json``."""
    from nnunetv2.paths import nnUNet_preprocessed  # late, as nothing of nnU-Net is to be loaded with this file

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
    if plans_name != NNUNETS_PLANS and not path.is_file():
        raise no_such_plans(path)
    contents = []
    for file in (path, dataset_file):
        if not file.is_file():
            raise UserError(f"{file} does not exist: run nnUNetv2_plan_and_preprocess for this data set")
        contents.append(read_json(file, "plan the data set anew"))
    configurations_of(contents[0], path)
    return path, contents[0], contents[1]


def no_such_plans(file: Path) -> UserError:
    """Give what to say where plans are not there that nnU-Net's usual command does not make."""
    there = []
    for other in sorted(file.parent.glob("*.json")):
        with suppress(ValueError, OSError):
            content = json.loads(other.read_text(encoding="utf-8"))
            if isinstance(content, dict) and isinstance(content.get("configurations"), dict):
                there.append(other.stem)
    number = file.parent.name.removeprefix("Dataset").partition("_")[0]
    others = f"only {', '.join(there)}: name those, or" if there else "nor any others:"
    return UserError(
        f"there are no plans {file.stem} in {file.parent}, {others} make them with nnUNetv2_plan_experiment -d "
        f"{int(number)} -pl PLANNER, and -overwrite_plans_name for another name"
    )


def configurations_of(plans: Any, file: Path) -> dict[str, dict]:
    """Give the configurations of plans.

    Raises:
        UserError: If they have none, naming the file.
    """
    configurations = plans.get("configurations") if isinstance(plans, dict) else None
    if not isinstance(configurations, dict):
        raise UserError(f"{file} has no 'configurations' as nnU-Net's plans have: plan the data set anew")
    return configurations


def check_planned(plans: dict, plans_name: str, configuration: str) -> None:
    """Refuse a configuration that plans do not have.

    Raises:
        UserError: Naming those that they have.
    """
    if configuration not in plans["configurations"]:
        there = ", ".join(plans["configurations"]) + why_not_planned(plans, configuration)
        raise UserError(f"there is no configuration '{configuration}' in {plans_name}; there are {there}")


def check_name(name: str, what: str) -> None:
    """Refuse a name for plans or a configuration; nnU-Net joins those of a model with two underscores.

    Args:
        what: Which of them, as in "cannot name plans".

    Raises:
        UserError: With what a name may hold.
    """
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9.-]|_(?!_))*", name):
        raise UserError(f"'{name}' cannot name {what}: use letters, digits, '.', '-' and single '_'")


class NotTakenError(UserError):
    """A ``dataset.json`` that nnU-Net would not plan or train with."""


def check_dataset_json(content: Any, file: Path) -> None:
    """Refuse a ``dataset.json`` whose labels or channels nnU-Net would not take.

    Raises:
        NotTakenError: Naming the file and what is wrong in it.
    """
    from nnunet_logvmamba.evaluation.dataset_json import channels_of, labels_of  # late, since no training needs them

    try:
        labels = labels_of(content, str(file))
        if not channels_of(content, str(file)):
            raise UserError(f"{file} names no channels in 'channel_names'")
        from nnunetv2.utilities.label_handling.label_handling import LabelManager  # late, because it imports torch

        LabelManager(content["labels"], content.get("regions_class_order"))
    except (AssertionError, RuntimeError) as error:  # nnU-Net's words, which name no file
        raise NotTakenError(f"{file}: {' '.join(str(error).split())}: correct it there, and plan anew") from error
    except ValueError as error:
        raise NotTakenError(f"{error}: correct it there, and plan anew") from error
    if not labels.are_regions:  # with regions only nnU-Net's check of a raw data set minds
        _refuse_gap(labels, file)


def check_to_train(content: Any, file: Path, *, raw: bool = False) -> None:
    """Refuse a ``dataset.json`` for a training that is to begin; what was trained with it can be read all the same.

    Args:
        raw: It is that of a raw data set, of which nnU-Net's check refuses more than its training.

    Raises:
        NotTakenError: Naming the file and what is wrong in it.
    """
    from nnunet_logvmamba.evaluation.dataset_json import fault_of_channels, labels_of  # late, as above

    check_dataset_json(content, file)
    if raw:
        _refuse_gap(labels_of(content, str(file)), file)
    fault = fault_of_channels(content, str(file))
    if fault is not None:
        raise NotTakenError(f"{fault}: correct it there, and plan anew")


def _refuse_gap(labels: Labels, file: Path) -> None:
    if labels.gap is not None:
        missing, above = labels.gap
        raise NotTakenError(
            f"{file}: no label has the number {missing} although there is {above}, and nnU-Net wants 0, 1, 2 …: "
            "renumber the label maps and dataset.json, and plan anew"
        )


def why_not_planned(plans: dict, name: str) -> str:
    """Say why nnU-Net left one of its own configurations out, to end a sentence; nothing where that is not known."""
    configurations = plans["configurations"]
    if name not in ("3d_fullres", "3d_lowres", "3d_cascade_fullres") or name in configurations:
        return ""
    fullres = configurations.get("3d_fullres", {})
    patch, image = fullres.get("patch_size"), fullres.get("median_image_size_in_voxels")
    if (plans.get("original_median_shape_after_transp") or [0])[0] == 1:
        return " (nnU-Net plans nothing in 3D for images of one slice)"
    if name == "3d_fullres" or not patch or not image:
        return ""
    if prod(patch) / prod(image) >= 0.25:
        sizes = (" x ".join(f"{size:g}" for size in sizes) for sizes in (patch, image))
        return (
            " (nnU-Net plans 3d_lowres and its cascade only where a patch of 3d_fullres covers less than a quarter of "
            "the median image; here they have {} and {} voxels)".format(*sizes)
        )
    return " (nnU-Net drops 3d_lowres and its cascade where it would have more than half the voxels of 3d_fullres)"


def first_fold(configuration: ConfigurationManager, dataset_json: dict, folder: Path) -> str:
    """Give the fold to train first.

    The next stage of a cascade needs predictions of every case, so it is ``all``, as it is where there are no folds and
    too few cases for nnU-Net to make them.

    Args:
        folder: Of the preprocessed data set.
    """
    cases = dataset_json.get("numTraining")
    few = isinstance(cases, int) and cases < NNUNETS_FOLDS and not (folder / SPLITS).is_file()
    return "all" if few or configuration.next_stage_names is not None else "0"


def check_folds(cases: int, splits: Path) -> None:
    """Refuse to have folds made of too few cases, on which nnU-Net's training stops without a reason.

    Args:
        splits: File of the folds.

    Raises:
        UserError: If it is not there, and nnU-Net cannot make it.
    """
    if cases < NNUNETS_FOLDS and not splits.is_file():
        raise UserError(
            f"of {cases} case(s) nnU-Net cannot make its {NNUNETS_FOLDS} folds: train the fold all, or write folds of "
            f"your own into {splits}"
        )


def first_stage_of(configurations: dict[str, Any], name: str) -> str | None:
    """The configuration before this one in a cascade, which may be inherited; None if it is no second stage."""
    seen: set[object] = set()
    while isinstance(entry := configurations.get(name), dict) and name not in seen:
        if "previous_stage" in entry:
            return entry["previous_stage"]
        seen.add(name)
        name = entry.get("inherits_from", "")
    return None


def write_plans(path: Path, plans: dict) -> None:
    """Replace a plans file in one step, so that nobody ever reads half of it."""
    replace_text(path, json.dumps(plans, indent=4) + "\n")
