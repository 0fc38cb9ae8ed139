"""The scores of two masks and of two instance maps, prediction first: the faces that the package shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import lesions, overlap, scoring

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from .lesions import LesionCounts

# The surfaces are imported late, since MONAI takes seconds.


def dice(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Twice the common voxels over the sum of both, from 0 to 1; 0 if one mask is empty, NaN if both are.

    Args:
        prediction: Mask of any shape: array, tensor or nested list of truth values or of 0 and one other number.
        truth: Another one of the same shape.

    Raises:
        ValueError: If the shapes differ, or either is no mask; a map of several labels is none, so pass
            ``prediction == label``.
    """
    return overlap.dice(truth, prediction)


def iou(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Common voxels over those in either mask, from 0 to 1; arguments and empty masks as for :func:`dice`."""
    return overlap.iou(truth, prediction)


def volume_difference(prediction: ArrayLike, truth: ArrayLike, *, voxel_volume: float = 1.0) -> float:
    """Predicted minus true volume, below 0 where too little is predicted; masks as for :func:`dice`.

    Args:
        prediction: Mask.
        truth: Mask of the same shape.
        voxel_volume: Volume of a voxel; the result has its unit.
    """
    return overlap.volume_difference(truth, prediction, voxel_volume=voxel_volume)


def surface_distances(
    prediction: ArrayLike, truth: ArrayLike, *, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every surface voxel of the prediction to the truth's surface, and the other way round, in mm.

    Args:
        prediction: Mask with at least one voxel, two or three axes; see :func:`dice`.
        truth: Another one of the same shape.
        spacing_mm: Voxel size per axis of the masks; ones give pixels.

    Raises:
        ValueError: If the shapes differ, either is no such mask, or there is not one spacing above 0 per axis.
    """
    from . import surface

    return surface.surface_distances(truth, prediction, spacing_mm=spacing_mm)


def hd95(prediction: ArrayLike, truth: ArrayLike, *, spacing_mm: Sequence[float], joining: str = "joined") -> float:
    """95th percentile of the surface distances in both directions, in mm; infinite if one mask is empty, NaN if both.

    Args:
        prediction: Mask, two or three axes; see :func:`dice`.
        truth: Mask of the same shape.
        spacing_mm: Voxel size per axis of the masks; ones give pixels.
        joining: ``joined`` takes the percentile of both sets of distances together, ``max`` the larger of the two
            directed percentiles. Both are in use and differ.

    Raises:
        ValueError: If the shapes differ, either is no such mask, there is not one spacing above 0 per axis, or
            ``joining`` is neither.
    """
    from . import surface

    return surface.hd95(truth, prediction, spacing_mm=spacing_mm, joining=joining)


def surface_dice(prediction: ArrayLike, truth: ArrayLike, *, spacing_mm: Sequence[float], tolerance_mm: float) -> float:
    """Share of both surfaces that lies within a tolerance of the other one (NSD), from 0 to 1.

    Surfaces are triangles in 3D and line segments in 2D, weighted by area or length. 0 if one mask is empty, NaN if
    both are.

    Args:
        prediction: Mask, two or three axes; see :func:`dice`.
        truth: Mask of the same shape.
        spacing_mm: Voxel size per axis of the masks; ones give pixels.
        tolerance_mm: Distance up to which a surface element counts as met.

    Raises:
        ValueError: If the shapes differ, either is no such mask, there is not one spacing above 0 per axis, or the
            tolerance is negative.

    References: Nikolov et al. (2018), Deep learning to achieve clinically applicable segmentation.
    """
    from . import surface

    return surface.surface_dice(truth, prediction, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)


def count_lesions(prediction: ArrayLike, truth: ArrayLike) -> LesionCounts:
    """Count the connected pieces of the truth (``true``), those of them without a predicted voxel (``missed``), and
    predicted pieces that meet no true one (``false``).

    Args:
        prediction: Mask of any shape; see :func:`dice`.
        truth: Mask of the same shape.
    """
    return lesions.count_lesions(truth, prediction)


def instance_scores(
    prediction: ArrayLike, truth: ArrayLike, *, iou: float = 0.5, border: int = 2, tile: int | None = None
) -> dict[str, float | int]:
    """Give ``f1``, ``object_iou``, ``average_precision`` and the counts ``tp``, ``fp``, ``fn`` of two instance maps.

    Instances are paired one to one: as many pairs of at least that IoU as possible.

    Args:
        prediction: Map of whole numbers, 0 background, (height, width); numbers may have gaps.
        truth: Another one of the same shape.
        iou: Least IoU of a match; average precision has thresholds of its own, 0.50, 0.55, ... 0.95.
        border: Instances within so many pixels of the border are removed from both maps first; 0 keeps all.
        tile: Match within squares of so many pixels, which cuts cells; None takes the whole image.

    Raises:
        ValueError: If the shapes differ, or either is no instance map.
    """
    return scoring.instance_scores(truth, prediction, iou=iou, border=border, tile=tile)
