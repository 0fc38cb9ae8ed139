"""Separate lesions: how many there are, how many were missed, how many were invented."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # loads ndimage when it is used
from numpy.typing import ArrayLike

from .arrays import as_masks


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of the truth, those of them without a predicted voxel, and predicted lesions that meet no true one."""

    true: int
    missed: int
    false: int


def count_lesions(truth: ArrayLike, prediction: ArrayLike) -> LesionCounts:
    """See :func:`.public.count_lesions`; one common voxel is enough for a lesion to be found.

    Voxels are connected across faces, edges and corners. BraTS 2023 scores lesions in a different way (dilation,
    minimal size, penalties), which this is not.
    """
    truth, prediction = as_masks(truth, prediction)
    neighbours = np.ones((3,) * truth.ndim)
    true_pieces, true = scipy.ndimage.label(truth, neighbours)
    predicted_pieces, predicted = scipy.ndimage.label(prediction, neighbours)
    both = truth & prediction
    return LesionCounts(
        true, true - len(np.unique(true_pieces[both])), predicted - len(np.unique(predicted_pieces[both]))
    )
