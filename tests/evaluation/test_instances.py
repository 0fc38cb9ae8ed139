"""Cells whose instances and overlaps are known by hand, and real ones whose perfect prediction is their truth."""

import csv
import math

import numpy as np
import pytest
from tifffile import imread

from nnunet_logvmamba.evaluation.instances import (
    BOUNDARY,
    Counts,
    average_precision,
    count_matches,
    match,
    overlaps,
    recover_instances,
    remove_border_instances,
    to_classes,
)
from nnunet_logvmamba.evaluation.scoring import instance_scores, semantic_scores


def disc(radius: float, centre: tuple[float, float] = (30, 30), size: int = 60) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def ious(instances: np.ndarray, *, grow: float) -> list[float]:
    return overlaps(instances, recover_instances(to_classes(instances), grow=grow)).iou.round(2).tolist()


@pytest.mark.parametrize(("radius", "shrunken"), [(5, 0.36), (6, 0.47), (8, 0.57), (10, 0.66)])
def test_growing_back_restores_round_cells_that_shrunken_pieces_miss(radius, shrunken):
    cell = disc(radius).astype(np.int32)
    assert ious(cell, grow=0) == [shrunken]
    assert ious(cell, grow=2)[0] >= 0.9


def test_a_cell_of_radius_four_has_no_interior_and_is_lost():
    assert recover_instances(to_classes(disc(4).astype(int))).max() == 0


def test_touching_cells_stay_apart_when_grown_into_their_common_boundary():
    cells = np.zeros((40, 40), np.int32)
    cells[5:35, 5:20], cells[5:35, 20:35] = 7, 9
    recovered = recover_instances(to_classes(cells))
    assert recovered.max() == 2
    assert count_matches(cells, recovered)[0.5] == Counts(2, 0, 0)
    assert overlaps(cells, recovered).iou.min() > 0.95


def test_pieces_below_the_least_size_are_dropped_before_growing():
    classes = np.zeros((30, 30), np.uint8)
    classes[2:5, 2:7] = 1  # 15 pixels
    classes[20:24, 20:24] = 1  # 16 pixels
    assert recover_instances(classes, grow=0).sum() == 16
    assert recover_instances(classes, grow=0, min_size=15).max() == 2


def test_holes_are_filled_only_when_asked():
    classes = disc(10).astype(np.uint8)
    classes[disc(3)] = BOUNDARY
    hollow, filled = (recover_instances(classes, grow=0, fill_holes=fill) for fill in (False, True))
    assert not hollow[disc(3)].any()
    assert filled[disc(3)].all()
    assert filled.max() == 1


def test_watershed_cuts_two_joined_cells_and_leaves_a_round_one_whole():
    joined = (disc(9, (30, 20)) | disc(9, (30, 36))).astype(np.uint8)
    assert recover_instances(joined).max() == 1
    cut = recover_instances(joined, watershed=True)
    assert cut.max() == 2
    assert cut[30, 20] != cut[30, 36]
    assert recover_instances(disc(9).astype(np.uint8), watershed=True).max() == 1
    assert recover_instances(disc(9, (0, 30)).astype(np.uint8), watershed=True).max() == 1  # cut by the border


def test_instances_are_numbered_without_gaps_in_raster_order():
    classes = np.zeros((40, 40), np.uint8)
    for number, (row, column) in enumerate(((2, 30), (8, 2), (25, 12))):
        classes[row : row + 5, column : column + 5] = 1
        assert recover_instances(classes, grow=0)[row, column] == number + 1
    assert recover_instances(classes).dtype == np.int32
    full = recover_instances(np.ones((20, 20), np.uint8))  # no background at all
    assert (full == 1).all()


@pytest.mark.parametrize("classes", [np.full((5, 5), 3), np.full((5, 5), 255, np.uint8), np.zeros((2, 5, 5), int)])
def test_what_is_no_three_class_prediction_is_refused(classes):
    with pytest.raises(ValueError, match=r"the value 3|the value 255|two axes"):
        recover_instances(classes)


def test_each_instance_is_matched_once():
    truth, prediction = np.zeros((10, 40), int), np.zeros((10, 40), int)
    truth[:, 0:20] = 1
    prediction[:, 0:12], prediction[:, 12:20] = 1, 2  # IoU 0.6 and 0.4
    truth[:, 30:40] = 2
    prediction[:, 30:35], prediction[:, 35:40] = 3, 4  # IoU 0.5 twice: only one may have it
    table = overlaps(truth, prediction)
    assert match(table, 0.5) == [(1, 1), (2, 3)]
    assert match(table, 0.6) == [(1, 1)]
    counts = count_matches(truth, prediction, border=0)[0.5]
    assert counts == Counts(2, 2, 0)
    assert (counts.f1, counts.object_iou) == pytest.approx((4 / 6, 2 / 4))


