"""Instances of cells: out of three-class predictions, and matched with the truth one to one.

This is the one definition of a cell's classes and of the instances in them; the converter of cells takes it from here.
So importing it is quick, and what only matching needs is imported late.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads ndimage when it is used
from numpy.typing import ArrayLike

from .arrays import as_array, as_instance_map, as_instances, check_number, check_whole

BACKGROUND, INTERIOR, BOUNDARY = 0, 1, 2
"""Classes of a three-class prediction."""

MIN_INTERIOR = 16
"""Pixels of the smallest piece of interior that counts, while classes are made and while instances are recovered."""

AVERAGE_PRECISION_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""0.50, 0.55, ... 0.95: what average precision is averaged over."""

UNMATCHED, LEFT_OUT = -1, -2
"""Of a pixel's instance: it has no partner in the other map; the border's rule keeps it out of the score."""


def to_classes(instances: np.ndarray) -> np.ndarray:
    """Turn an instance map into the three classes that a network is trained on.

    The inner boundary of every instance, widened by one pixel to all sides (the background's too), is ``BOUNDARY``.
    What is left of the foreground is ``INTERIOR``, but for pieces under 16 pixels (connected across corners too), which
    become background.

    Args:
        instances: Integer map, 0 background, (height, width).

    Returns:
        uint8 map of the same shape.

    Raises:
        ValueError: If it is no such map.
    """
    from skimage.morphology import disk
    from skimage.segmentation import find_boundaries

    instances = as_instance_map(instances)
    if instances.ndim != 2:
        raise ValueError(f"an instance map has two axes, not the shape {instances.shape}")

    boundary = scipy.ndimage.binary_dilation(find_boundaries(instances, mode="inner"), disk(1))
    interior = _without_small_pieces(_label((instances > 0) & ~boundary), MIN_INTERIOR) > 0
    classes = interior.astype(np.uint8) * INTERIOR
    classes[boundary] = BOUNDARY
    return classes


def recover_instances(
    classes: np.ndarray,
    *,
    grow: float = 2,
    min_size: int = MIN_INTERIOR,
    fill_holes: bool = False,
    watershed: bool = False,
) -> np.ndarray:
    """Give the instances of a three-class prediction: connected pieces of its interior, grown back.

    Pieces are connected across corners too. The boundary class takes two pixels off every cell, so ``grow=2`` restores
    the outline and is what you want; ``grow=0`` leaves the shrunken pieces that published tables score.

    Args:
        classes: Integer map with 0 background, 1 interior and 2 boundary, (height, width).
        grow: Pixels by which each piece is widened, never into another piece; the nearest piece wins.
        min_size: Pieces of fewer pixels are dropped before growing.
        fill_holes: Fill what a piece encloses, before small pieces are dropped.
        watershed: Cut pieces at their waists, where cells touch without a predicted boundary: seeds are the maxima of
            the smoothed distance to the piece's edge, at least 5 pixels apart.

    Returns:
        int32 map of the same shape, instances numbered from 1 in raster order of their first pixel.

    Raises:
        ValueError: If the map does not have two axes or holds other classes, or an option is below 0.
    """
    from skimage.segmentation import expand_labels

    classes = as_array(classes, "the prediction")
    check_number(grow, "grow", least=0)
    check_number(min_size, "min_size", least=0)
    if classes.ndim != 2:
        remedy = "; of a network's output take the argmax over the classes" if classes.ndim > 2 else ""
        raise ValueError(f"a three-class prediction has two axes, not the shape {classes.shape}{remedy}")
    strangers = sorted(set(np.unique(classes).tolist()) - {BACKGROUND, INTERIOR, BOUNDARY})
    if strangers:
        raise ValueError(f"holds the value {strangers[0]}; three-class predictions hold 0, 1 and 2 only")
    interior = classes == INTERIOR
    if fill_holes:
        interior = scipy.ndimage.binary_fill_holes(interior)
    pieces = _cut_at_waists(interior) if watershed else _label(interior)
    pieces = _without_small_pieces(pieces, min_size)
    return _numbered(expand_labels(pieces, grow) if grow else pieces)


def _label(mask: np.ndarray) -> np.ndarray:
    return scipy.ndimage.label(mask, np.ones((3, 3)))[0]


def _without_small_pieces(pieces: np.ndarray, min_size: int) -> np.ndarray:
    sizes = np.bincount(pieces.ravel())
    return np.where(sizes[pieces] >= min_size, pieces, 0)


def _cut_at_waists(mask: np.ndarray) -> np.ndarray:
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    pieces = _label(mask)
    # The padding makes the border of the image an edge, so that a cut cell has its seed inside.
    depth = scipy.ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    depth = np.where(mask, scipy.ndimage.gaussian_filter(depth, 1), 0)
    peaks = peak_local_max(depth, min_distance=5, labels=pieces, exclude_border=False)
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-depth, seeds, mask=mask, connectivity=np.ones((3, 3)))


