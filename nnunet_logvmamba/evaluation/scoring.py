"""Scores of one case, by name, with what each of them means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy  # loads ndimage when it is used
from numpy.typing import ArrayLike

from . import overlap
from .arrays import as_array, as_instances, as_masks, as_spacing
from .instances import AVERAGE_PRECISION_THRESHOLDS, INTERIOR, average_precision, count_matches
from .lesions import count_lesions
from .metrics import INSTANCE_METRICS, LESION_COLUMNS, MASK_METRICS, MATCH_COLUMNS, METRICS, definition_of, metric_name
from .policies import DEFAULT_POLICY, POLICIES

DEFAULT_METRICS = ("dice", "iou", "hd95", "nsd")
DEFAULT_INSTANCE_METRICS = (*INSTANCE_METRICS, "dice", "iou", "nsd")


@dataclass(frozen=True)
class Settings:
    """How to score.

    Attributes:
        metrics: Names out of ``MASK_METRICS``, and ``INSTANCE_METRICS`` for instance maps; in any capitalisation.
        policy: Name of a policy for empty masks.
        joining: ``joined`` or ``max``, for HD95.
        tolerances: Tolerance of NSD per label, in the unit of the spacing.
        iou: Least IoU of two instances that match.
        border: Instances so near to the border are removed first, in pixels.
        tile: Match instances in squares of this size, None for whole images.

    Raises:
        ValueError: If there is no such metric.
    """

    metrics: tuple[str, ...] = DEFAULT_METRICS
    policy: str = DEFAULT_POLICY
    joining: str = "joined"
    tolerances: dict[str, float] = field(default_factory=dict)
    iou: float = 0.5
    border: int = 2
    tile: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "metrics", tuple(dict.fromkeys(map(metric_name, self.metrics))))

    def columns(self) -> list[str]:
        """Give the columns of the scores: one per metric, but for lesions, which have three, and matches behind F1."""
        columns: list[str] = []
        for metric in self.metrics:
            columns += LESION_COLUMNS if metric == "lesions" else (metric,)
        return columns + list(MATCH_COLUMNS if set(self.metrics) & set(INSTANCE_METRICS) else ())


def totals(sums: Mapping[str, int]) -> str:
    """Say sums of counted columns in words: TP, FP and FN as nnU-Net writes them."""
    return ", ".join(f"{name.upper() if name in MATCH_COLUMNS else name} {number:,}" for name, number in sums.items())


def score_masks(
    truth: np.ndarray, prediction: np.ndarray, *, spacing: Sequence[float], label: str, settings: Settings
) -> dict[str, float | int]:
    """Give the mask metrics of one label of one case.

    A score that the policy leaves out is NaN, as is HD95 where it would be infinite.

    Args:
        truth: Boolean mask, two or three axes.
        prediction: Boolean mask of the same shape.
        spacing: Voxel size per axis.
        label: Whose tolerance to take.
        settings: Which scores, and how.

    Raises:
        ValueError: If the shapes differ, either is no such mask, there is not one spacing above 0 per axis, or
            U-Mamba's surface Dice is wanted of volumes.
    """
    truth, prediction = _cropped(*as_masks(truth, prediction))
    spacing = as_spacing(spacing, truth.ndim, "spacing")
    empty = POLICIES[settings.policy].outcome(truth_empty=not truth.any(), prediction_empty=not prediction.any())
    scores: dict[str, float | int] = {}
    for metric in settings.metrics:
        if metric == "lesions":
            scores |= dict(zip(LESION_COLUMNS, vars(count_lesions(truth, prediction)).values()))
        elif metric == "volume_difference":
            scores[metric] = overlap.volume_difference(truth, prediction, voxel_volume=voxel_volume(spacing))
        elif metric in MASK_METRICS and empty is not None:
            scores[metric] = empty.score_of(METRICS[metric])
        elif metric in MASK_METRICS:
            scores[metric] = _score(metric, truth, prediction, spacing, label, settings)
    return scores


def _cropped(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut both masks to the box around what is in either; distances do not change, time does."""
    box = scipy.ndimage.find_objects((truth | prediction).astype(np.uint8))
    return (truth[box[0]], prediction[box[0]]) if box else (truth, prediction)


