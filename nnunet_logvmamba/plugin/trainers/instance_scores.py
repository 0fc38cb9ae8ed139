"""After nnU-Net's final validation on cells: scores of their instances, in a file of our own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2.configuration import default_num_processes
from nnunetv2.paths import nnUNet_raw

from nnunet_logvmamba.plugin.trainers.validation_scores import mean_in_words, write_scores

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

FILE = "instances.json"
"""In the folder ``validation`` of a fold, beside nnU-Net's ``summary.json``."""

REFERENCES = "instancesTr"
"""Folder of true instance maps in a raw data set, where our converter keeps them; nnU-Net does not look at it."""


def write_instance_scores(trainer: nnUNetTrainer) -> Path | None:
    """Score the instances in what a trainer has predicted for its validation cases, and write ``instances.json``.

    Only for cells: pictures (2D) whose labels are background 0, interior 1 and boundary 2. Truths are the instance
    maps in ``nnUNet_raw/<data set>/instancesTr``; settings are the defaults of ``logvmamba instances``, and the file
    holds what that command writes, with one row per image.

    Failures end nothing: see :func:`.validation_scores.write_scores`.

    Returns:
        The file, or None on ranks above 0 and where there is nothing to score.
    """
    return write_scores(trainer, FILE, "instances", _score, _in_words)


def _score(trainer: nnUNetTrainer, validation: Path) -> dict | None:
    from nnunet_logvmamba.evaluation.cases import PICTURE_ENDINGS, check_pairs, find_cases, read_labels
    from nnunet_logvmamba.evaluation.cells import LABEL_SUFFIXES, CellFiles, CellSettings, recover_and_score, summarize
    from nnunet_logvmamba.evaluation.dataset_json import labels_of
    from nnunet_logvmamba.evaluation.instances import BOUNDARY, INTERIOR
    from nnunet_logvmamba.evaluation.parallel import map_cases

    labels = labels_of(trainer.dataset_json, "dataset.json")
    ending = trainer.dataset_json["file_ending"]
    cells = {"interior": (INTERIOR,), "boundary": (BOUNDARY,)}
    if labels.values != cells or labels.ignored is not None or ending not in PICTURE_ENDINGS:
        return None
    predictions = find_cases(validation, endings=(ending,))
    if read_labels(next(iter(predictions.values()))).values.ndim != 2:
        return None
    folder = _references(trainer.plans_manager.dataset_name)
    references = find_cases(folder, endings=PICTURE_ENDINGS, suffixes=LABEL_SUFFIXES)
    check_pairs(predictions, references, validation, folder, predicted_only=True)
    settings = CellSettings()
    rows = map_cases(
        partial(recover_and_score, settings),
        [CellFiles(case, path, references[case]) for case, path in predictions.items()],
        processes=max(1, default_num_processes),
        text="instances",
    )
    return {**summarize(settings, rows), "scores": rows}


def _references(dataset: str) -> Path:
    from nnunet_logvmamba.evaluation.cases import CaseError

    needed = f"true instance maps are read from nnUNet_raw/{dataset}/{REFERENCES}, as our converter writes them"
    remedy = "validate again with nnUNetv2_train ... --val once they are there"
    root = nnUNet_raw.get()
    if root is None:
        raise CaseError(f"{needed}, and nnUNet_raw is not set; {remedy}")
    folder = Path(root) / dataset / REFERENCES
    if not folder.is_dir():
        raise CaseError(f"{needed}, and {folder} is not a folder; {remedy}")
    return folder


def _in_words(content: dict) -> str:
    return ", ".join(mean_in_words(name, content["mean"][name]["mean"]) for name in ("f1", "object_iou"))
