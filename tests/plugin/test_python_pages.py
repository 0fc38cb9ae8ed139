"""The network in Python: what the pages and docstrings show runs, and the page of signatures is up to date."""

from __future__ import annotations

import doctest
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from small_model import planned_architecture, write_model

from nnunet_logvmamba import evaluation, networks
from nnunet_logvmamba.cli import main
from nnunet_logvmamba.evaluation import instances, lesions, overlap, scoring, surface
from nnunet_logvmamba.evaluation.lesions import LesionCounts
from nnunet_logvmamba.networks import LoGVMambaSwinUNet, LoGVMambaUNet, catalogue
from nnunet_logvmamba.networks.log_vmamba import swin_unet as swin_umamba
from nnunet_logvmamba.networks.log_vmamba import unet

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def in_a_folder_with_a_model(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model = write_model(tmp_path, 2, [32, 32], architecture=planned_architecture(2, stages=3))
    plans = json.loads((model / "plans.json").read_text())
    fullres = {**plans["configurations"]["small"], "patch_size": [32, 32, 32], "spacing": [1.0] * 3}
    plans["configurations"]["3d_fullres"] = {**fullres, "architecture": planned_architecture(3)}
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(plans))
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(5, 40, 44)).astype(np.float32))
    sitk.WriteImage(image, tmp_path / "case_0000.nii.gz")
    return tmp_path