def _score(
    metric: str, truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], label: str, settings: Settings
) -> float:
    if METRICS[metric].of == "masks":
        return getattr(overlap, metric)(truth, prediction)
    from . import surface  # late, since MONAI takes seconds to import

    if metric == "hd95":
        return surface.hd95(truth, prediction, spacing=spacing, joining=settings.joining)
    if metric == "nsd":
        return surface.surface_dice(truth, prediction, spacing=spacing, tolerance=settings.tolerances[label])
    return surface.surface_dice_umamba(truth, prediction)


def voxel_volume(spacing: Sequence[float]) -> float:
    """Give the volume of a voxel in ml, or the area of a pixel in squares of the spacing's unit."""
    return math.prod(spacing) / (1000 if len(spacing) == 3 else 1)


def score_instances(truth: np.ndarray, prediction: np.ndarray, *, settings: Settings) -> dict[str, float | int]:
    """Give the instance metrics of one image under the policy, and the counts ``tp``, ``fp``, ``fn`` behind them.

    Args:
        truth: Integer map, 0 background, (height, width).
        prediction: The same for the prediction.
        settings: Which scores, and how.
    """
    scores = instance_scores(truth, prediction, iou=settings.iou, border=settings.border, tile=settings.tile)
    empty = POLICIES[settings.policy].outcome(
        truth_empty=not scores["tp"] + scores["fn"], prediction_empty=not scores["tp"] + scores["fp"]
    )
    for metric in INSTANCE_METRICS:
        if metric not in settings.metrics:
            del scores[metric]
        elif empty is not None:
            scores[metric] = empty.score_of(METRICS[metric])
    return scores


def instance_scores(
    truth: ArrayLike, prediction: ArrayLike, *, iou: float = 0.5, border: int = 2, tile: int | None = None
) -> dict[str, float | int]:
    """See :func:`.public.instance_scores`, which takes the prediction first."""
    thresholds = dict.fromkeys((iou, *AVERAGE_PRECISION_THRESHOLDS))
    counts = count_matches(truth, prediction, thresholds=tuple(thresholds), border=border, tile=tile)
    one = counts[iou]
    return {
        "f1": one.f1,
        "object_iou": one.object_iou,
        "average_precision": average_precision({key: counts[key] for key in AVERAGE_PRECISION_THRESHOLDS}),
        **dict(zip(MATCH_COLUMNS, vars(one).values())),
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

    Raises:
        ValueError: If the shapes differ, a map is none, or the tolerance is negative.
    """
    from .surface import surface_dice  # late, since MONAI takes seconds to import

    truth, prediction = as_instances(truth, prediction)
    readings = {"foreground": prediction > 0}
    if classes is not None:
        readings["interior"] = as_array(classes, "classes") == INTERIOR
    scores = {}
    for name, mask in readings.items():
        scores[f"dice_{name}"] = overlap.dice(truth > 0, mask)
        scores[f"nsd_{name}"] = surface_dice(truth > 0, mask, spacing=(1, 1), tolerance=tolerance_px)
    return scores


def matched_in_words(iou: float, border: int, tile: int | None) -> str:
    """Say how instances are matched under these settings."""
    matched = f"instances paired one to one at IoU >= {iou:g}"
    if border:
        matched += f", those within {border} px of the border removed from both maps first"
    return f"{matched}, within squares of {tile} px" if tile else matched


def definitions(settings: Settings, unit: str, dimensions: int, *, slices: bool = False) -> dict[str, dict[str, str]]:
    """Say for every column what it is, and in which unit, under these settings.

    Args:
        dimensions: 3 if there are volumes, else 2.
        slices: Whether some cases beside volumes are a single slice.
    """
    distances = "distances from each border voxel to the other border"
    words = {
        "percentile": {
            "joined": f"95th percentile of the {distances}, both directions joined",
            "max": f"larger of the two directed 95th percentiles of the {distances}",
        }[settings.joining],
        "neighbours": "6 neighbours" if dimensions == 3 else "4 neighbours",
        "elements": "surface, by area" if dimensions == 3 else "outline, by length",
        "size": "volume" if dimensions == 3 else "area",
        "matched": matched_in_words(settings.iou, settings.border, settings.tile),
    }
    if slices:
        words["neighbours"] += ", 4 in a single slice"
        words["elements"] += " (of a single slice the outline, by length)"
    volume = ("ml" if unit == "mm" else "1000 px") if dimensions == 3 else f"{unit}^2"
    units = {"distance": unit, "volume": volume}
    return {
        column: {
            "definition": definition_of(column, **words),
            "unit": units.get(METRICS[column].unit, "1") if column in METRICS else "1",
        }
        for column in settings.columns()
    }
