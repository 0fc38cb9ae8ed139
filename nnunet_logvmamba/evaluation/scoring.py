"""Scores of one case, by name."""

from __future__ import annotations

import numpy as np

from .instances import AVERAGE_PRECISION_THRESHOLDS, INTERIOR, average_precision, count_matches
from .overlap import dice

INSTANCE_COUNTS = ("tp", "fp", "fn")


def instance_scores(
    truth: np.ndarray, prediction: np.ndarray, *, iou: float = 0.5, border: int = 2, tile: int | None = None
) -> dict[str, float | int]:
    """Give ``f1``, ``object_iou``, ``average_precision`` and the counts ``tp``, ``fp``, ``fn`` of two instance maps.

    Args:
        truth: Integer map, 0 background, (height, width).
        prediction: The same for the prediction.
        iou: Least IoU of a match, but for average precision, which has thresholds of its own.
        border: See :func:`.instances.count_matches`.
        tile: See :func:`.instances.count_matches`.

    Raises:
        ValueError: If the shapes differ.
    """
    thresholds = dict.fromkeys((iou, *AVERAGE_PRECISION_THRESHOLDS))
    counts = count_matches(truth, prediction, thresholds=tuple(thresholds), border=border, tile=tile)
    one = counts[iou]
    return {
        "f1": one.f1,
        "object_iou": one.object_iou,
        "average_precision": average_precision({key: counts[key] for key in AVERAGE_PRECISION_THRESHOLDS}),
        **dict(zip(INSTANCE_COUNTS, vars(one).values())),
    }


def semantic_scores(
    truth: np.ndarray, prediction: np.ndarray, *, classes: np.ndarray | None = None, tolerance_px: float = 2
) -> dict[str, float]:
    """Give Dice and NSD of what is any cell against what is none, in the readings that are in use.

    ``dice_foreground`` and ``nsd_foreground`` compare all true instances with all predicted ones, ``dice_interior`` and
    ``nsd_interior`` compare all true instances with the interior class alone, as public scripts do.

    Args:
        truth: Instance map, 0 background, (height, width).
        prediction: The same for the prediction.
        classes: The three-class prediction; without it there is no reading by interior.
        tolerance_px: Of the surface Dice, in pixels.
    """
    from .surface import surface_dice

    readings = {"foreground": prediction > 0}
    if classes is not None:
        readings["interior"] = classes == INTERIOR
    scores = {}
    for name, mask in readings.items():
        scores[f"dice_{name}"] = dice(truth > 0, mask)
        scores[f"nsd_{name}"] = surface_dice(truth > 0, mask, spacing_mm=(1, 1), tolerance_mm=tolerance_px)
    return scores
