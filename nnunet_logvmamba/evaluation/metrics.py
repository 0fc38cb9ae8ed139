"""Names of the metrics, in one table; it imports nothing, so that a command line can ask it without delay.

Options take a name in any capitalisation. Files of scores have the name, people are shown the title.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: In columns and keys of files.
        title: In tables, help texts and sentences; the same letters.
        higher_is_better: None where neither is, so that methods cannot be ranked by it.
        unit: ``1``, ``distance`` (mm or pixels), ``volume`` (ml, or an area), or ``count``.
        of_instances: Whether it is of two instance maps; others are of two masks.
    """

    name: str
    title: str
    higher_is_better: bool | None
    unit: str = "1"
    of_instances: bool = False


METRICS = {
    metric.name: metric
    for metric in (
        Metric("dice", "Dice", True),
        Metric("iou", "IoU", True),
        Metric("hd95", "HD95", False, "distance"),
        Metric("nsd", "NSD", True),
        Metric("nsd_umamba", "nsd_umamba", True),
        Metric("volume_difference", "volume_difference", None, "volume"),
        Metric("lesions", "lesions", None, "count"),
        Metric("f1", "F1", True, of_instances=True),
        Metric("object_iou", "object_iou", True, of_instances=True),
        Metric("average_precision", "average_precision", True, of_instances=True),
    )
}

MASK_METRICS = tuple(name for name, metric in METRICS.items() if not metric.of_instances)
"""Scores of two masks: a label or a region of the truth and of the prediction."""

INSTANCE_METRICS = tuple(name for name, metric in METRICS.items() if metric.of_instances)
"""Scores of two instance maps."""


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


def title_of(name: str) -> str:
    """Title of a metric; other columns of scores are called as in the files."""
    return METRICS[name].title if name in METRICS else name


def titles(names: Iterable[str]) -> str:
    """Titles of metrics in words."""
    return ", ".join(map(title_of, names))