def _numbered(pieces: np.ndarray) -> np.ndarray:
    """Number what is not 0 from 1, in raster order of first pixels."""
    values, first, inverse = np.unique(pieces, return_index=True, return_inverse=True)
    order = np.argsort(np.where(values == 0, -1, first))
    numbers = np.empty(len(values), np.int32)
    numbers[order] = np.arange(len(values)) + (0 if 0 in values else 1)
    return numbers[inverse].reshape(pieces.shape)


def remove_border_instances(instances: np.ndarray, border: int = 2) -> np.ndarray:
    """Blank every instance that has a pixel among the outermost ``border`` ones; the challenge's rule is 2.

    Raises:
        ValueError: If it is no instance map, or ``border`` no whole number of at least 0.
    """
    instances = as_instance_map(instances)
    check_whole(border, "border", least=0)
    if border == 0:
        return instances
    inside = tuple(slice(border, max(border, size - border)) for size in instances.shape)
    frame = np.ones(instances.shape, bool)
    frame[inside] = False
    return np.where(np.isin(instances, np.unique(instances[frame])), 0, instances)


@dataclass(frozen=True)
class Overlaps:
    """Which instances of two maps overlap, and how much; only pairs that do are stored.

    ``rows`` and ``columns`` count from 0 and point to truth and prediction, ``iou`` is the pair's overlap.
    """

    truths: np.ndarray
    predictions: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    iou: np.ndarray


def overlaps(truth: np.ndarray, prediction: np.ndarray) -> Overlaps:
    """Tabulate the overlap of two instance maps, without a dense table.

    Args:
        truth: Integer map, 0 background; numbers may have gaps.
        prediction: The same for the prediction, of the same shape.

    Raises:
        ValueError: If the shapes differ, or either is no instance map.
    """
    truth, prediction = as_instances(truth, prediction)
    truths, true_sizes = np.unique(truth[truth != 0], return_counts=True)
    predictions, predicted_sizes = np.unique(prediction[prediction != 0], return_counts=True)
    both = (truth != 0) & (prediction != 0)
    rows, columns = np.searchsorted(truths, truth[both]), np.searchsorted(predictions, prediction[both])
    pairs, common = np.unique(rows * len(predictions) + columns, return_counts=True)
    rows, columns = np.divmod(pairs, max(1, len(predictions)))
    iou = common / (true_sizes[rows] + predicted_sizes[columns] - common)
    return Overlaps(truths, predictions, rows, columns, iou)


def match(table: Overlaps, threshold: float = 0.5) -> list[tuple[int, int]]:
    """Pair instances one to one: as many pairs of at least this IoU as possible, and of those the best overlap.

    Returns:
        Pairs of numbers in the two maps (truth, prediction), sorted.

    Raises:
        ValueError: If the threshold is not above 0 and at most 1.
    """
    from scipy.optimize import linear_sum_assignment

    if not 0 < threshold <= 1:
        raise ValueError(f"the IoU of a match must be above 0 and at most 1, not {threshold}")
    good = table.iou >= threshold
    # Most instances have one candidate, whose only candidate they are: nothing to assign.
    per_row = np.bincount(table.rows[good], minlength=len(table.truths))
    per_column = np.bincount(table.columns[good], minlength=len(table.predictions))
    alone = good & (per_row[table.rows] == 1) & (per_column[table.columns] == 1)
    pairs = list(zip(table.truths[table.rows[alone]].tolist(), table.predictions[table.columns[alone]].tolist()))
    good &= ~alone
    for rows, columns, iou in _components(table.rows[good], table.columns[good], table.iou[good]):
        own_rows, row = np.unique(rows, return_inverse=True)
        own_columns, column = np.unique(columns, return_inverse=True)
        # A pair is worth more than any overlap that it could cost elsewhere.
        worth = np.zeros((len(own_rows), len(own_columns)))
        worth[row, column] = 1 + iou / (2 * min(worth.shape))
        chosen = linear_sum_assignment(worth, maximize=True)
        pairs += [
            (int(table.truths[own_rows[r]]), int(table.predictions[own_columns[c]]))
            for r, c in zip(*chosen)
            if worth[r, c] > 0
        ]
    return sorted(pairs)


def _components(
    rows: np.ndarray, columns: np.ndarray, iou: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Split pairs into groups that share no instance, so that each assignment stays small."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(rows):
        return
    offset = int(rows.max()) + 1
    size = offset + int(columns.max()) + 1
    graph = coo_array((np.ones(len(rows)), (rows, columns + offset)), shape=(size, size))
    component = connected_components(graph, directed=False)[1][rows]
    order = np.argsort(component, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(component[order])) + 1):
        yield rows[group], columns[group], iou[group]


