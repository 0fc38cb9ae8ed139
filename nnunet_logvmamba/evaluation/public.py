"""The scores of two masks and of two instance maps, prediction first: the faces that the package shows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from . import lesions, overlap, scoring
from .arrays import NAMES, as_masks, refuse_one_hot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from .lesions import LesionCounts

# The surfaces are imported late, since MONAI takes seconds.

_Arguments = ParamSpec("_Arguments")
_Score = TypeVar("_Score")

_OUR_WORDS = {
    "y_pred": "prediction",
    "pred": "prediction",
    "preds": "prediction",
    "y": "truth",
    "target": "truth",
    "reference": "truth",
    "spacing": "spacing_mm",
    "tolerance": "tolerance_mm",
    "class_thresholds": "tolerance_mm",
    "iou_threshold": "iou",
}
"""Words of other packages (MONAI and TorchMetrics, mostly) for our arguments."""

_NO_WORDS = {
    "percentile": "hd95 takes the 95th; of surface_distances take any",
    "directed": "surface_distances gives both directions",
    "distance_metric": "distances are Euclidean",
    "include_background": "a mask is one label, pass prediction == label",
    "num_classes": "a mask is one label, pass prediction == label",
    "reduction": "one case is scored at a time",
}


def _in_our_words(score: Callable[_Arguments, _Score]) -> Callable[_Arguments, _Score]:
    """Let a function say which argument is meant by a keyword that it does not have."""
    known = inspect.signature(score).parameters

    @functools.wraps(score)
    def asked(*args: _Arguments.args, **keywords: _Arguments.kwargs) -> _Score:
        strangers = []
        for word in keywords:
            if word not in known:
                ours = _OUR_WORDS.get(word)
                advice = f"say {ours}" if ours in known else _NO_WORDS.get(word, f"there are {', '.join(known)}")
                strangers.append(f"{word!r} ({advice})")
        if strangers:
            raise TypeError(f"{score.__name__}() got an unexpected keyword argument {', '.join(strangers)}")
        return score(*args, **keywords)

    return asked


def _masks(prediction: ArrayLike, truth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Give truth and prediction; what is read from files cannot be one-hot, so only these faces look for it."""
    masks = as_masks(truth, prediction)
    for mask, name in zip(masks, NAMES):
        refuse_one_hot(mask, name)
    return masks


