"""How far apart two surfaces are; the directed distances are MONAI's."""

from collections.abc import Sequence

import numpy as np
from monai.metrics.utils import get_mask_edges, get_surface_distance

from .overlap import check_same_shape


def hd95(truth: np.ndarray, prediction: np.ndarray, *, spacing_mm: Sequence[float]) -> float:
    """95th percentile of the surface distances in both directions, joined, in mm.

    Surface voxels are those that one erosion (6 neighbours in 3D, 4 in 2D) removes. Joining both sets of distances
    before taking the percentile is one of two customs; the other takes the larger of the two directed percentiles.

    Both masks empty: NaN, nothing to score. One mask empty: infinity.

    Args:
        truth: Boolean mask, two or three axes.
        prediction: Boolean mask of the same shape.
        spacing_mm: Voxel size per axis of the masks, in mm.

    Raises:
        ValueError: If the shapes differ, or there is not one spacing per axis.
    """
    check_same_shape(truth, prediction)
    if len(spacing_mm) != truth.ndim:
        raise ValueError(f"spacing_mm has {len(spacing_mm)} values for masks of {truth.ndim} axes")
    truth, prediction = truth.astype(bool), prediction.astype(bool)
    if not truth.any() or not prediction.any():
        return float("nan") if truth.any() == prediction.any() else float("inf")
    # A border of background, so that a mask that touches the border of the image ends there.
    edges = get_mask_edges(np.pad(prediction, 1), np.pad(truth, 1), crop=True)
    there = get_surface_distance(*edges, spacing=list(spacing_mm))
    back = get_surface_distance(*edges[::-1], spacing=list(spacing_mm))
    return float(np.percentile(np.concatenate((there, back)), 95))
