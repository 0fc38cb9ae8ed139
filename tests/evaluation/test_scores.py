"""Shapes whose scores are known by hand, the same scores by MONAI, and every empty mask under every policy."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import gaussian_filter

from nnunet_logvmamba.evaluation.lesions import LesionCounts, count_lesions
from nnunet_logvmamba.evaluation.metrics import METRICS
from nnunet_logvmamba.evaluation.overlap import dice, iou, volume_difference
from nnunet_logvmamba.evaluation.policies import POLICIES, policy_for
from nnunet_logvmamba.evaluation.scoring import (
    INSTANCE_METRICS,
    MASK_METRICS,
    Settings,
    definitions,
    score_instances,
    score_masks,
)
from nnunet_logvmamba.evaluation.surface import hd95, surface_dice, surface_dice_umamba, surface_distances
from nnunet_logvmamba.evaluation.tolerances import TOLERANCES, tolerance_of

EMPTY = np.zeros((6, 6, 6), bool)


def voxel(*index: int) -> np.ndarray:
    mask = EMPTY.copy()
    mask[index] = True
    return mask


def disc(radius: float, centre: tuple[float, float] = (60, 60), size: int = 120) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def blobs(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two masks with several pieces that overlap in part and touch the border here and there."""
    generator = np.random.default_rng(seed)
    common, own, other = (gaussian_filter(generator.normal(size=shape), 2) for _ in range(3))
    return common + own / 2 > 0.02, common + other / 2 > 0.03


def test_dice_of_two_overlapping_boxes_is_what_one_counts():
    truth, prediction = EMPTY.copy(), EMPTY.copy()
    truth[0:4, 0:2, 0:2] = True
    prediction[2:4, 0:2, 0:2] = True
    assert dice(truth, prediction) == pytest.approx(2 * 8 / (16 + 8))
    assert iou(truth, prediction) == pytest.approx(8 / 16)
    assert volume_difference(truth, prediction, voxel_volume=0.5) == -4


def test_dice_of_empty_masks():
    assert math.isnan(dice(EMPTY, EMPTY))
    assert math.isnan(iou(EMPTY, EMPTY))
    assert dice(EMPTY, voxel(1, 1, 1)) == iou(EMPTY, voxel(1, 1, 1)) == 0
    assert dice(voxel(1, 1, 1), EMPTY) == iou(voxel(1, 1, 1), EMPTY) == 0


@pytest.mark.parametrize("joining", ["joined", "max"])
@pytest.mark.parametrize(("axis", "distance_mm"), [(0, 6.0), (1, 2.0), (2, 1.0)])
def test_hd95_of_two_voxels_is_their_distance_in_mm(axis, distance_mm, joining):
    other = [1, 1, 1]
    other[axis] += 2
    one, two = voxel(1, 1, 1), voxel(*other)
    assert hd95(one, two, spacing=(3.0, 1.0, 0.5), joining=joining) == pytest.approx(distance_mm)


def test_hd95_joins_both_directions_or_takes_the_larger_percentile():
    truth = voxel(0, 0, 0)
    prediction = voxel(0, 0, 0) | voxel(0, 0, 5)
    # distances 0 and 5 from the prediction, 0 from the truth
    assert hd95(truth, prediction, spacing=(1, 1, 1)) == pytest.approx(np.percentile([0, 5, 0], 95))
    larger = hd95(truth, prediction, spacing=(1, 1, 1), joining="max")
    assert larger == pytest.approx(np.percentile([0, 5], 95))
    with pytest.raises(ValueError, match="joined, max, not 'mean'"):
        hd95(truth, prediction, spacing=(1, 1, 1), joining="mean")


def test_hd95_of_equal_masks_that_touch_the_border_is_zero():
    mask = np.ones((4, 5), bool)
    assert hd95(mask, mask, spacing=(1, 1)) == 0
    assert surface_dice(mask, mask, spacing=(1, 1), tolerance=0) == 1


def test_hd95_of_empty_masks():
    assert math.isnan(hd95(EMPTY, EMPTY, spacing=(1, 1, 1)))
    assert hd95(EMPTY, voxel(1, 1, 1), spacing=(1, 1, 1)) == math.inf
    assert hd95(voxel(1, 1, 1), EMPTY, spacing=(1, 1, 1)) == math.inf


def test_masks_of_different_shape_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(6, 6, 6\).*\(2, 2\)"):
        dice(EMPTY, np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="spacing_mm has 2 values"):
        hd95(EMPTY, EMPTY, spacing=(1, 1))
    with pytest.raises(ValueError, match="at least 0, not -1"):
        surface_dice(EMPTY, EMPTY, spacing=(1, 1, 1), tolerance=-1)


