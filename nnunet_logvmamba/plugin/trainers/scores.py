"""After nnU-Net's final validation: scores of our own beside its ``summary.json``; no validation is lost for them.

Surfaces of every case go into ``surface.json``, instances of cells into ``instances.json``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from nnunetv2.configuration import default_num_processes
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.files import replace_text
from nnunet_logvmamba.plugin.plans import SETTINGS, TRAINING_KEY, check_training_settings

FOLDER = "validation"
"""In the folder of a fold: nnU-Net's predictions of the validation cases and all scores of them."""

SURFACES, INSTANCES = "surface.json", "instances.json"
"""In that folder."""

REFERENCES = "instancesTr"
"""Folder of true instance maps in a raw data set, where our converter keeps them; nnU-Net does not look at it."""

SETTING = "surface_tolerance"
METRICS = ("hd95", "nsd")
METRICS_2D = (*METRICS, "nsd_umamba")


def write_surface_scores(trainer: nnUNetTrainer) -> Path | None:
    """Score HD95 and NSD of what a trainer has predicted for its validation cases, and write ``surface.json``.

    Where every case is a picture or a single slice, they are also scored by ``nsd_umamba``.

    Predictions are those in ``validation`` of the fold, truths nnU-Net's ``gt_segmentations``; both at the resolution
    and geometry of the data set. The tolerance is ``surface_tolerance`` under ``logvmamba`` in the configuration, else
    2 mm (2 pixels for pictures); policy and HD95 are those of ``logvmamba evaluate``.

    Failures end nothing: where the files cannot be scored or the scores not written, the log says why and no file is
    left, neither half of one nor an older one. nnU-Net's ``summary.json`` is never touched.

    Returns:
        The file, or None on ranks above 0 and where there is nothing to score.
    """
    return _write(trainer, SURFACES, "surfaces", _surfaces)


def write_instance_scores(trainer: nnUNetTrainer) -> Path | None:
    """Score the instances in what a trainer has predicted for its validation cases, and write ``instances.json``.

    Only for cells: pictures (2D) whose labels are background 0, interior 1 and boundary 2. Truths are the instance
    maps in ``nnUNet_raw/<data set>/instancesTr``; settings are the defaults of ``logvmamba instances``, and the file
    holds what that command writes, with one row per image.

    Failures end nothing, as in :func:`write_surface_scores`.

    Returns:
        The file, or None on ranks above 0 and where there is nothing to score.
    """
    return _write(trainer, INSTANCES, "instances", _instances)


def _write(
    trainer: nnUNetTrainer, name: str, what: str, score: Callable[[nnUNetTrainer, Path], tuple[dict, str] | None]
) -> Path | None:
    """Write what ``score`` gives from the trainer and the folder ``validation``, and say its means in the log."""
    if trainer.local_rank != 0:
        return None
    from nnunet_logvmamba.evaluation.report import as_json

    target = Path(trainer.output_folder) / FOLDER / name
    try:
        target.unlink(missing_ok=True)
        scored = score(trainer, target.parent)
        if scored is None:
            return None
        replace_text(target, as_json(scored[0]))
    except (UserError, OSError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        trainer.print_to_log_file(f"No {name}, {what} cannot be scored: {reason}", also_print_to_console=True)
        return None
    trainer.print_to_log_file(f"{what.capitalize()} ({name}): {scored[1]}", also_print_to_console=True)
    return target


def _mean(metric: str, mean: float | None, unit: str = "1") -> str:
    if mean is None:
        return f"mean {metric} undefined"
    return f"mean {metric} {mean:.4f}{'' if unit == '1' else f' {unit}'}"


def _surfaces(trainer: nnUNetTrainer, validation: Path) -> tuple[dict, str]:
    from nnunet_logvmamba.evaluation import folders
    from nnunet_logvmamba.evaluation.cases import read_labels
    from nnunet_logvmamba.evaluation.dataset_json import labels_of
    from nnunet_logvmamba.evaluation.policies import policy_for
    from nnunet_logvmamba.evaluation.scoring import Settings

    settings = check_training_settings(trainer.configuration_manager.configuration.get(TRAINING_KEY))
    tolerance = settings.get(SETTING, SETTINGS[SETTING][1])
    pairs, _ = folders.find_pairs(
        validation,
        Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations",
        endings=(trainer.dataset_json["file_ending"],),
        predicted_only=True,
    )
    flat = all(read_labels(pair.reference).values.ndim == 2 for pair in pairs)  # of volumes, the first is enough
    labels = labels_of(trainer.dataset_json, "dataset.json")
    policy = policy_for(labels.dataset_name, trainer.plans_manager.dataset_name)
    evaluation = folders.evaluate(
        pairs,
        labels,
        Settings(metrics=METRICS_2D if flat else METRICS, policy=policy),
        tolerances=tolerance,
        position=False,  # nnU-Net takes the image's, and merely warns where the label's is another
        turn="Reorient" in trainer.plans_manager.plans["image_reader_writer"],
        processes=max(1, default_num_processes),
    )
    summary = evaluation.summary
    source = (
        f"'{SETTING}' under '{TRAINING_KEY}' of configuration '{trainer.configuration_name}'"
        if SETTING in settings
        else f"default: 2 {summary['unit']}; set '{SETTING}' under '{TRAINING_KEY}' of the configuration for another"
    )
    summary["tolerances"] = {name: {**one, "source": source} for name, one in summary["tolerances"].items()}
    means = [_mean(name, summary["overall"][name]["mean"], about["unit"]) for name, about in summary["metrics"].items()]
    return {**summary, "scores": evaluation.rows}, ", ".join(means)


def _instances(trainer: nnUNetTrainer, validation: Path) -> tuple[dict, str] | None:
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
    content = {**summarize(settings, rows), "scores": rows}
    return content, ", ".join(_mean(name, content["mean"][name]["mean"]) for name in ("f1", "object_iou"))


def _references(dataset: str) -> Path:

    needed = f"true instance maps are read from nnUNet_raw/{dataset}/{REFERENCES}, as our converter writes them"
    remedy = "validate again with nnUNetv2_train ... --val once they are there"
    root = nnUNet_raw.get()
    if root is None:
        raise UserError(f"{needed}, and nnUNet_raw is not set; {remedy}")
    folder = Path(root) / dataset / REFERENCES
    if not folder.is_dir():
        raise UserError(f"{needed}, and {folder} is not a folder; {remedy}")
    return folder
