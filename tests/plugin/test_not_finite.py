"""Numbers that are not finite never become a mask: stock nnU-Net commands and its predictor on models of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import small_model
import torch
from commands import NnunetFolders, run_command
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tifffile import imwrite

from nnunet_logvmamba.errors import NotFiniteError
from nnunet_logvmamba.networks.contract import PlannedNetwork
from nnunet_logvmamba.plugin import prediction_faults
from nnunet_logvmamba.plugin.plans import to_our_architecture

CHANNELS = {"0": "FLAIR", "1": "T1"}
SHAPE = {2: (1, 16, 16), 3: (8, 16, 16)}
PATCH = {2: [16, 16], 3: [8, 16, 16]}
MODEL = f"{small_model.TRAINER}__nnUNetPlans__small"


def write_model(root: Path, dims: int = 3, ending: str = ".nrrd", reader: str | None = None, **options) -> Path:
    """A model of two channels whose plans say that it was trained on values from -3 to 3."""
    model = small_model.write_model(root, dims, PATCH[dims], channels=CHANNELS, ending=ending, **options)
    plans = json.loads((model / "plans.json").read_text())
    learned = {"min": -3.0, "max": 3.0, "mean": 0.0, "std": 1.0}
    plans["foreground_intensity_properties_per_channel"] = dict.fromkeys(CHANNELS, learned)
    if reader is not None:
        plans["image_reader_writer"] = reader
    (model / "plans.json").write_text(json.dumps(plans))
    return model


def write_case(folder: Path, name: str, ending: str = ".nrrd", bad: tuple | None = None, dims: int = 3) -> None:
    """Two channels of noise; ``bad`` is a channel, the number of its voxels and their value (None: all of them)."""
    folder.mkdir(exist_ok=True)
    for channel in range(2):
        values = np.random.default_rng(channel).normal(0, 1, SHAPE[dims]).astype(np.float32)
        if bad is not None and bad[0] == channel:
            values.reshape(-1)[: bad[1]] = bad[2]
        path = folder / f"{name}_{channel:04d}{ending}"
        if ending == ".nii.gz":
            nibabel.save(nibabel.Nifti1Image(values.T, np.eye(4)), path)
        elif ending == ".tif":
            imwrite(path, values)
        else:
            sitk.WriteImage(sitk.GetImageFromArray(values), path)


def predictor_of(model: Path, mirroring: bool = False, **options) -> nnUNetPredictor:
    predictor = nnUNetPredictor(
        use_mirroring=mirroring, device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(model), (0,), **options)
    return predictor


def segmentations(folder: Path, ending: str = ".nrrd") -> list[str]:
    return sorted(path.name for path in folder.glob(f"*{ending}"))


NAN, INF = float("nan"), float("inf")


# The predictor in this process


@pytest.mark.parametrize("mirroring", [False, True], ids=["no mirroring", "mirroring"])
@pytest.mark.parametrize(("dims", "trainer"), [(2, small_model.SWIN_TRAINER), (2, small_model.TRAINER), (3, None)])
def test_a_case_with_nan_ends_in_a_sentence_and_the_others_are_written(tmp_path, capsys, dims, trainer, mirroring):
    swin = trainer == small_model.SWIN_TRAINER
    options = {"architecture": small_model.small_swin_architecture()} if swin else {}
    model = write_model(tmp_path, dims, trainer=trainer or small_model.TRAINER, **options)
    images, target = tmp_path / "images", tmp_path / "out"
    target.mkdir()
    for name, bad in {"a": None, "b": (1, 3, NAN), "c": None, "d": (0, 1, -INF), "e": None}.items():
        write_case(images, name, bad=bad, dims=dims)
    predictor = predictor_of(model, mirroring)
    with pytest.raises(NotFiniteError) as raised:
        predictor.predict_from_files_sequential(str(images), str(target))
    size = np.prod(SHAPE[dims])
    first, second = str(raised.value).splitlines()
    assert f"{images / 'b_0001.nrrd'} holds 3 voxel(s) of {size} that are NaN or infinite (channel 1, T1)" in first
    assert "so there is no mask of it: repair the image or leave it out" in first
    assert f"logvmamba check {images} MODEL" in first
    assert f"{images / 'd_0000.nrrd'} holds 1 voxel(s) of {size} that are NaN or infinite (channel 0, FLAIR)" in second
    assert segmentations(target) == ["a.nrrd", "c.nrrd", "e.nrrd"]
    asked = json.loads((target / "predict_from_raw_data_args.json").read_text())
    assert asked["list_of_lists_or_source_folder"] == str(images)


def test_nnunets_network_under_our_trainer_refuses_too(tmp_path):
    model = write_model(tmp_path, trainer="nnUNetTrainerStockNetwork")
    images, target = tmp_path / "images", tmp_path / "out"
    for name, bad in {"a": (1, 1, NAN), "b": None}.items():
        write_case(images, name, bad=bad)
    target.mkdir()
    predictor = predictor_of(model)
    with pytest.raises(NotFiniteError, match=r"a_0001.nrrd holds 1 voxel\(s\)"):
        predictor.predict_from_files_sequential(str(images), str(target))
    assert segmentations(target) == ["b.nrrd"]
    with torch.no_grad(), pytest.raises(NotFiniteError, match="2048 in channel 0, 2048 in channel 1"):
        predictor.network(torch.full((1, 2, 8, 16, 16), INF))
    weights = {name: torch.full_like(tensor, NAN) for name, tensor in predictor.network.state_dict().items()}
    with pytest.raises(NotFiniteError, match="These weights hold numbers"):
        predictor.network.load_state_dict(weights)


@pytest.mark.parametrize("value", [3e38, 1e30])
def test_numbers_that_overflow_in_the_preprocessing_make_no_mask_without_a_word(tmp_path, capsys, value):
    images, target = tmp_path / "images", tmp_path / "out"
    write_case(images, "a", bad=(1, 200, value))
    target.mkdir()
    said = ""
    try:
        predictor_of(write_model(tmp_path)).predict_from_files_sequential(str(images), str(target))
    except NotFiniteError as error:
        said = str(error)
    said += capsys.readouterr().err
    assert str(images / "a_0001.nrrd") in said
    assert f"{value:g}" in said


def test_an_array_is_counted_as_it_was_given(tmp_path):
    predictor = predictor_of(write_model(tmp_path))
    image = np.random.default_rng(0).normal(0, 1, (2, *SHAPE[3])).astype(np.float32)
    assert predictor.predict_single_npy_array(image.copy(), {"spacing": [1.0] * 3}).shape == SHAPE[3]
    image[1, 0, 0, :2] = INF
    with pytest.raises(NotFiniteError, match=r"The image holds 2 voxel\(s\) of 2048 that are NaN .* \(channel 1, T1\)"):
        predictor.predict_single_npy_array(image, {"spacing": [1.0] * 3})
    target = tmp_path / "mask"
    with pytest.raises(NotFiniteError, match=f"The image of {target} holds 2 "):
        predictor.predict_single_npy_array(image, {"spacing": [1.0] * 3}, None, str(target))
    assert not list(tmp_path.glob("mask*"))


def test_numbers_that_overflow_in_the_network_are_said_to(tmp_path):
    model = write_model(tmp_path)
    file = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    heads = [name for name in checkpoint["network_weights"] if "seg_layers" in name and name.endswith("weight")]
    for name in heads:
        checkpoint["network_weights"][name] = torch.full_like(checkpoint["network_weights"][name], 3e38)
    torch.save(checkpoint, file)
    images, target = tmp_path / "images", tmp_path / "out"
    write_case(images, "a")
    target.mkdir()
    with pytest.raises(NotFiniteError, match="although the image is finite and so are the weights") as raised:
        predictor_of(model).predict_from_files_sequential(str(images), str(target))
    assert str(images / "a_0000.nrrd") in str(raised.value)
    assert "another checkpoint, such as -chk checkpoint_best.pth" in str(raised.value)
    assert segmentations(target) == []


def test_half_precision_is_named_where_it_overflows(tmp_path):
    network = predictor_of(write_model(tmp_path)).network.eval()
    predictor = predictor_of(tmp_path / MODEL)
    case = prediction_faults.Case({}, predictor, torch.zeros(2, 8, 16, 16), "the image")
    logits = torch.full((1, 3, 8, 16, 16), INF, dtype=torch.float16)
    with pytest.raises(NotFiniteError, match="overflow in half precision.* -device cpu"):
        prediction_faults.refuse(case, logits)
    image = torch.zeros(1, 2, 8, 16, 16)
    image[0, 1, 0, 0, 0] = NAN
    with torch.no_grad(), pytest.raises(NotFiniteError, match="1 in channel 1, of 2048 per channel"):
        network(image)  # in a loop of the user's


def test_weights_that_became_nan_in_memory_are_named(tmp_path):
    predictor = predictor_of(write_model(tmp_path))
    next(predictor.network.parameters()).data.fill_(NAN)
    with torch.inference_mode(), pytest.raises(NotFiniteError, match="for its weights are not"):
        predictor.predict_sliding_window_return_logits(torch.randn(2, 8, 16, 16))


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("checkpoint", ["checkpoint_final.pth", "checkpoint_best.pth"])
def test_weights_that_are_not_finite_are_refused_with_the_file(tmp_path, checkpoint, value):
    model = write_model(tmp_path)
    file = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    names = list(content["network_weights"])[:2]
    for name in names:
        content["network_weights"][name].view(-1)[:3] = value
    torch.save(content, model / "fold_0" / checkpoint)
    with pytest.raises(NotFiniteError) as raised:
        predictor_of(model, checkpoint_name=checkpoint)
    total = content["network_weights"][names[0]].numel()
    assert f"{model / 'fold_0' / checkpoint} holds numbers that are NaN or infinite: 3 of {total} in" in str(
        raised.value
    )
    assert "'encoder." in str(raised.value)
    assert "and more in 1 other tensor(s)" in str(raised.value)
    assert "use another checkpoint, such as checkpoint_best.pth" in str(raised.value)


def test_weights_are_refused_whatever_wraps_the_network_and_none_is_copied(tmp_path):
    network = predictor_of(write_model(tmp_path)).network
    assert isinstance(network, PlannedNetwork)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    bad = {name: tensor.clone() for name, tensor in before.items()}
    bad["decoder.seg_layers.0.bias"][0] = NAN
    compiled = torch.compile(network)
    for module, prefix in ((network, ""), (compiled, "_orig_mod."), (torch.nn.Sequential(network), "0.")):
        with pytest.raises(NotFiniteError, match="These weights hold numbers .* 1 of 3 in '"):
            module.load_state_dict({prefix + name: tensor for name, tensor in bad.items()})
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    bad["decoder.seg_layers.0.bias"][0] = 0.0  # repaired in place: it is looked at again
    network.load_state_dict(bad)
    bad["decoder.seg_layers.0.bias"][0] = INF
    with pytest.raises(NotFiniteError):
        network.load_state_dict(bad)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ((0, None, 0.0), "a_0000.nrrd has the value 0 everywhere (channel 0, FLAIR)"),
        ((1, None, 5.0), "a_0001.nrrd has the value 5 everywhere (channel 1, T1)"),
        ((1, 1, 1e9), "a_0001.nrrd holds 1 voxel(s) of 2048 far outside of what was trained on (channel 1, T1)"),
        ((1, 1, 4.0), None),
        (None, None),
    ],
)
def test_an_odd_image_is_predicted_and_warned_about_once(tmp_path, capsys, bad, said):
    images, target = tmp_path / "images", tmp_path / "out"
    write_case(images, "a", bad=bad)
    target.mkdir()
    predictor_of(write_model(tmp_path, folds=(0,))).predict_from_files_sequential(str(images), str(target))
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ATTENTION")]
    assert len(warned) == (said is not None)
    assert said is None or f"{images}/{said}" in warned[0]
    assert segmentations(target) == ["a.nrrd"]


# Stock commands


@pytest.fixture(scope="module")
def predict(tmp_path_factory):
    """Run ``nnUNetv2_predict`` on a folder of images; gives the finished process and the folder of the masks."""
    folders = NnunetFolders.below(tmp_path_factory.mktemp("predict"))

    def run(make, images: Path, target: Path, *options: object, trainer=small_model.TRAINER, fold=(0,), **env):
        results = folders.results / "Dataset004_Hippocampus"
        shutil.rmtree(results, ignore_errors=True)
        make(results)
        command = ["nnUNetv2_predict", "-i", images, "-o", target, "-d", 4, "-c", "small", "-tr", trainer]
        command += ["-f", *fold, "-device", "cpu", "--disable_progress_bar", *options]
        return run_command(command, check=False, **folders.environment, **env)

    return run


FORMATS = [(".nrrd", None), (".mha", None), (".nii.gz", "NibabelIO"), (".nii.gz", "NibabelIOWithReorient")]


@pytest.mark.slow
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(("ending", "reader"), [*FORMATS, (".tif", "Tiff3DIO")])
def test_stock_prediction_names_the_file_and_writes_the_others(tmp_path, predict, ending, reader, value):
    images, target = tmp_path / "images", tmp_path / "out"
    for name in ("a", "b", "c"):
        write_case(images, name, ending, bad=(1, 2, value) if name == "b" else None)
    done = predict(lambda root: write_model(root, 3, ending, reader), images, target, "-npp", 1, "-nps", 1)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{images / f'b_0001{ending}'} holds 2 voxel(s) of 2048 that are NaN or infinite (channel 1")
    assert "so there is no mask of it" in last
    assert segmentations(target, ending) == [f"a{ending}", f"c{ending}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "env"),
    [
        (("-npp", 2, "-nps", 2, "--disable_tta"), {}),
        (("-npp", 0, "-nps", 0), {}),
        (("-npp", 1, "-nps", 1, "--save_probabilities"), {}),
        (("-npp", 1, "-nps", 1, "--disable_tta"), {"nnUNet_compile": "t"}),
    ],
    ids=["several processes", "sequential", "probabilities", "compiled"],
)
def test_every_way_to_predict_names_all_bad_cases(tmp_path, predict, options, env):
    images, target = tmp_path / "images", tmp_path / "out"
    for name, bad in {"a": (0, 1, NAN), "b": None, "c": None, "d": (1, 1, INF), "e": (1, 1, NAN)}.items():
        write_case(images, name, bad=bad)
    done = predict(lambda root: write_model(root, folds=(0, 1)), images, target, *options, fold=(0, 1), **env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = done.stderr.strip().splitlines()[-3:]
    assert [line.split(" holds ")[0] for line in said] == [
        str(images / name) for name in ("a_0000.nrrd", "d_0001.nrrd", "e_0001.nrrd")
    ]
    assert segmentations(target) == ["b.nrrd", "c.nrrd"]
    assert [path.stem for path in sorted(target.glob("*.npz"))] == (["b", "c"] if "--save_prob" in str(options) else [])


@pytest.mark.slow
def test_stock_prediction_refuses_weights_and_names_the_fold(tmp_path, predict):
    def make(root: Path) -> None:
        model = write_model(root, folds=(0, 1))
        file = model / "fold_1" / "checkpoint_final.pth"
        content = torch.load(file, weights_only=False)
        content["network_weights"]["decoder.seg_layers.0.bias"][1] = NAN
        torch.save(content, file)

    images, target = tmp_path / "images", tmp_path / "out"
    write_case(images, "a")
    done = predict(make, images, target, "-npp", 1, "-nps", 1, fold=(0, 1))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert f"{MODEL}/fold_1/checkpoint_final.pth holds numbers that are NaN or infinite: 1 of 3 in" in last
    assert segmentations(target) == []


@pytest.mark.slow
def test_nnunets_own_trainer_with_a_network_of_ours_names_the_file_too(tmp_path, predict):
    def make(root: Path) -> None:
        model = write_model(root)
        plans = json.loads((model / "plans.json").read_text())
        file = model / "fold_0" / "checkpoint_final.pth"
        content = torch.load(file, weights_only=False)
        small = plans["configurations"]["small"]
        small["architecture"] = to_our_architecture(small["architecture"], small["patch_size"])
        content["trainer_name"] = "nnUNetTrainer"
        torch.save(content, file)
        (model / "plans.json").write_text(json.dumps(plans))
        model.rename(model.with_name("nnUNetTrainer__nnUNetPlans__small"))

    images, target = tmp_path / "images", tmp_path / "out"
    for name, bad in {"a": None, "b": (0, 1, NAN), "c": None}.items():
        write_case(images, name, bad=bad)
    done = predict(make, images, target, "-npp", 1, "-nps", 1, trainer="nnUNetTrainer")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"{images / 'b_0000.nrrd'} holds 1 voxel(s) of 2048")
    assert segmentations(target) == ["a.nrrd", "c.nrrd"]


@pytest.mark.slow
def test_the_validation_of_a_training_names_the_case_and_keeps_what_was_written(own_trained):
    fold = own_trained.fold("3d_tiny").path
    shutil.rmtree(fold / "validation")
    file = fold / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    heads = [name for name in content["network_weights"] if "seg_layers" in name and name.endswith("weight")]
    for name in heads:
        content["network_weights"][name].fill_(3e38)
    torch.save(content, file)
    command = (
        "nnUNetv2_train",
        own_trained.number,
        "3d_tiny",
        0,
        "-tr",
        small_model.TRAINER,
        "-device",
        "cpu",
        "--val",
    )
    done = own_trained.run(*command, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "What the network gives for the preprocessed case BraTS20_Training_" in done.stderr.strip().splitlines()[-1]
    assert not (fold / "validation" / "summary.json").exists()