def test_surface_dice_of_shifted_boxes_counts_the_faces_within_the_tolerance():
    truth, prediction = np.zeros((2, 40, 40, 40), bool)
    truth[10:30, 10:30, 10:30] = prediction[14:34, 10:30, 10:30] = True
    # Two faces lie 4 voxels apart; of the four others, 20 x 20 each, 16 rows lie on each other, and half a row is near.
    assert surface_dice(truth, prediction, spacing=(1, 1, 1), tolerance=4) == 1
    near = surface_dice(truth, prediction, spacing=(1, 1, 1), tolerance=0.5)
    assert near == pytest.approx(4 * (16 + 2 * 0.5) / (4 * 20 + 2 * 20), abs=0.005)
    # Twice the spacing along that axis doubles the distance and those four faces.
    assert surface_dice(truth, prediction, spacing=(2, 1, 1), tolerance=7.9) < 1
    assert surface_dice(truth, prediction, spacing=(2, 1, 1), tolerance=8) == 1


def test_surface_dice_of_the_outline_is_not_that_of_the_slab():
    truth, prediction = disc(40, (60, 57)), disc(40, (60, 63))
    assert surface_dice(truth, prediction, spacing=(1, 1), tolerance=2) == pytest.approx(0.278, abs=5e-4)
    assert surface_dice_umamba(truth, prediction) == pytest.approx(0.951, abs=5e-4)
    with pytest.raises(ValueError, match="2D masks"):
        surface_dice_umamba(EMPTY, EMPTY)


@pytest.mark.parametrize(("shape", "spacing"), [((40, 50), (1.0, 1.0)), ((30, 40), (0.7, 2.5))])
@pytest.mark.parametrize("seed", [0, 1])
def test_surfaces_in_2d_agree_with_monai(shape, spacing, seed):
    assert_agreement_with_monai(shape, spacing, seed)


@pytest.mark.parametrize(("shape", "spacing"), [((12, 20, 24), (1.0, 1.0, 1.0)), ((10, 24, 20), (5.0, 0.8, 1.2))])
@pytest.mark.parametrize("seed", [0, 1])
def test_surfaces_in_3d_agree_with_monai(shape, spacing, seed):
    assert_agreement_with_monai(shape, spacing, seed)


def assert_agreement_with_monai(shape, spacing, seed):
    truth, prediction = blobs(shape, seed)
    tensors = [torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32)) for mask in (prediction, truth)]
    there, back = surface_distances(truth, prediction, spacing=spacing)
    for ours, (one, other) in ((there, tensors), (back, tensors[::-1])):
        theirs = compute_hausdorff_distance(one, other, percentile=95, directed=True, spacing=list(spacing))
        assert np.percentile(ours, 95) == pytest.approx(theirs.item(), rel=1e-5)
    theirs = compute_hausdorff_distance(*tensors, percentile=95, spacing=list(spacing)).item()
    assert hd95(truth, prediction, spacing=spacing, joining="max") == pytest.approx(theirs, rel=1e-5)
    assert 0 < hd95(truth, prediction, spacing=spacing) <= theirs * (1 + 1e-5)
    for tolerance in (0.0, 1.0, 2.5):
        theirs = compute_surface_dice(*tensors, [tolerance], spacing=list(spacing), use_subvoxels=True).item()
        ours = surface_dice(truth, prediction, spacing=spacing, tolerance=tolerance)
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert 0 < ours < 1


def test_cropping_to_the_masks_changes_no_score():
    truth, prediction = np.zeros((2, 30, 30, 30), bool)
    truth[3:9, 12:20, 5:9], prediction[4:12, 12:18, 4:9] = True, True
    settings = Settings(metrics=("dice", "iou", "hd95", "nsd"), tolerances={"x": 1})
    scores = score_masks(truth, prediction, spacing=(2, 1, 0.5), label="x", settings=settings)
    assert scores == {
        "dice": dice(truth, prediction),
        "iou": iou(truth, prediction),
        "hd95": hd95(truth, prediction, spacing=(2, 1, 0.5)),
        "nsd": surface_dice(truth, prediction, spacing=(2, 1, 0.5), tolerance=1),
    }


def test_lesions_are_found_by_one_voxel_and_connected_across_corners():
    truth = voxel(0, 0, 0) | voxel(1, 1, 1) | voxel(4, 4, 4)  # two lesions
    prediction = voxel(1, 1, 1) | voxel(0, 5, 5)
    assert count_lesions(truth, prediction) == LesionCounts(true=2, missed=1, false=1)
    assert count_lesions(EMPTY, prediction) == LesionCounts(0, 0, 2)
    assert count_lesions(truth, EMPTY) == LesionCounts(2, 2, 0)


NAN = math.nan
ONE, OTHER = voxel(1, 1, 1), voxel(1, 1, 4)
PAIRS = {"both empty": (EMPTY, EMPTY), "false positive": (EMPTY, ONE), "miss": (ONE, EMPTY), "there": (ONE, OTHER)}


