"""How much two masks overlap."""

import numpy as np


def check_same_shape(truth: np.ndarray, prediction: np.ndarray) -> None:
    """Raise ValueError, naming both shapes, unless the two masks have the same one."""
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape} and prediction {prediction.shape}; they must be equal")


def dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Twice the common voxels over the sum of both, from 0 to 1.

    Both masks empty: NaN, nothing to score. One mask empty: 0.

    Args:
        truth: Boolean mask of any shape.
        prediction: Boolean mask of the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(truth, prediction)
    truth, prediction = truth.astype(bool), prediction.astype(bool)
    total = int(truth.sum()) + int(prediction.sum())
    return 2 * int((truth & prediction).sum()) / total if total else float("nan")