def test_the_number_of_pairs_comes_before_their_overlap():
    truth, prediction = np.zeros((1, 30), int), np.zeros((1, 30), int)
    truth[0, 0:12], truth[0, 12:20] = 1, 2
    prediction[0, 0:4], prediction[0, 4:20] = 1, 2
    # truth 1 meets both predictions, with 4/12 and 8/20; truth 2 only the second, with 8/16
    assert match(overlaps(truth, prediction), 0.3) == [(1, 1), (2, 2)]
    assert match(overlaps(truth, prediction), 0.35) == [(2, 2)]


def test_overlaps_do_not_depend_on_numbers_with_gaps_or_beyond_16_bits():
    truth = np.zeros((20, 20), np.int64)
    truth[2:8, 2:8], truth[10:18, 10:18] = 40_000, 3_000_000_000
    table = overlaps(truth, (truth > 0) * 5)
    assert table.truths.tolist() == [40_000, 3_000_000_000]
    assert table.iou == pytest.approx([36 / 100, 64 / 100])


def test_maps_without_background_are_scored():
    whole = np.ones((6, 6), int)
    assert match(overlaps(whole, whole)) == [(1, 1)]
    assert match(overlaps(whole, np.zeros((6, 6), int))) == []


def test_instances_near_the_border_leave_both_maps():
    instances = np.zeros((20, 20), int)
    instances[0:5, 8:12], instances[1:5, 0:5], instances[2:6, 14:17] = 1, 2, 3
    assert set(np.unique(remove_border_instances(instances, 2))) == {0, 3}
    assert set(np.unique(remove_border_instances(instances, 1))) == {0, 3}
    assert set(np.unique(remove_border_instances(instances, 0))) == {0, 1, 2, 3}
    assert remove_border_instances(np.ones((3, 3), int), 2).max() == 0
    assert count_matches(instances, instances)[0.5] == Counts(1, 0, 0)
    assert count_matches(instances, instances, border=0)[0.5] == Counts(3, 0, 0)


def test_nothing_in_either_map_is_undefined_and_one_sided_maps_score_zero():
    empty, cell = np.zeros((60, 60), int), disc(8).astype(int)
    assert math.isnan(instance_scores(empty, empty)["f1"])
    assert math.isnan(instance_scores(empty, empty)["average_precision"])
    assert instance_scores(cell, empty)["f1"] == instance_scores(empty, cell)["object_iou"] == 0


def test_average_precision_is_the_mean_of_the_object_iou_over_thresholds():
    truth, prediction = np.zeros((10, 50), int), np.zeros((10, 50), int)
    truth[:, 0:10] = prediction[:, 0:10] = 1
    truth[:, 20:30], prediction[:, 20:27] = 2, 2  # IoU 0.7: matched at 0.50, 0.55, 0.60, 0.65 and 0.70
    assert instance_scores(truth, prediction, border=0)["average_precision"] == pytest.approx((5 * 1 + 5 / 3) / 10)
    assert average_precision({0.5: Counts(1, 1, 0), 0.9: Counts(0, 2, 1)}) == pytest.approx(0.25)


def test_tiles_cut_cells_and_whole_images_do_not():
    truth = disc(12, (30, 30)).astype(int)
    assert count_matches(truth, truth, border=0)[0.5] == Counts(1, 0, 0)
    assert count_matches(truth, truth, border=0, tile=30)[0.5] == Counts(4, 0, 0)


def test_both_readings_of_semantic_scores():
    truth = disc(10).astype(int)
    classes = to_classes(truth)
    scores = semantic_scores(truth, recover_instances(classes), classes=classes, tolerance_px=1)
    assert scores["dice_foreground"] == scores["nsd_foreground"] == 1
    assert scores["dice_interior"] == pytest.approx(2 * (classes == 1).sum() / (truth.sum() + (classes == 1).sum()))
    assert scores["nsd_interior"] < 0.3  # the outline of the interior runs two pixels inside, less at corners
    assert set(semantic_scores(truth, truth)) == {"dice_foreground", "nsd_foreground"}


def test_perfect_predictions_of_real_cells_score_almost_one_once_grown_back(shared):
    with (shared / "data/cells/cases.csv").open() as file:
        cases = list(csv.DictReader(file))[::9]
    totals = {0: Counts(0, 0, 0), 2: Counts(0, 0, 0)}
    small = {0: Counts(0, 0, 0), 2: Counts(0, 0, 0)}
    for row in cases:
        truth = imread(shared / "data/cells/labels" / row["label"])
        classes = to_classes(truth)
        kept = np.where(np.isin(truth, np.unique(truth[classes == 1])), truth, 0)  # cells that have an interior at all
        for grow in totals:
            counts = count_matches(kept, recover_instances(classes, grow=grow))[0.5]
            totals[grow] += counts
            if row["modality"] == "fluorescence_256":
                small[grow] += counts
    assert totals[2].f1 > 0.95
    assert small[2].f1 > 0.95
    assert small[0].f1 < 0.7
    assert totals[0].f1 < totals[2].f1 - 0.1