@pytest.mark.parametrize(
    ("policy", "pair", "overlap", "hausdorff", "nsd"),
    [
        ("brats", "both empty", 1, 0, 1),
        ("brats", "false positive", 0, 373.12866, 0),
        ("brats", "miss", 0, 373.12866, 0),
        ("brats", "there", 0, 3, 0),
        ("nnunet", "both empty", NAN, NAN, NAN),
        ("nnunet", "false positive", 0, NAN, 0),
        ("nnunet", "miss", 0, NAN, 0),
        ("nnunet", "there", 0, 3, 0),
        ("umamba", "both empty", 1, 0, 1),
        ("umamba", "false positive", 0, NAN, 0),
        ("umamba", "miss", 0, NAN, 0),
        ("umamba", "there", 0, 3, 0),
        ("paper", "both empty", 1, 0, 1),
        ("paper", "false positive", NAN, NAN, NAN),
        ("paper", "miss", NAN, NAN, NAN),
        ("paper", "there", 0, 3, 0),
        ("segmamba", "both empty", 0, 50, 0),
        ("segmamba", "false positive", 0, 50, 0),
        ("segmamba", "miss", 0, 50, 0),
        ("segmamba", "there", 0, 3, 0),
    ],
)
def test_every_edge_case_under_every_policy(policy, pair, overlap, hausdorff, nsd):
    truth, prediction = PAIRS[pair]
    settings = Settings(metrics=("dice", "iou", "hd95", "nsd"), policy=policy, tolerances={"x": 1})
    scores = score_masks(truth, prediction, spacing=(1, 1, 1), label="x", settings=settings)
    assert scores == pytest.approx({"dice": overlap, "iou": overlap, "hd95": hausdorff, "nsd": nsd}, nan_ok=True)
    flat = score_masks(
        truth[1], prediction[1], spacing=(1, 1), label="x", settings=Settings(metrics=("nsd_umamba",), policy=policy)
    )
    if pair != "there":
        assert flat == pytest.approx({"nsd_umamba": nsd}, nan_ok=True)
    counted = score_masks(
        truth, prediction, spacing=(10, 10, 10), label="x", settings=Settings(("volume_difference", "lesions"), policy)
    )
    both = int(truth.any()), int(prediction.any())
    assert counted == {
        "volume_difference": both[1] - both[0],  # ml, whatever the policy
        "lesions_true": both[0],
        "lesions_missed": both[0],
        "lesions_false": both[1],
    }
    instances = score_instances(
        truth[1].astype(int), prediction[1].astype(int), settings=Settings(INSTANCE_METRICS, policy, border=0)
    )
    assert {metric: instances[metric] for metric in INSTANCE_METRICS} == pytest.approx(
        dict.fromkeys(INSTANCE_METRICS, overlap), nan_ok=True
    )
    assert (instances["tp"], instances["fp"], instances["fn"]) == (0, both[1], both[0])


def test_the_policy_table_has_no_other_policies():
    assert set(POLICIES) == {"brats", "nnunet", "umamba", "paper", "segmamba"}
    assert policy_for("Dataset501_BraTS2020") == "brats"
    assert policy_for("Dataset004_Hippocampus") == policy_for(None) == "nnunet"


@pytest.mark.parametrize(
    ("structure", "unit", "value"),
    [
        ("liver", "mm", 5),
        ("Right_Kidney", "mm", 3),
        ("left kidney", "mm", 3),
        ("kidneys", "mm", 3),
        ("right adrenal gland", "mm", 2),
        ("Duodenum", "mm", 7),
        ("Large Needle Driver", "px", 2),
        ("liver", "px", 2),
        ("core", "mm", 2),
    ],
)
def test_tolerances_are_found_by_the_name_of_the_structure(structure, unit, value):
    found = tolerance_of(structure, unit)
    assert (found.value, found.unit) == (value, unit)
    published = structure not in {"core"} and not (structure == "liver" and unit == "px")
    assert found.source.startswith("default") != published
    assert all(one.source for one in TOLERANCES.values())


def test_every_metric_has_a_definition_with_a_unit():
    settings = Settings(metrics=MASK_METRICS + INSTANCE_METRICS, joining="max", iou=0.4, border=0)
    for unit, dimensions in (("mm", 3), ("px", 2)):
        texts = definitions(settings, unit, dimensions)
        assert list(texts) == settings.columns()
        assert texts["hd95"]["unit"] == unit
        assert "larger of the two" in texts["hd95"]["definition"]
        assert "IoU >= 0.4" in texts["f1"]["definition"]
        assert "border" not in texts["f1"]["definition"]


def test_settings_know_a_metric_in_any_capitalisation_and_no_other():
    assert Settings(metrics=("Dice", "HD95", "dice")).metrics == ("dice", "hd95")
    with pytest.raises(ValueError, match="there is no metric 'dise'; there are Dice, IoU, HD95"):
        Settings(metrics=("dise",))


def test_a_metric_has_one_name_and_title():
    for name, metric in METRICS.items():
        assert (metric.name, metric.title.lower()) == (name, name)
    assert tuple(METRICS) == MASK_METRICS + INSTANCE_METRICS
