"""What the functions of the package take for masks and instance maps, and the sentence for what they do not take."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array

from nnunet_logvmamba.evaluation.instances import (
    count_matches,
    overlaps,
    recover_instances,
    remove_border_instances,
    to_classes,
)
from nnunet_logvmamba.evaluation.lesions import count_lesions
from nnunet_logvmamba.evaluation.overlap import dice, iou, volume_difference
from nnunet_logvmamba.evaluation.scoring import Settings, instance_scores, score_instances, score_masks, semantic_scores
from nnunet_logvmamba.evaluation.surface import hd95, surface_dice, surface_dice_umamba, surface_distances

TRUTH, PREDICTION = np.zeros((2, 12, 14), bool)
TRUTH[3:9, 3:9], PREDICTION[4:10, 3:10] = True, True
SETTINGS = Settings(metrics=("dice", "hd95", "nsd"), tolerances={"x": 1})

OVERLAP = {"dice": dice, "iou": iou, "volume_difference": volume_difference, "count_lesions": count_lesions}
SURFACE = {
    "surface_distances": lambda *masks, spacing=(1, 1): surface_distances(*masks, spacing=spacing),
    "hd95": lambda *masks, spacing=(1, 1): hd95(*masks, spacing=spacing),
    "surface_dice": lambda *masks, spacing=(1, 1): surface_dice(*masks, spacing=spacing, tolerance=1),
    "score_masks": lambda *masks, spacing=(1, 1): score_masks(*masks, spacing=spacing, label="x", settings=SETTINGS),
}
MASKS = {**OVERLAP, **SURFACE, "surface_dice_umamba": surface_dice_umamba}
INSTANCES = {
    "overlaps": overlaps,
    "count_matches": count_matches,
    "instance_scores": instance_scores,
    "semantic_scores": semantic_scores,
    "score_instances": lambda *maps: score_instances(*maps, settings=Settings(("f1",))),
    "to_classes": lambda truth, prediction: (to_classes(truth), to_classes(prediction)),
    "recover_instances": lambda truth, prediction: (recover_instances(truth), recover_instances(prediction)),
    "remove_border_instances": lambda *maps: tuple(map(remove_border_instances, maps)),
}
PAIRS = ("overlaps", "count_matches", "instance_scores", "semantic_scores", "score_instances")

AS = {
    "lists": lambda mask: mask.tolist(),
    "int64": lambda mask: mask.astype(np.int64),
    "0 and 255": lambda mask: mask.astype(np.uint8) * 255,
    "float32": lambda mask: mask.astype(np.float32),
    "float16": lambda mask: mask.astype(np.float16),
    "tensor": torch.from_numpy,
    "tensor of integers": lambda mask: torch.from_numpy(mask.astype(np.int32)),
    "tensor with gradients": lambda mask: torch.from_numpy(mask.astype(np.float32)).requires_grad_(),
    "tensor that is negated when it is read": lambda mask: torch.imag((torch.from_numpy(mask) * -1j).conj()),
    "not contiguous": lambda mask: np.asfortranarray(mask)[::-1][::-1],
    **{
        f"array of {name}": lambda mask, name=name: mask.astype(name) for name in (">i4", ">f8", "uint64", "longdouble")
    },
    **{
        f"tensor of {name}": lambda mask, name=name: torch.from_numpy(mask).to(getattr(torch, name))
        for name in ("uint16", "uint32", "uint64", "int8", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    },
}


def plain(scores: object) -> object:
    """Scores of any kind as lists, numbers and tables, which can be compared."""
    if isinstance(scores, np.ndarray):
        return scores.tolist()
    if isinstance(scores, tuple):
        return list(map(plain, scores))
    return {name: plain(value) for name, value in vars(scores).items()} if hasattr(scores, "__dict__") else scores


def same(one: object, other: object) -> bool:
    return plain(one) == plain(other)


@pytest.mark.parametrize("kind", AS)
@pytest.mark.parametrize("name", MASKS)
def test_masks_of_any_usual_kind_score_the_same(name, kind):
    assert same(MASKS[name](AS[kind](TRUTH), AS[kind](PREDICTION)), MASKS[name](TRUTH, PREDICTION))


@pytest.mark.parametrize("kind", sorted(AS.keys() - {"0 and 255"}))
@pytest.mark.parametrize("name", INSTANCES)
def test_instance_maps_of_any_usual_kind_score_the_same(name, kind):
    assert same(INSTANCES[name](AS[kind](TRUTH), AS[kind](PREDICTION)), INSTANCES[name](TRUTH, PREDICTION))


NO_ARRAYS = {
    "empty": (np.zeros((0, 4), bool), r"has the shape \(0, 4\) and so no voxel"),
    "a number": (1, r"has the shape \(\) and so no voxel"),
    "nothing": (None, "holds object values"),
    "words": (["a", "b"], "holds <U1 values"),
    "complex": (TRUTH.astype(complex), "holds complex128 values"),
    "ragged": ([[1, 0], [1]], "cannot be taken for an array of numbers"),
    "no values": (torch.ones(4, 4, device="meta"), "cannot be taken for an array of numbers"),
    "not a number": (
        np.where(TRUTH, np.nan, 0),
        "holds NaN, which is not a number, in 36 of 168 voxels; mend .* or if",
    ),
    "one NaN": (np.where(TRUTH, 1, np.nan), "holds NaN, which is not a number, in 132 of 168 voxels"),
    "infinite": (np.where(TRUTH, np.inf, 0), "holds infinity, which is not a number, in 36 of 168 voxels; mend"),
    "negative infinity": (np.where(TRUTH, -np.inf, 0), "holds infinity, which is not a number"),
    "sparse tensor": (torch.ones(4, 4).to_sparse(), r"sparse tensor \(sparse_coo\); call its to_dense\(\) first"),
    "sparse matrix": (coo_array(TRUTH), r"sparse matrix; call its toarray\(\) first"),
}


@pytest.mark.parametrize("kind", NO_ARRAYS)
@pytest.mark.parametrize("name", [*MASKS, *INSTANCES])
def test_what_is_no_array_of_numbers_is_refused(name, kind):
    value, says = NO_ARRAYS[kind]
    with pytest.raises(ValueError, match=says) as caught:
        (MASKS | INSTANCES)[name](value, value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (TRUTH + PREDICTION * 2, "truth holds 1 and 3; a mask is one label, so pass truth == label"),
        (
            TRUTH * 0.3 + PREDICTION * 0.4,
            r"truth holds 0.3 and 0.7, as probabilities do; .* pass truth > 0.5, or .*argmax",
        ),
        (
            torch.from_numpy(TRUTH * 0.25 + PREDICTION * 0.5).bfloat16(),
            "truth holds 0.25 and 0.75, as probabilities do",
        ),
        (TRUTH * -2.5 + PREDICTION, r"truth holds -2.5 and 1.0, as logits do; .* pass truth > 0, or .*argmax"),
        (TRUTH * 7.5 + PREDICTION, "truth holds 7.5 and 8.5, as logits do"),
        (TRUTH * -1 + PREDICTION, "truth holds -1 and 1; a mask is one label, so pass truth == label"),
        (TRUTH * 1.0 + PREDICTION * 2, "truth holds 1.0 and 3.0; a mask is one label, so pass truth == label"),
    ],
)
@pytest.mark.parametrize("name", MASKS)
def test_several_labels_and_probabilities_are_no_mask(name, value, says):
    with pytest.raises(ValueError, match=says):
        MASKS[name](value, PREDICTION)


@pytest.mark.parametrize("name", [*MASKS, *PAIRS])
def test_one_case_is_scored_at_a_time(name):
    says = "(masks|instance maps) have 2 or 3 axes here, not the shape "
    for shape, remedy in {(5,): "keep theirs", (1, 1, 4, 5): "score one case at a time, without axes of batch"}.items():
        mask = np.ones(shape, bool)
        with pytest.raises(ValueError, match=says + re.escape(f"{shape} of truth; {remedy}")):
            (MASKS | INSTANCES)[name](mask, mask)
    with pytest.raises(ValueError, match=says + re.escape("(1, 12, 14, 1) of prediction; score one case")):
        (MASKS | INSTANCES)[name](TRUTH, PREDICTION[None, :, :, None])


@pytest.mark.parametrize(
    ("spacing", "says"),
    [
        ((0, 1), "must be a number above 0, not 0"),
        ((-1, 1), "must be a number above 0, not -1"),
        ((np.nan, 1), "must be a number above 0, not nan"),
        ((np.inf, 1), "must be a number above 0, not inf"),
        ((1,), "has 1 values for masks of 2 axes"),
        ((1, 1, 1), "has 3 values for masks of 2 axes"),
        (1, r"is one number per axis of the masks, not 1; if all are equal, pass \(1, 1\)$"),
        (np.float32(0.5), r"is one number per axis .*; if all are equal, pass \(0.5, 0.5\)$"),
        ("12", "is one number per axis of the masks, not '12'$"),
        (np.eye(2), r"is one number per axis of the masks, not array\(\[\[1., 0.\], \[0., 1.\]\]\)$"),
        (None, "is one number per axis of the masks, not None"),
        (("a", 1), "is one number per axis of the masks, not"),
    ],
)
@pytest.mark.parametrize("name", SURFACE)
def test_a_spacing_is_a_number_above_0_per_axis(name, spacing, says):
    with pytest.raises(ValueError, match=says):
        SURFACE[name](TRUTH, PREDICTION, spacing=spacing)
    array = np.array([1.5, 2.0])
    assert same(SURFACE[name](TRUTH, PREDICTION, spacing=array), SURFACE[name](TRUTH, PREDICTION, spacing=[1.5, 2]))


@pytest.mark.parametrize("name", [*MASKS, *PAIRS])
def test_two_shapes_are_named(name):
    with pytest.raises(ValueError, match=r"truth has shape \(12, 14\) and prediction \(12, 13\)"):
        (MASKS | INSTANCES)[name](TRUTH, PREDICTION[:, :-1])


@pytest.mark.parametrize("tolerance", [-1, np.nan, np.inf, None, "2"])
def test_a_tolerance_is_a_number(tolerance):
    with pytest.raises(ValueError, match="the tolerance must be a number of at least 0, not"):
        surface_dice(TRUTH, PREDICTION, spacing=(1, 1), tolerance=tolerance)
    with pytest.raises(ValueError, match="the tolerance must be a number of at least 0, not"):
        surface_dice_umamba(TRUTH, PREDICTION, tolerance_px=tolerance)


@pytest.mark.parametrize("volume", [0, -1, np.nan, None])
def test_a_voxel_has_a_volume(volume):
    with pytest.raises(ValueError, match="voxel_volume must be a number above 0, not"):
        volume_difference(TRUTH, PREDICTION, voxel_volume=volume)


def test_an_empty_mask_has_no_surface():
    with pytest.raises(ValueError, match="prediction is empty and so has no surface"):
        surface_distances(TRUTH, ~TRUTH & TRUTH, spacing=(1, 1))
    with pytest.raises(ValueError, match="truth is empty and so has no surface"):
        surface_distances(~TRUTH & TRUTH, TRUTH, spacing=(1, 1))


@pytest.mark.parametrize("name", INSTANCES)
def test_fractions_and_negative_numbers_are_no_instances(name):
    for value in (TRUTH * 0.5, TRUTH * -1):
        with pytest.raises(ValueError, match=r"holds (the value )?-?(0.5|1)"):
            INSTANCES[name](value, value)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: remove_border_instances(TRUTH, border=-1), "border must be a whole number of at least 0, not -1"),
        (lambda: remove_border_instances(TRUTH, border=1.5), "border must be a whole number of at least 0, not 1.5"),
        (lambda: count_matches(TRUTH, TRUTH, tile=0), "tile must be a whole number of at least 1, not 0"),
        (lambda: count_matches(TRUTH, TRUTH, thresholds=[0]), "the IoU of a match must be above 0"),
        (lambda: recover_instances(TRUTH, grow=-1), "grow must be a number of at least 0, not -1"),
        (lambda: recover_instances(TRUTH, min_size=None), "min_size must be a number of at least 0, not None"),
        (lambda: recover_instances(TRUTH[None]), "a three-class prediction has two axes.*; of a network's .* argmax"),
        (lambda: to_classes(TRUTH[None]), "an instance map has two axes"),
    ],
)
def test_options_out_of_bounds_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