def run_blocks(page: str) -> dict:
    """Run the Python blocks of a page, one after the other, as a reader would; give the names they define."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
    assert len(blocks) > 2
    names: dict = {"__name__": "page"}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    return names


@pytest.mark.usefixtures("in_a_folder_with_a_model")
def test_what_the_page_on_the_network_in_python_shows_runs():
    names = run_blocks("docs/how-to/python.md")
    assert names["logits"].shape == (1, 3, 32, 32)


@pytest.mark.slow
def test_what_the_page_on_export_shows_runs(in_a_folder_with_a_model):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = in_a_folder_with_a_model / "nnUNetTrainerLoGVMamba__nnUNetPlans__small"
    assert main(["export", str(model), "model.onnx"]) == 0
    names = run_blocks("docs/how-to/export.md")
    assert names["labels"].shape == (1, 32, 32)
    assert names["image"].shape == (1, 5, 40, 44)
    assert (in_a_folder_with_a_model / "plain.onnx").is_file()


@pytest.mark.parametrize("module", [unet, swin_umamba])
def test_examples_in_docstrings_run(module):
    with torch.device("meta"):
        result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_page_of_signatures_is_what_the_script_writes():
    specification = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python docs/make_api.py"


def test_the_example_of_every_preset_on_that_page_builds_the_network_that_it_stands_under():
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### (\w+)\.from_preset$(.+?)^###? ", page, re.M | re.S)
    assert len(sections) == len(catalogue.PRESETS)
    for name, text in sections:
        (example,) = re.findall(r"^ +>>> network = (.+)$", text, re.M)
        with torch.device("meta"):
            built = eval(example, {name: getattr(networks, name)})
        assert type(built).__name__ == name


# Networks


def test_a_preset_takes_other_channels_in_either_words():
    with torch.device("meta"):
        plain = LoGVMambaUNet.from_preset("paper3d", spatial_dims=3, in_channels=1, out_channels=2)
        ours = LoGVMambaUNet.from_preset("paper3d", input_channels=1, num_classes=2)
        published = LoGVMambaUNet.from_preset("paper3d")
    shapes = [[tuple(p.shape) for p in network.parameters()] for network in (plain, ours, published)]
    assert shapes[0] == shapes[1] != shapes[2]
    assert sum(p.numel() for p in published.parameters()) == 20_551_641


def test_a_network_in_plain_words_is_the_one_in_words_of_plans():
    torch.manual_seed(0)
    plain = LoGVMambaUNet.from_channels(3, 2, 4, (8, 16), strides=((1, 2, 2), 2), kernel_size=(1, 3, 3), family="vss")
    torch.manual_seed(0)
    planned = LoGVMambaUNet(
        input_channels=2,
        n_stages=3,
        features_per_stage=[8, 16, 16],
        conv_op=torch.nn.Conv3d,
        kernel_sizes=[[1, 3, 3]] * 3,
        strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        num_classes=4,
        family="vss",
    )
    image = torch.randn(1, 2, 4, 16, 16)
    assert torch.equal(plain.eval()(image), planned.eval()(image))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LoGVMambaUNet.from_preset("paper"), "there is no preset 'paper'; there are 'paper3d', 'paper2d'"),
        (lambda: LoGVMambaUNet.from_preset("paper2d"), r"use LoGVMambaSwinUNet.from_preset\('paper2d', ...\)"),
        (lambda: LoGVMambaSwinUNet.from_preset("paper3d"), r"use LoGVMambaUNet.from_preset\('paper3d', ...\)"),
        (lambda: LoGVMambaUNet.from_preset("paper3d", spatial_dims=2), "has 3 spatial axes, not 2"),
        (
            lambda: LoGVMambaUNet.from_preset("paper3d", in_channels=1, input_channels=1),
            "in_channels and input_channels are the same argument",
        ),
        (lambda: LoGVMambaUNet.from_channels(1, 1, 2, (8,)), "spatial_dims is 1; 2 or 3 is needed"),
        (lambda: LoGVMambaUNet.from_channels(2, 1, 2, ()), "channels is empty"),
        (lambda: LoGVMambaUNet.from_channels(2, 1, 2, (8, 8), strides=(2,)), "strides has 1 entries for 2 channels"),
        (
            lambda: LoGVMambaUNet.from_channels(3, 1, 2, (8, 8), strides=(1, 2, 2)),
            r"strides has 3 entries for 2 channels; .* write \[\(1, 2, 2\)\] \* 2",
        ),
        (lambda: LoGVMambaUNet.from_channels(2, 1, 2, 16), "channels is 16; a list with one entry per stage"),
        (lambda: LoGVMambaUNet.from_channels(2, 1, 2, (8, -8)), r"channels is \[8, -8\]; whole numbers of at least 1"),
        (lambda: LoGVMambaUNet.from_channels(2, 1, 2, (8, 8.0)), r"channels is \[8, 8.0\]"),
        (lambda: LoGVMambaUNet.from_channels(2, 1, 2, (True, 8)), r"channels is \[True, 8\]"),
        (lambda: LoGVMambaUNet.from_channels(2, 0, 2, (8,)), "in_channels is 0"),
        (lambda: LoGVMambaUNet.from_channels(2, 1, 0, (8,)), "out_channels is 0"),
        (lambda: LoGVMambaUNet.from_channels(2.0, 1, 2, (8,)), "spatial_dims is 2.0"),
        (lambda: LoGVMambaUNet.from_channels([2], 1, 2, (8,)), r"spatial_dims is \[2\]"),
        (lambda: LoGVMambaUNet.from_channels(2, 1, 2, (8,), strides=0), r"strides\[0\] is 0"),
        (lambda: LoGVMambaUNet.from_channels(2, 1, 2, (8,), strides=[(2, 2, 2)]), r"\(2, 2, 2\); .* each of 2 axes"),
        (lambda: LoGVMambaUNet.from_channels(2, 1, 2, (8,), kernel_size=2), "kernel_size is 2; an odd number"),
        (lambda: LoGVMambaUNet.from_preset(["paper3d"]), r"there is no preset \['paper3d'\]"),
        (lambda: LoGVMambaSwinUNet.from_channels(3, 1, 2, (8, 8)), "LoGVMambaSwinUNet is 2D: LoGVMambaUNet"),
        (lambda: LoGVMambaSwinUNet.from_channels(2, 1, 2, (8,)), "needs at least two stages"),
        (lambda: LoGVMambaSwinUNet.from_channels(2, 1, 2, 8), "channels is 8; a list with one entry per stage"),
    ],
)
def test_what_does_not_fit_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


PLAINLY = "LoGVMambaUNet.from_channels takes spatial_dims, in_channels, out_channels, channels and strides"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: LoGVMambaUNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(8, 8), strides=(2, 2)),
            (
                "LoGVMambaUNet() got unexpected keyword arguments 'spatial_dims' (the nearest is conv_op), "
                "'in_channels' (the nearest is input_channels), 'out_channels' (the nearest is num_classes), "
                f"'channels' (the nearest is features_per_stage); {PLAINLY}"
            ),
        ),
        (
            lambda: LoGVMambaUNet(2, 1, 2, (8, 8), (2, 2)),
            f"LoGVMambaUNet() needs strides, num_classes; {PLAINLY}",
        ),
        (
            lambda: LoGVMambaUNet.from_channels(2, 1, 2, (8, 8), norm="batch", act="relu", deep_supervison=True),
            (
                "LoGVMambaUNet.from_channels() got unexpected keyword arguments 'norm' (the nearest is norm_op), "
                "'act' (the nearest is nonlin), 'deep_supervison' (the nearest is deep_supervision)"
            ),
        ),
        (
            lambda: LoGVMambaUNet.from_channels(2, 1, 2, (8, 8), conv_op=torch.nn.Conv2d),
            "LoGVMambaUNet.from_channels() got an unexpected keyword argument 'conv_op' (the nearest is spatial_dims)",
        ),
        (lambda: LoGVMambaUNet.from_channels(2, 1), "LoGVMambaUNet.from_channels() needs out_channels, channels"),
        (
            lambda: LoGVMambaUNet.from_channels(2, 1, 2, (8,), 2, 3, 4),
            "LoGVMambaUNet.from_channels(): too many positional arguments",
        ),
        (
            lambda: LoGVMambaUNet.from_preset("paper3d", channels=(8, 8), knob=1),
            (
                "LoGVMambaUNet.from_preset() got unexpected keyword arguments 'channels' (the nearest is "
                "features_per_stage), 'knob'; help(LoGVMambaUNet.from_preset) lists them"
            ),
        ),
        (lambda: LoGVMambaUNet.from_preset(), "LoGVMambaUNet.from_preset() needs preset"),
        (
            lambda: LoGVMambaSwinUNet.from_preset("paper2d", depths=(2, 2, 2, 2)),
            (
                "LoGVMambaSwinUNet.from_preset() got an unexpected keyword argument 'depths' (the nearest is "
                "n_blocks_per_stage)"
            ),
        ),
        (
            lambda: LoGVMambaSwinUNet.from_channels(2, 1, 2, (8, 8), kernel_size=3),
            (
                "LoGVMambaSwinUNet.from_channels() got an unexpected keyword argument 'kernel_size'; "
                "help(LoGVMambaSwinUNet.from_channels) lists them"
            ),
        ),
        (
            lambda: LoGVMambaSwinUNet(conv_op=torch.nn.Conv2d),
            "LoGVMambaSwinUNet() got an unexpected keyword argument 'conv_op'; "
            + PLAINLY.replace("LoGVMambaUNet", "LoGVMambaSwinUNet"),
        ),
    ],
)
def test_words_that_a_network_does_not_have_are_answered_with_the_nearest(build, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$") as refusal:
        build()
    assert isinstance(refusal.value, TypeError)  # which Python itself would raise


def test_a_class_derived_from_a_network_has_its_presets_and_words_too():
    class Derived(LoGVMambaUNet):
        pass

    with torch.device("meta"):
        assert isinstance(Derived.from_preset("paper3d"), Derived)
        assert isinstance(Derived.from_channels(2, 1, 2, (16, 16)), Derived)
    with pytest.raises(ValueError, match="Derived.from_channels.. got an unexpected keyword argument 'norm'"):
        Derived.from_channels(2, 1, 2, (16, 16), norm="batch")


def test_the_2d_network_in_plain_words_is_the_published_one_with_the_published_widths():
    with torch.device("meta"):
        plain = LoGVMambaSwinUNet.from_channels(2, 3, 1, (96, 192, 384, 768))
        published = LoGVMambaSwinUNet.from_preset("paper2d")
        other = LoGVMambaSwinUNet.from_channels(2, 1, 2, (16, 32), strides=[(2, 4), 2])
    shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in (plain, published)]
    assert shapes[0] == shapes[1]
    assert plain.strides == published.strides
    assert other.strides == [(1, 1), (2, 4), (2, 2)]
    assert [len(stage) for stage in other.encoder.stages] == [2, 2]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            torch.zeros(1, 3, 16, 16),
            (
                "the image has 3 channel(s) and the network was built for 1: give every image 1 channel(s) or build "
                "the network for 3; under nnU-Net, dataset.json names the channels"
            ),
        ),
        (torch.zeros(1, 16, 16), "the input has 3 axes; batch, channels and 2 spatial axes are needed"),
        (np.zeros((1, 1, 16, 16)), "the input is a ndarray; a torch.Tensor is needed, such as torch.as_tensor(...)"),
    ],
)
@pytest.mark.parametrize("network", [LoGVMambaUNet, LoGVMambaSwinUNet])
def test_an_image_that_does_not_fit_is_told_what_does(network, image, message):
    built = network.from_channels(2, 1, 2, (8, 8), family="no_ssm")
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        built(image)


# Scores: each differs if prediction and truth are exchanged, or has two parts that do

PREDICTION = np.zeros((12, 12), bool)
PREDICTION[2:5, 2:5] = PREDICTION[8:10, 8:10] = PREDICTION[2:4, 8:10] = True
TRUTH = np.zeros((12, 12), bool)
TRUTH[2:6, 2:6] = True
FORMS = {
    "arrays": lambda mask: mask,
    "tensors": torch.from_numpy,
    "tensors that want gradients": lambda mask: torch.from_numpy(mask).float().requires_grad_(),
    "lists": lambda mask: mask.astype(int).tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_scores_have_the_prediction_first_and_take_arrays_tensors_and_lists(form):
    prediction, truth = FORMS[form](PREDICTION), FORMS[form](TRUTH)
    sized, near = {"spacing_mm": (2, 1)}, {"spacing_mm": (2, 1), "tolerance_mm": 1}
    assert evaluation.dice(prediction, truth) == overlap.dice(TRUTH, PREDICTION) == 18 / 33
    assert evaluation.iou(prediction, truth) == overlap.iou(TRUTH, PREDICTION)
    assert evaluation.volume_difference(prediction, truth, voxel_volume=0.5) == (17 - 16) * 0.5
    assert vars(evaluation.count_lesions(prediction, truth)) == {"true": 1, "missed": 0, "false": 2}
    assert evaluation.count_lesions(prediction, truth) == lesions.count_lesions(TRUTH, PREDICTION)
    assert evaluation.hd95(prediction, truth, **sized) == surface.hd95(TRUTH, PREDICTION, spacing=(2, 1))
    ours = surface.surface_dice(TRUTH, PREDICTION, spacing=(2, 1), tolerance=1)
    assert evaluation.surface_dice(prediction, truth, **near) == ours
    there, back = evaluation.surface_distances(prediction, truth, **sized)
    assert there.max() > back.max()  # only the prediction has pieces that are far from the truth
    scores = evaluation.instance_scores(prediction, truth, border=0)
    assert scores == scoring.instance_scores(TRUTH.astype(int), PREDICTION.astype(int), border=0)
    assert evaluation.recover_instances is instances.recover_instances


def test_scores_of_instances_count_what_is_invented_as_false_positive():
    truth = np.zeros((20, 20), int)
    truth[4:9, 4:9] = 1
    prediction = truth.copy()
    prediction[12:16, 12:16] = 2
    scores = evaluation.instance_scores(prediction, truth)
    assert (scores["tp"], scores["fp"], scores["fn"]) == (1, 1, 0)


def test_by_keyword_both_orders_of_arguments_say_the_same():
    arguments = {"truth": TRUTH, "prediction": PREDICTION}
    assert evaluation.volume_difference(**arguments) == overlap.volume_difference(**arguments) == 1


@pytest.mark.parametrize(
    "given", [None, "mask", TRUTH.astype(int) * 2 + PREDICTION, np.full((12, 12), np.nan)], ids=str
)
def test_what_is_no_mask_is_refused_in_a_sentence(given):
    with pytest.raises(ValueError, match="^prediction ") as refusal:
        evaluation.dice(given, TRUTH)
    assert "\n" not in str(refusal.value)


NAN, INF = float("nan"), float("inf")
OF_INSTANCES = ("f1", "object_iou", "average_precision", "tp", "fp", "fn")
# Score: its value where both masks are empty, where only the truth is, where only the prediction is
OF_EMPTY_MASKS = {
    "dice": ({}, NAN, 0.0, 0.0),
    "iou": ({}, NAN, 0.0, 0.0),
    "volume_difference": ({}, 0.0, 17.0, -16.0),
    "surface_distances": ({"spacing_mm": (1, 1)}, ValueError, ValueError, ValueError),
    "hd95": ({"spacing_mm": (1, 1)}, NAN, INF, INF),
    "surface_dice": ({"spacing_mm": (1, 1), "tolerance_mm": 1}, NAN, 0.0, 0.0),
    "count_lesions": ({}, LesionCounts(0, 0, 0), LesionCounts(0, 0, 3), LesionCounts(1, 1, 0)),
    "instance_scores": (
        {"border": 0},
        *(dict(zip(OF_INSTANCES, each)) for each in ((NAN, NAN, NAN, 0, 0, 0), (0, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 1))),
    ),
}


@pytest.mark.parametrize("name", OF_EMPTY_MASKS)
def test_scores_of_empty_masks_are_those_that_the_page_says(name):
    options, *expected = OF_EMPTY_MASKS[name]
    empty = np.zeros_like(TRUTH)
    for masks, value in zip(((empty, empty), (PREDICTION, empty), (empty, TRUTH)), expected, strict=True):
        if value is ValueError:
            with pytest.raises(ValueError, match="(truth|prediction) is empty and so has no surface"):
                getattr(evaluation, name)(*masks, **options)
        else:
            assert getattr(evaluation, name)(*masks, **options) == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("axis", [0, -1])
def test_a_one_hot_array_is_no_mask_and_a_plane_in_a_volume_is_one(axis):
    classes = np.digitize(np.arange(144).reshape(12, 12), (30, 70))
    hot = np.stack([classes == label for label in range(3)], axis)
    other = hot ^ (np.random.default_rng(0).random(hot.shape) > 0.9)
    for name, (options, *_) in OF_EMPTY_MASKS.items():
        if name == "instance_scores":
            continue
        options = {key: (1, 1, 1) if key == "spacing_mm" else value for key, value in options.items()}
        one = re.escape("truth[label]" if axis == 0 else "truth[..., label]")
        with pytest.raises(ValueError, match=rf"^truth has the shape .* one-hot along axis {axis % 3}; .* pass {one}$"):
            getattr(evaluation, name)(other, hot, **options)
        with pytest.raises(ValueError, match="^prediction has the shape"):
            getattr(evaluation, name)(hot, other, **options)
    plane = np.moveaxis(np.zeros((3, 12, 12)), 0, axis)
    np.moveaxis(plane, axis, 0)[1] = 1
    assert evaluation.dice(plane, plane) == 1  # one class everywhere: a slice of a volume
    assert evaluation.dice(np.eye(12), np.eye(12)) == 1
    sheet = np.moveaxis(np.repeat(np.eye(12)[None], 12, 0), 1, axis)
    assert evaluation.dice(sheet, sheet) == 1  # no fewer classes than rows


def test_words_of_other_packages_are_answered_with_ours():
    monai = {"y_pred": PREDICTION, "y": TRUTH, "percentile": 95, "include_background": False, "spacing": 1}
    with pytest.raises(TypeError) as refusal:
        evaluation.hd95(**monai)
    assert str(refusal.value) == (
        "hd95() got an unexpected keyword argument 'y_pred' (say prediction), 'y' (say truth), 'percentile' (hd95 "
        "takes the 95th; of surface_distances take any), 'include_background' (a mask is one label, pass prediction == "
        "label), 'spacing' (say spacing_mm)"
    )
    with pytest.raises(TypeError, match=r"'class_thresholds' \(say tolerance_mm\)$"):
        evaluation.surface_dice(PREDICTION, TRUTH, spacing_mm=(1, 1), class_thresholds=[1])
    with pytest.raises(TypeError, match=r"^dice\(\) .*'spacing' \(there are prediction, truth\)$"):
        evaluation.dice(PREDICTION, TRUTH, spacing=(1, 1))
    for name in OF_EMPTY_MASKS:
        with pytest.raises(TypeError, match=rf"^{name}\(\) .*'y_pred' \(say prediction\), 'y' \(say truth\)$"):
            getattr(evaluation, name)(y_pred=PREDICTION, y=TRUTH)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'spacing_mm'"):
        evaluation.hd95(PREDICTION, TRUTH)


def test_all_scores_are_listed_and_others_are_no_attributes():
    assert set(evaluation.__all__) <= set(dir(evaluation))
    assert all(callable(getattr(evaluation, name)) for name in evaluation.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'dise'"):
        evaluation.dise  # noqa: B018 - asked for on purpose
