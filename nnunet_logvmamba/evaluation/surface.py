"""How far apart two surfaces are; edges, surface elements and directed distances are MONAI's."""

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
    truth: ArrayLike, prediction: ArrayLike, *, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Give the distance of every surface voxel of the prediction to the truth's surface, and the other way round.

    Surface voxels are those that one erosion (6 neighbours in 3D, 4 in 2D) removes; the border of the image counts as
    background.

    Args:
        truth: Boolean mask with at least one voxel, two or three axes.
        prediction: Another one of the same shape.
        spacing_mm: Voxel size per axis of the masks, in mm; ones where there is none, and the result is in pixels.

    Raises:
        ValueError: If the shapes differ, either is no such mask, or there is not one spacing above 0 per axis.
    """
    truth, prediction, spacing_mm = _checked(truth, prediction, spacing_mm)
    for name, mask in (("truth", truth), ("prediction", prediction)):
        if not mask.any():
            raise ValueError(f"{name} is empty and so has no surface")
    edges = get_mask_edges(np.pad(prediction, 1), np.pad(truth, 1), crop=True)
    spacing = list(spacing_mm)
    return get_surface_distance(*edges, spacing=spacing), get_surface_distance(*edges[::-1], spacing=spacing)


def hd95(truth: ArrayLike, prediction: ArrayLike, *, spacing_mm: Sequence[float], joining: str = "joined") -> float:
    """95th percentile of the surface distances in both directions, in mm.

    Both masks empty: NaN, nothing to score. One mask empty: infinity.

    Args:
        truth: Boolean mask, two or three axes.
        prediction: Boolean mask of the same shape.
        spacing_mm: Voxel size per axis of the masks, in mm.
        joining: ``joined`` takes the percentile of both sets of distances together, ``max`` the larger of the two
            directed percentiles. Both are in use and differ.

    Raises:
        ValueError: If the shapes differ, either is no such mask, there is not one spacing above 0 per axis, or
            ``joining`` is neither.
    """
    if joining not in JOININGS:
        raise ValueError(f"joining must be one of {', '.join(JOININGS)}, not {joining!r}")
    truth, prediction, spacing_mm = _checked(truth, prediction, spacing_mm)
    if not truth.any() or not prediction.any():
        return float("nan") if truth.any() == prediction.any() else float("inf")
    return percentile_95(*surface_distances(truth, prediction, spacing_mm=spacing_mm), joining)


def percentile_95(there: np.ndarray, back: np.ndarray, joining: str) -> float:
    """Take HD95 from both sets of directed distances; see :func:`hd95`."""
    if joining == "joined":
        return float(np.percentile(np.concatenate((there, back)), 95))
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def surface_dice(truth: ArrayLike, prediction: ArrayLike, *, spacing_mm: Sequence[float], tolerance_mm: float) -> float:
    """Share of both surfaces that lies within ``tolerance_mm`` of the other one (NSD), from 0 to 1.

    Surfaces are made of triangles in 3D and line segments in 2D, weighted by area or length.

    Both masks empty: NaN, nothing to score. One mask empty: 0.

    Args:
        truth: Boolean mask, two or three axes.
        prediction: Boolean mask of the same shape.
        spacing_mm: Voxel size per axis of the masks, in mm; ones for pixels.
        tolerance_mm: Distance up to which a surface element counts as met, in the unit of the spacing.

    Raises:
        ValueError: If the shapes differ, either is no such mask, there is not one spacing above 0 per axis, or the
            tolerance is negative.

    References: Nikolov et al. (2018), Deep learning to achieve clinically applicable segmentation.
    """
    truth, prediction, spacing = _checked(truth, prediction, spacing_mm)
    check_number(tolerance_mm, "the tolerance", least=0)
    if not truth.any() or not prediction.any():
        return float("nan") if truth.any() == prediction.any() else 0.0
    edges_prediction, edges_truth, areas_prediction, areas_truth = get_mask_edges(
        np.pad(prediction, 1), np.pad(truth, 1), crop=True, spacing=spacing
    )
    there = get_surface_distance(edges_prediction, edges_truth, spacing=list(spacing))
    back = get_surface_distance(edges_truth, edges_prediction, spacing=list(spacing))
    near, total = 0.0, 0.0
    for distances, areas in ((there, areas_prediction[edges_prediction]), (back, areas_truth[edges_truth])):
        near += float(areas[distances <= tolerance_mm].sum(dtype=np.float64))
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
        raise ValueError(f"nsd_umamba is a score of 2D masks, not of the shape {truth.shape}")
    slabs = (mask[..., None] for mask in (truth, prediction))
    return surface_dice(*slabs, spacing_mm=(1, 1, 1), tolerance_mm=tolerance_px)


def _checked(
    truth: ArrayLike, prediction: ArrayLike, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    masks = as_masks(truth, prediction)
    return *masks, as_spacing(spacing_mm, masks[0].ndim)
