"""Three-class predictions of cells, scored case by case against true instance maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_logvmamba.errors import UserError

from .cases import check_same_grid, read_labels
from .instances import MIN_INTERIOR, recover_instances
from .metrics import INSTANCE_METRICS, INSTANCES, MATCH_COLUMNS, definition_of
from .report import describe
from .scoring import instance_scores, matched_in_words, semantic_scores

LABEL_SUFFIXES = ("_label",)
"""Of the names of instance maps, not part of the case."""


@dataclass(frozen=True)
class CellSettings:
    """How instances are recovered from classes, and how they are matched with the true ones.

    Attributes:
        grow: Pixels by which each piece of interior is widened.
        min_size: Pieces of fewer pixels are dropped before that.
        fill_holes: Fill what a piece encloses.
        watershed: Cut pieces at their waists.
        iou: Least IoU of a match.
        border: Instances within so many pixels of the border are left out.
        tile: Match within squares of so many pixels, None for whole images.
        tolerance: Of the surface Dice, in pixels.
    """

    grow: float = 2
    min_size: int = MIN_INTERIOR
    fill_holes: bool = False
    watershed: bool = False
    iou: float = 0.5
    border: int = 2
    tile: int | None = None
    tolerance: float = 2

    def as_written(self) -> dict[str, object]:
        """Give the settings under the names that they have in files of scores."""
        lengths = ("grow", "min_size", "border", "tile", "tolerance")
        return {f"{name}_px" if name in lengths else name: value for name, value in vars(self).items()}

    def definitions(self) -> dict[str, str]:
        """Say for every score what it is under these settings."""
        matched = matched_in_words(self.iou, self.border, self.tile)
        near = f"share of both outlines, by length, within {self.tolerance:g} px of the other"
        return {
            **{name: definition_of(name, matched=matched) for name in INSTANCE_METRICS},
            "dice_foreground": "Dice of all true instances and all predicted instances",
            "nsd_foreground": f"{near}; all true instances against all predicted instances",
            "dice_interior": "Dice of all true instances and the predicted interior class",
            "nsd_interior": f"{near}; all true instances against the predicted interior class",
        }


@dataclass(frozen=True)
class CellFiles:
    """The files of one case: three classes, the true instance map if there is one, and where to write the recovered.

    Without ``target``, nothing is written.
    """

    case: str
    prediction: Path
    reference: Path | None = None
    target: Path | None = None


def recover_and_score(settings: CellSettings, files: CellFiles) -> dict:
    """Recover the instances of one case, write them where asked for, and give the case's row of scores.

    Returns:
        ``case``, ``label`` and the number of ``predicted`` instances; with a reference also that of the ``true`` ones
        and the scores of :func:`.scoring.instance_scores` and :func:`.scoring.semantic_scores`.

    Raises:
        UserError: If a file cannot be read, holds other classes, or the two do not fit.
    """
    classes = read_labels(files.prediction)
    try:
        instances = recover_instances(
            classes.values,
            grow=settings.grow,
            min_size=settings.min_size,
            fill_holes=settings.fill_holes,
            watershed=settings.watershed,
        )
    except ValueError as error:
        raise UserError(f"{files.prediction}: {error}") from error
    number = int(instances.max())
    row = {"case": files.case, "label": INSTANCES, "predicted": number}
    if files.reference is not None:
        truth = read_labels(files.reference)
        check_same_grid(truth, classes, files.reference, files.prediction)
        row["true"] = len(np.unique(truth.values[truth.values > 0]))
        row |= instance_scores(truth.values, instances, iou=settings.iou, border=settings.border, tile=settings.tile)
        row |= semantic_scores(truth.values, instances, classes=classes.values, tolerance_px=settings.tolerance)
    if files.target is not None:
        from tifffile import imwrite

        dtype = np.uint16 if number <= np.iinfo(np.uint16).max else np.int32
        imwrite(files.target, instances.astype(dtype), compression="zlib")
    return row


def summarize(settings: CellSettings, rows: Sequence[dict]) -> dict:
    """Sum rows of scores up: settings, definitions, means with their counts, sums of TP, FP, FN, cases."""
    definitions = settings.definitions()
    return {
        "settings": settings.as_written(),
        "definitions": definitions,
        "average": "mean of per-image values; images in which a score is undefined are left out and counted",
        "mean": {name: describe([row[name] for row in rows]) for name in definitions},
        "sum": {name: sum(row[name] for row in rows) for name in MATCH_COLUMNS},
        "cases": [row["case"] for row in rows],
    }
