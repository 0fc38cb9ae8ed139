"""The metrics, one row each; it imports nothing, so that a command line can ask it without delay.

Inside and in files a metric has its name, people are shown its title, and options take it in any capitalisation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

INSTANCES = "instances"
"""The one label of instance maps."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: In columns and keys of files, and everywhere inside.
        title: In tables, help texts and sentences; the same letters.
        better: ``higher``, ``lower``, or None where neither is, so that methods cannot be ranked by it.
        definition: What it is; braces hold words that follow from the settings, see :func:`definition_of`.
        of: ``masks`` (computed by the function of its name in ``overlap``), ``surfaces`` of two masks, or two maps of
            ``instances``.
        unit: ``1``, ``distance`` (mm or pixels), ``volume`` (ml, or an area), or ``count``.
        decimals: Shown in tables of results.
        bounded: Whether it lies between 0 and 1.
    """

    name: str
    title: str
    better: Literal["higher", "lower"] | None
    definition: str
    of: Literal["masks", "surfaces", "instances"] = "masks"
    unit: str = "1"
    decimals: int = 4
    bounded: bool = True

    def best(self, means: Mapping[str, float]) -> str:
        """Give the key of the best of finite values."""
        return (max if self.better == "higher" else min)(means, key=means.__getitem__)


_HD95 = "{percentile}; border voxels are those one erosion ({neighbours}) removes"
_NSD = "share of both masks' {elements}, within the tolerance of the other"
_UMAMBA = (
    "U-Mamba's surface Dice: masks as slabs one voxel thick, spacing 1, tolerance 2; follows the area and is no NSD"
)
_PRECISION = "mean of TP / (TP + FP + FN) over the IoU thresholds 0.50, 0.55, ... 0.95"
_SIZE, _LESIONS = "predicted minus true {size}", "connected pieces missed or invented"

_ROWS = (
    Metric("dice", "Dice", "higher", "2 |P and G| / (|P| + |G|)"),
    Metric("iou", "IoU", "higher", "|P and G| / |P or G|"),
    Metric("hd95", "HD95", "lower", _HD95, of="surfaces", unit="distance", decimals=2, bounded=False),
    Metric("nsd", "NSD", "higher", _NSD, of="surfaces"),
    Metric("nsd_umamba", "nsd_umamba", "higher", _UMAMBA, of="surfaces"),
    Metric("volume_difference", "volume_difference", None, _SIZE, unit="volume", bounded=False),
    Metric("lesions", "lesions", None, _LESIONS, unit="count", bounded=False),
    Metric("f1", "F1", "higher", "2 TP / (2 TP + FP + FN), {matched}", of="instances"),
    Metric("object_iou", "object_iou", "higher", "TP / (TP + FP + FN), {matched}", of="instances"),
    Metric("average_precision", "average_precision", "higher", _PRECISION, of="instances"),
)
METRICS = {metric.name: metric for metric in _ROWS}

LESION_COLUMNS = {
    "lesions_true": "connected pieces of the truth, across corners too",
    "lesions_missed": "pieces of the truth without a predicted voxel",
    "lesions_false": "pieces of the prediction without a true voxel",
}
MATCH_COLUMNS = {
    "tp": "true positives, {matched}",
    "fp": "false positives, predicted instances without a partner",
    "fn": "false negatives, true instances without a partner",
}
COUNTS = {**LESION_COLUMNS, **MATCH_COLUMNS}
"""Columns that are counted, with their definitions: those of ``lesions``, and those behind every score of instances."""

MASK_METRICS = tuple(name for name, metric in METRICS.items() if metric.of != "instances")
SURFACE_METRICS = tuple(name for name, metric in METRICS.items() if metric.of == "surfaces")
INSTANCE_METRICS = tuple(name for name, metric in METRICS.items() if metric.of == "instances")
"""Scores of two masks (a label or a region of truth and prediction), those of their surfaces, of two instance maps."""

RANKED = tuple(name for name, metric in METRICS.items() if metric.better is not None)
"""Those by which methods can be compared."""

USUAL = ("dice", "nsd", "hd95", "f1", "object_iou")
"""Those of tables of results where nobody chooses, in their order."""


def metric_name(text: str, valid: Iterable[str] = METRICS) -> str:
    """Give the name of the metric that is meant, whatever its capitalisation.

    Raises:
        ValueError: If it is none of the valid ones, which the sentence lists.
    """
    valid = list(valid)
    name = text.lower()
    if name not in valid:
        raise ValueError(f"there is no metric '{text}'; there are {titles(valid)}")
    return name


def definition_of(column: str, **words: str) -> str:
    """Say what a column of scores is, a metric or a count, under settings that are given in words."""
    return (METRICS[column].definition if column in METRICS else COUNTS[column]).format(**words)


def title_of(name: str) -> str:
    """Title of a metric; other columns of scores are called as in the files."""
    return METRICS[name].title if name in METRICS else name


def titles(names: Iterable[str]) -> str:
    """Titles of metrics in words."""
    return ", ".join(map(title_of, names))