@_in_our_words
def dice(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Twice the common voxels over the sum of both, from 0 to 1; 0 if one mask is empty, NaN if both are.

    Args:
        prediction: Mask of one label of one case, (height, width) or (depth, height, width): array, tensor or nested
            list of truth values or of 0 and one other number.
        truth: Another one of the same shape.

    Raises:
        ValueError: If the shapes differ, or either is no mask: a map of several labels is none, so pass
            ``prediction == label``, nor are probabilities, logits, a one-hot array, a batch, NaN.
    """
    return overlap.dice(*_masks(prediction, truth))


@_in_our_words
def iou(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Common voxels over those in either mask, from 0 to 1; 0 if one mask is empty, NaN if both are.

    Arguments and errors are those of :func:`dice`.
    """
    return overlap.iou(*_masks(prediction, truth))


@_in_our_words
def volume_difference(prediction: ArrayLike, truth: ArrayLike, *, voxel_volume: float = 1.0) -> float:
    """Predicted minus true volume, below 0 where too little is predicted; of empty masks the volume is 0.

    Args:
        prediction: Mask, two or three axes; see :func:`dice`.
        truth: Mask of the same shape.
        voxel_volume: Volume of a voxel; the result has its unit.

    Raises:
        ValueError: If the shapes differ, either is no such mask, or ``voxel_volume`` is not above 0.
    """
    return overlap.volume_difference(*_masks(prediction, truth), voxel_volume=voxel_volume)


@_in_our_words
def surface_distances(
    prediction: ArrayLike, truth: ArrayLike, *, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every surface voxel of the prediction to the truth's surface, and the other way round, in mm.

    Args:
        prediction: Mask with at least one voxel, two or three axes; see :func:`dice`.
        truth: Another one of the same shape.
        spacing_mm: Voxel size per axis of the masks, in their order; ones give pixels.

    Raises:
        ValueError: If the shapes differ, either is no such mask or empty, or there is not one spacing above 0 per
            axis.
    """
    from . import surface

    return surface.surface_distances(*_masks(prediction, truth), spacing=spacing_mm)


@_in_our_words
def hd95(prediction: ArrayLike, truth: ArrayLike, *, spacing_mm: Sequence[float], joining: str = "joined") -> float:
    """95th percentile of the surface distances in both directions, in mm; infinite if one mask is empty, NaN if both.

    Args:
        prediction: Mask, two or three axes; see :func:`dice`.
        truth: Mask of the same shape.
        spacing_mm: Voxel size per axis of the masks, in their order; ones give pixels.
        joining: ``joined`` takes the percentile of both sets of distances together, ``max`` the larger of the two
            directed percentiles. Both are in use and differ.

    Raises:
        ValueError: If the shapes differ, either is no such mask, there is not one spacing above 0 per axis, or
            ``joining`` is neither.
    """
    from . import surface

    return surface.hd95(*_masks(prediction, truth), spacing=spacing_mm, joining=joining)


@_in_our_words
def surface_dice(prediction: ArrayLike, truth: ArrayLike, *, spacing_mm: Sequence[float], tolerance_mm: float) -> float:
    """Share of both surfaces that lies within a tolerance of the other one (NSD), from 0 to 1.

    Surfaces are triangles in 3D and line segments in 2D, weighted by area or length. 0 if one mask is empty, NaN if
    both are.

    Args:
        prediction: Mask, two or three axes; see :func:`dice`.
        truth: Mask of the same shape.
        spacing_mm: Voxel size per axis of the masks, in their order; ones give pixels.
        tolerance_mm: Distance up to which a surface element counts as met.

    Raises:
        ValueError: If the shapes differ, either is no such mask, there is not one spacing above 0 per axis, or the
            tolerance is negative.

    References: Nikolov et al. (2018), Deep learning to achieve clinically applicable segmentation.
    """
    from . import surface

    return surface.surface_dice(*_masks(prediction, truth), spacing=spacing_mm, tolerance=tolerance_mm)


@_in_our_words
def count_lesions(prediction: ArrayLike, truth: ArrayLike) -> LesionCounts:
    """Count the connected pieces of the truth (``true``), those of them without a predicted voxel (``missed``), and
    predicted pieces that meet no true one (``false``); an empty mask has 0 pieces.

    Args:
        prediction: Mask, two or three axes; see :func:`dice`.
        truth: Mask of the same shape.

    Raises:
        ValueError: If the shapes differ, or either is no such mask.
    """
    return lesions.count_lesions(*_masks(prediction, truth))


@_in_our_words
def instance_scores(
    prediction: ArrayLike, truth: ArrayLike, *, iou: float = 0.5, border: int = 2, tile: int | None = None
) -> dict[str, float | int]:
    """Give ``f1``, ``object_iou``, ``average_precision`` and the counts ``tp``, ``fp``, ``fn`` of two instance maps.

    Instances are paired one to one: as many pairs of at least that IoU as possible. Where the border's rule leaves no
    instance in either map, the three scores are NaN and the counts 0; where it leaves some in one of them, the scores
    are 0.

    Args:
        prediction: Map of one image, (height, width), or of one volume, (depth, height, width): whole numbers, 0
            background. Numbers may have gaps.
        truth: Another one of the same shape.
        iou: Least IoU of a match, above 0; average precision has thresholds of its own, 0.50, 0.55, ... 0.95.
        border: Instances within so many pixels of the border are removed from both maps first, in a volume of its
            first and last slices too; 0 keeps all.
        tile: Match within squares of so many pixels (cubes of a volume), which cuts cells; None takes all at once.

    Raises:
        ValueError: If the shapes differ, either is no instance map, or an option is out of its bounds.
    """
    return scoring.instance_scores(truth, prediction, iou=iou, border=border, tile=tile)
