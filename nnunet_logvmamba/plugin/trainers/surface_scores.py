"""After nnU-Net's final validation: surface distances of the predicted cases, in a file of our own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2.configuration import default_num_processes

from nnunet_logvmamba.plugin.plans import TRAINING_KEY, check_training_settings
from nnunet_logvmamba.plugin.trainers.validation_scores import mean_in_words, write_scores

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

FILE = "surface.json"
"""In the folder ``validation`` of a fold, beside nnU-Net's ``summary.json``."""

SETTING = "surface_tolerance"
DEFAULT_TOLERANCE = 2.0
METRICS = ("hd95", "nsd")
METRICS_2D = (*METRICS, "nsd_umamba")


def write_surface_scores(trainer: nnUNetTrainer) -> Path | None:
    """Score HD95 and NSD of what a trainer has predicted for its validation cases, and write ``surface.json``.

    Where every case is a picture or a single slice, they are also scored by ``nsd_umamba``.

    Predictions are those in ``validation`` of the fold, truths nnU-Net's ``gt_segmentations``; both at the resolution
    and geometry of the data set. The tolerance is ``surface_tolerance`` under ``logvmamba`` in the configuration, else
    2 mm (2 pixels for pictures); policy and HD95 are those of ``logvmamba evaluate``.

    Failures end nothing: see :func:`.validation_scores.write_scores`.

    Returns:
        The file, or None on ranks above 0 and where there is nothing to score.
    """
    return write_scores(trainer, FILE, "surfaces", _score, _in_words)


def _in_words(content: dict) -> str:
    return ", ".join(
        mean_in_words(metric, content["overall"][metric]["mean"], about["unit"])
        for metric, about in content["metrics"].items()
    )


def _score(trainer: nnUNetTrainer, validation: Path) -> dict:
    from nnunet_logvmamba.evaluation import folders
    from nnunet_logvmamba.evaluation.cases import read_labels
    from nnunet_logvmamba.evaluation.dataset_json import labels_of
    from nnunet_logvmamba.evaluation.policies import policy_for
    from nnunet_logvmamba.evaluation.scoring import Settings

    settings = check_training_settings(trainer.configuration_manager.configuration.get(TRAINING_KEY))
    tolerance = settings.get(SETTING, DEFAULT_TOLERANCE)
    pairs, _ = folders.find_pairs(
        validation,
        Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations",
        endings=(trainer.dataset_json["file_ending"],),
        predicted_only=True,
    )
    flat = all(read_labels(pair.reference).values.ndim == 2 for pair in pairs)  # of volumes, the first is enough
    evaluation = folders.evaluate(
        pairs,
        labels_of(trainer.dataset_json, "dataset.json"),
        Settings(metrics=METRICS_2D if flat else METRICS, policy=policy_for(trainer.plans_manager.dataset_name)),
        tolerances=tolerance,
        position=False,  # nnU-Net takes the image's, and merely warns where the label's is another
        processes=max(1, default_num_processes),
    )
    summary = evaluation.summary
    source = (
        f"'{SETTING}' under '{TRAINING_KEY}' of configuration '{trainer.configuration_name}'"
        if SETTING in settings
        else f"default: 2 {summary['unit']}; set '{SETTING}' under '{TRAINING_KEY}' of the configuration for another"
    )
    summary["tolerances"] = {name: {**one, "source": source} for name, one in summary["tolerances"].items()}
    return {**summary, "scores": evaluation.rows}
