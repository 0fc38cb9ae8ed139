"""How much two masks overlap."""

from numpy.typing import ArrayLike

from .arrays import as_masks, check_number


def dice(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Twice the common voxels over the sum of both, from 0 to 1.

    Both masks empty: NaN, nothing to score. One mask empty: 0.

    Args:
        truth: Boolean mask, two or three axes.
        prediction: Boolean mask of the same shape.

    Raises:
        ValueError: If the shapes differ, or either is no mask.
    """
    common, true, predicted = _counts(truth, prediction)
    return 2 * common / (true + predicted) if true + predicted else float("nan")


def iou(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Common voxels over those in either mask, from 0 to 1; empty masks and errors as for :func:`dice`."""
    common, true, predicted = _counts(truth, prediction)
    return common / (true + predicted - common) if true + predicted else float("nan")


def volume_difference(truth: ArrayLike, prediction: ArrayLike, *, voxel_volume: float = 1.0) -> float:
    """Predicted minus true volume, in the unit of ``voxel_volume``; below 0 where too little is predicted.

    Raises:
        ValueError: If the shapes differ, either is no mask, or ``voxel_volume`` is not above 0.
    """
    check_number(voxel_volume, "voxel_volume", above=0)
    _, true, predicted = _counts(truth, prediction)
    return (predicted - true) * voxel_volume


def _counts(truth: ArrayLike, prediction: ArrayLike) -> tuple[int, int, int]:
    """Give the number of common, true and predicted voxels."""
    truth, prediction = as_masks(truth, prediction)
    return int((truth & prediction).sum()), int(truth.sum()), int(prediction.sum())
