"""How far apart two surfaces are; edges, surface elements and directed distances are MONAI's.

Masks have two or three axes, the truth comes first, and tolerances and distances have the unit of the spacing. What the
scores are and which errors they raise is said in ``public``.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .arrays import as_masks, as_spacing, check_number

with warnings.catch_warnings():
    # MONAI loads torchvision where it can, and that warns beside some builds of torch; nothing here uses it.
    warnings.simplefilter("ignore")
    from monai.metrics.utils import get_mask_edges, get_surface_distance

JOININGS = ("joined", "max")


def surface_distances(
    truth: ArrayLike, prediction: ArrayLike, *, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """See :func:`.public.surface_distances`.

    Surface voxels are those that one erosion (6 neighbours in 3D, 4 in 2D) removes; the border of the image counts as
    background.
    """
    truth, prediction, spacing = _checked(truth, prediction, spacing)
    for name, mask in (("truth", truth), ("prediction", prediction)):
        if not mask.any():
            raise ValueError(f"{name} is empty and so has no surface")
    edges = get_mask_edges(np.pad(prediction, 1), np.pad(truth, 1), crop=True)
    return tuple(get_surface_distance(*pair, spacing=list(spacing)) for pair in (edges, edges[::-1]))


def hd95(truth: ArrayLike, prediction: ArrayLike, *, spacing: Sequence[float], joining: str = "joined") -> float:
    """See :func:`.public.hd95`."""
    if joining not in JOININGS:
        raise ValueError(f"joining must be one of {', '.join(JOININGS)}, not {joining!r}")
    truth, prediction, spacing = _checked(truth, prediction, spacing)
    if not truth.any() or not prediction.any():
        return float("nan") if truth.any() == prediction.any() else float("inf")
    there, back = surface_distances(truth, prediction, spacing=spacing)
    if joining == "joined":
        return float(np.percentile(np.concatenate((there, back)), 95))
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def surface_dice(truth: ArrayLike, prediction: ArrayLike, *, spacing: Sequence[float], tolerance: float) -> float:
    """See :func:`.public.surface_dice`."""
    truth, prediction, spacing = _checked(truth, prediction, spacing)
    check_number(tolerance, "the tolerance", least=0)
    if not truth.any() or not prediction.any():
        return float("nan") if truth.any() == prediction.any() else 0.0
    edges_prediction, edges_truth, areas_prediction, areas_truth = get_mask_edges(
        np.pad(prediction, 1), np.pad(truth, 1), crop=True, spacing=spacing
    )
    there = get_surface_distance(edges_prediction, edges_truth, spacing=list(spacing))
    back = get_surface_distance(edges_truth, edges_prediction, spacing=list(spacing))
    near, total = 0.0, 0.0
    for distances, areas in ((there, areas_prediction[edges_prediction]), (back, areas_truth[edges_truth])):
        near += float(areas[distances <= tolerance].sum(dtype=np.float64))
        total += float(areas.sum(dtype=np.float64))
    return near / total


def surface_dice_umamba(truth: ArrayLike, prediction: ArrayLike, *, tolerance_px: float = 2) -> float:
    """Surface Dice of 2D masks taken as slabs one voxel thick, as U-Mamba's tables have it; not NSD.

    The flat faces of the slab count as surface, so the value follows the common area rather than the outline. It
    exists to compare with published tables.

    Both masks empty: NaN, nothing to score. One mask empty: 0.

    Raises:
        ValueError: If the shapes differ, either is no mask or has not two axes, or the tolerance is negative.
    """
    truth, prediction = as_masks(truth, prediction)
    if truth.ndim != 2:
        raise ValueError(f"nsd_umamba is a score of 2D masks, not of {truth.ndim} axes")
    slabs = (mask[..., None] for mask in (truth, prediction))
    return surface_dice(*slabs, spacing=(1, 1, 1), tolerance=tolerance_px)


def _checked(
    truth: ArrayLike, prediction: ArrayLike, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    masks = as_masks(truth, prediction)
    return *masks, as_spacing(spacing, masks[0].ndim)
