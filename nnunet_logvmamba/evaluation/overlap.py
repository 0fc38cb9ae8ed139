"""How much two masks overlap; truth first, else as ``public`` says.

A score of two masks that needs nothing else is found by its name in ``metrics``.
"""

from numpy.typing import ArrayLike

from .arrays import as_masks, check_number


def dice(truth: ArrayLike, prediction: ArrayLike) -> float:
    """See :func:`.public.dice`."""
    common, true, predicted = _counts(truth, prediction)
    return 2 * common / (true + predicted) if true + predicted else float("nan")


def iou(truth: ArrayLike, prediction: ArrayLike) -> float:
    """See :func:`.public.iou`."""
    common, true, predicted = _counts(truth, prediction)
    return common / (true + predicted - common) if true + predicted else float("nan")


def volume_difference(truth: ArrayLike, prediction: ArrayLike, *, voxel_volume: float = 1.0) -> float:
    """See :func:`.public.volume_difference`; raises ValueError also if ``voxel_volume`` is not above 0."""
    check_number(voxel_volume, "voxel_volume", above=0)
    _, true, predicted = _counts(truth, prediction)
    return (predicted - true) * voxel_volume


def _counts(truth: ArrayLike, prediction: ArrayLike) -> tuple[int, int, int]:
    """Give the number of common, true and predicted voxels."""
    truth, prediction = as_masks(truth, prediction)
    return int((truth & prediction).sum()), int(truth.sum()), int(prediction.sum())
