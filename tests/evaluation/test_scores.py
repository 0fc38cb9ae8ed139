"""Shapes whose scores are known by hand."""

import math

import numpy as np
import pytest

from nnunet_logvmamba.evaluation.overlap import dice
from nnunet_logvmamba.evaluation.surface import hd95

EMPTY = np.zeros((6, 6, 6), bool)


def voxel(*index: int) -> np.ndarray:
    mask = EMPTY.copy()
    mask[index] = True
    return mask


def test_dice_of_two_overlapping_boxes_is_what_one_counts():
    truth, prediction = EMPTY.copy(), EMPTY.copy()
    truth[0:4, 0:2, 0:2] = True
    prediction[2:4, 0:2, 0:2] = True
    assert dice(truth, prediction) == pytest.approx(2 * 8 / (16 + 8))


def test_dice_of_empty_masks():
    assert math.isnan(dice(EMPTY, EMPTY))
    assert dice(EMPTY, voxel(1, 1, 1)) == 0
    assert dice(voxel(1, 1, 1), EMPTY) == 0


@pytest.mark.parametrize(("axis", "distance_mm"), [(0, 6.0), (1, 2.0), (2, 1.0)])
def test_hd95_of_two_voxels_is_their_distance_in_mm(axis, distance_mm):
    other = [1, 1, 1]
    other[axis] += 2
    assert hd95(voxel(1, 1, 1), voxel(*other), spacing_mm=(3.0, 1.0, 0.5)) == pytest.approx(distance_mm)


def test_hd95_joins_both_directions_before_taking_the_percentile():
    truth = voxel(0, 0, 0)
    prediction = voxel(0, 0, 0) | voxel(0, 0, 5)
    # distances 0 and 5 from the prediction, 0 from the truth
    assert hd95(truth, prediction, spacing_mm=(1, 1, 1)) == pytest.approx(np.percentile([0, 5, 0], 95))


def test_hd95_of_equal_masks_that_touch_the_border_is_zero():
    mask = np.ones((4, 5), bool)
    assert hd95(mask, mask, spacing_mm=(1, 1)) == 0


def test_hd95_of_empty_masks():
    assert math.isnan(hd95(EMPTY, EMPTY, spacing_mm=(1, 1, 1)))
    assert hd95(EMPTY, voxel(1, 1, 1), spacing_mm=(1, 1, 1)) == math.inf
    assert hd95(voxel(1, 1, 1), EMPTY, spacing_mm=(1, 1, 1)) == math.inf


def test_masks_of_different_shape_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(6, 6, 6\).*\(2, 2\)"):
        dice(EMPTY, np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="spacing_mm has 2 values"):
        hd95(EMPTY, EMPTY, spacing_mm=(1, 1))