@dataclass(frozen=True)
class Counts:
    """Matched, unmatched predicted and unmatched true instances at one IoU threshold."""

    true_positives: int
    false_positives: int
    false_negatives: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); NaN where there is no instance in either map."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / total if total else float("nan")

    @property
    def object_iou(self) -> float:
        """TP / (TP + FP + FN); NaN where there is no instance in either map."""
        total = self.true_positives + self.false_positives + self.false_negatives
        return self.true_positives / total if total else float("nan")


def count_matches(
    truth: ArrayLike,
    prediction: ArrayLike,
    *,
    thresholds: Sequence[float] = (0.5,),
    border: int = 2,
    tile: int | None = None,
) -> dict[float, Counts]:
    """Count matched and unmatched instances at each IoU threshold.

    Args:
        truth: Integer map, 0 background, (height, width); numbers may have gaps.
        prediction: The same for the prediction.
        thresholds: Least IoU of a match.
        border: Instances within so many pixels of the border are removed from both maps first; the challenge's rule
            is 2, and 0 keeps all.
        tile: Score squares of so many pixels apart and add the counts up, which cuts cells. Only to compare with
            published scores of images above 25 million pixels (2000 there); None takes the whole image.

    Raises:
        ValueError: If the shapes differ, either is no instance map, or an option is out of its bounds.
    """
    truth, prediction = as_instances(truth, prediction)
    counts = dict.fromkeys(thresholds, Counts(0, 0, 0))
    for _, true_part, predicted_part in _scored_parts(truth, prediction, border, tile):
        table = overlaps(true_part, predicted_part)
        for threshold in counts:
            hits = len(match(table, threshold))
            counts[threshold] += Counts(hits, len(table.predictions) - hits, len(table.truths) - hits)
    return counts


def matched_maps(
    truth: np.ndarray, prediction: np.ndarray, *, threshold: float = 0.5, border: int = 2, tile: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Say of every pixel what :func:`count_matches` makes of the instance that it belongs to.

    Args:
        truth: Integer map, 0 background, (height, width); numbers may have gaps.
        prediction: The same for the prediction.
        threshold: Least IoU of a match.
        border: As for :func:`count_matches`.
        tile: As for :func:`count_matches`; an instance that a tile cuts may then be several things.

    Returns:
        Two int64 maps, for truth and prediction: 0 background, the number of its pair (from 1, the same in both) where
        an instance is matched, ``UNMATCHED`` and ``LEFT_OUT``.

    Raises:
        ValueError: As :func:`count_matches`.
    """
    truth, prediction = as_instances(truth, prediction)
    of_truth, of_prediction = (np.where(instances != 0, LEFT_OUT, 0) for instances in (truth, prediction))
    number = 0
    for part, *pieces in _scored_parts(truth, prediction, border, tile):
        pairs = match(overlaps(*pieces), threshold)
        for found, instances, partners in zip((of_truth, of_prediction), pieces, zip(*pairs) if pairs else ((), ())):
            values, inverse = np.unique(instances, return_inverse=True)
            fates = np.full(len(values), UNMATCHED)
            fates[np.searchsorted(values, partners)] = number + 1 + np.arange(len(pairs))
            there = instances != 0
            found[part][there] = fates[inverse.reshape(instances.shape)][there]
        number += len(pairs)
    return of_truth, of_prediction


def _scored_parts(
    truth: np.ndarray, prediction: np.ndarray, border: int, tile: int | None
) -> Iterator[tuple[tuple[slice, ...], np.ndarray, np.ndarray]]:
    """Give what is matched by itself: where it lies, and both maps there without the instances that are left out."""
    if tile is not None:
        check_whole(tile, "tile", least=1)
    for part in _tiles(truth.shape, tile):
        yield part, remove_border_instances(truth[part], border), remove_border_instances(prediction[part], border)


def _tiles(shape: tuple[int, ...], tile: int | None) -> Iterator[tuple[slice, ...]]:
    if tile is None:
        yield (slice(None),) * len(shape)
        return
    for start in np.ndindex(*(-(-size // tile) for size in shape)):
        yield tuple(slice(index * tile, (index + 1) * tile) for index in start)


def average_precision(counts: dict[float, Counts]) -> float:
    """Mean of TP / (TP + FP + FN) over the IoU thresholds; NaN where there is no instance in either map.

    This is what the 2018 Data Science Bowl calls average precision; no confidence enters it.
    """
    return float(np.mean([count.object_iou for count in counts.values()]))
