"""``logvmamba check``: what it refuses in one sentence, and that nnU-Net takes what it accepts."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import nibabel
import nifti_headers
import numpy as np
import pytest
import SimpleITK as sitk
import small_dataset
import torch
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder
from PIL import Image
from tifffile import imwrite

from nnunet_logvmamba.cli import main

RGB, MRI = ("R", "G", "B"), ("FLAIR", "T1")


def write_model(root: Path, ending: str = ".png", channels: tuple[str, ...] = RGB) -> Path:
    """What the command needs of a model, as nnU-Net writes it."""
    folder = root / "nnUNetTrainerLoGVMamba__nnUNetPlans__2d"
    folder.mkdir()
    reader = determine_reader_writer_from_file_ending(ending, verbose=False)
    configuration = {
        "architecture": {},  # nnU-Net takes plans without it for older ones
        "preprocessor_name": "DefaultPreprocessor",
        "spacing": [1.0, 1.0],
        "patch_size": [64, 64],
        "normalization_schemes": ["ZScoreNormalization"] * len(channels),
        "use_mask_for_norm": [False] * len(channels),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
    }
    plans = {
        "image_reader_writer": reader.__name__,
        "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {str(index): {} for index in range(len(channels))},
        "configurations": {"2d": configuration},
    }
    dataset_json = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": {"background": 0, "interior": 1},
        "file_ending": ending,
    }
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


def picture(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(1, np.iinfo(dtype).max, shape, dtype)


def write_volume(path: Path, *shape: int, spacing: float = 1.0) -> None:
    image = sitk.GetImageFromArray(picture(*shape))
    image.SetSpacing([spacing] * 3)
    sitk.WriteImage(image, path)


@pytest.fixture
def images(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.fixture
def check(images, capsys):
    """Run the command and give its exit code and the one line it printed, the progress bar left out."""

    def run(model: Path, *options: object, images: Path = images) -> tuple[int, str]:
        code = main(["check", str(images), str(model), "--jobs", "1", *map(str, options)])
        printed = capsys.readouterr()
        text = printed.out if code == 0 else printed.err
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("images:")]
        assert len(lines) == 1, lines
        return code, lines[0]

    return run


def preprocess_all(images: Path, model: Path) -> list[np.ndarray]:
    """Read and preprocess every case of a folder by the functions that ``nnUNetv2_predict`` calls."""
    dataset_json = json.loads((model / "dataset.json").read_text())
    plans = PlansManager(str(model / "plans.json"))
    configuration = plans.get_configuration("2d")
    preprocessor = configuration.preprocessor_class(verbose=False)
    lists = create_lists_from_splitted_dataset_folder(str(images), dataset_json["file_ending"], num_processes=1)
    return [preprocessor.run_case(files, None, plans, configuration, dataset_json)[0] for files in lists]


def write_array(path: Path, values: np.ndarray) -> None:
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(values.T, np.eye(4)), path)
    elif path.suffix == ".tif":
        imwrite(path, values)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(values), path)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


def with_spike(values: np.ndarray, spike: float) -> np.ndarray:
    np.put(values, 7, spike)
    return values


def set_plans(model: Path, **entries: object) -> None:
    file = model / "plans.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


# What nnU-Net takes


def pictures_of_all_kinds(folder: Path) -> None:
    Image.fromarray(picture(80, 100, 3)).save(folder / "colour_0000.png")
    Image.fromarray(picture(9, 12, 3)).save(folder / "smaller_than_the_patch_0000.png")
    Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(folder / "black_0000.png")
    for channel in range(3):
        Image.fromarray(picture(80, 100, dtype=np.uint16)).save(folder / f"three_files_of_16_bits_{channel:04d}.png")


def tiffs_of_16_bits(folder: Path) -> None:
    for case in ("a", "b"):
        imwrite(folder / f"{case}_0000.tif", picture(80, 100, 3, dtype=np.uint16), photometric="rgb")


def volumes(folder: Path) -> None:
    for case in ("a", "b", "c"):
        for channel in range(2):
            write_volume(folder / f"{case}_{channel:04d}.nii.gz", 4, 20, 24)


@pytest.mark.parametrize(
    ("write", "ending", "channels", "cases"),
    [(pictures_of_all_kinds, ".png", RGB, 4), (tiffs_of_16_bits, ".tif", RGB, 2), (volumes, ".nii.gz", MRI, 3)],
)
def test_what_is_ready_nnunet_reads_and_preprocesses(tmp_path, images, check, write, ending, channels, cases):
    model = write_model(tmp_path, ending, channels)
    write(images)
    assert check(model) == (0, f"ready: {cases} case(s), {len(channels)} channel(s) each")
    arrays = preprocess_all(images, model)
    assert [len(array) for array in arrays] == [len(channels)] * cases
    assert all(np.isfinite(array).all() for array in arrays)


def test_values_of_16_bits_are_kept(tmp_path, images):
    tiffs_of_16_bits(images)
    reader = PlansManager(str(write_model(tmp_path, ".tif") / "plans.json")).image_reader_writer_class()
    assert reader.read_images([str(images / "a_0000.tif")])[0].max() > 2**15


def test_the_second_stage_of_a_cascade_wants_no_files_of_the_first(tmp_path, images, check):
    model = write_model(tmp_path, ".nii.gz", MRI)
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["2d"]["previous_stage"] = "lowres"
    (model / "plans.json").write_text(json.dumps(plans))
    volumes(images)
    assert check(model) == (0, "ready: 3 case(s), 2 channel(s) each")


def test_images_that_would_be_passed_over_are_mentioned(tmp_path, images, check):
    pictures_of_all_kinds(images)
    imwrite(images / "forgotten.tif", picture(80, 100, 3))
    (images / "notes.txt").write_text("nothing that anybody would predict")
    code, said = check(write_model(tmp_path))
    assert code == 0
    assert said.startswith("ready: 4 case(s)")
    assert "1 other image(s) would be passed over" in said
    assert "forgotten.tif" in said


# What it does not take


def test_rgba_for_three_channels(tmp_path, images, check):
    pictures_of_all_kinds(images)
    for case in ("x", "y", "z"):
        Image.fromarray(picture(80, 100, 4)).save(images / f"{case}_0000.png")
    model = write_model(tmp_path)
    code, said = check(model)
    assert code == 2
    assert f"{images / 'x_0000.png'} has 4 channel(s)" in said
    assert "trained on 3 channel(s) (R, G, B)" in said
    assert "--images-only" in said
    assert said.endswith("2 more case(s) have faults")
    with pytest.raises(IndexError):  # the remedy is due as long as nnU-Net ends in this
        preprocess_all(images, model)


@pytest.mark.slow
def test_processes_give_the_same_sentence(tmp_path, images, check):
    for case in ("x", "y", "z"):
        Image.fromarray(picture(80, 100, 4)).save(images / f"{case}_0000.png")
    model = write_model(tmp_path)
    assert check(model, "--jobs", 2) == check(model)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_for_three_channels(tmp_path, images, check, dtype):
    Image.fromarray(picture(80, 100, dtype=dtype)).save(images / "grey_0000.png")
    code, said = check(write_model(tmp_path))
    assert code == 2
    assert f"{images / 'grey_0000.png'} has 1 channel(s)" in said
    assert "trained on 3 channel(s) (R, G, B)" in said
    assert "more case" not in said


def test_a_missing_last_channel(tmp_path, images, check):
    volumes(images)
    (images / "b_0001.nii.gz").unlink()
    code, said = check(write_model(tmp_path, ".nii.gz", MRI))
    assert code == 2
    assert f"{images / 'b_0000.nii.gz'} has 1 channel(s)" in said
    assert "(FLAIR, T1): add b_0001.nii.gz" in said


def test_a_missing_first_channel(tmp_path, images, check):
    volumes(images)
    (images / "b_0000.nii.gz").unlink()
    code, said = check(write_model(tmp_path, ".nii.gz", MRI))
    assert code == 2
    assert f"{images / 'b_0000.nii.gz'} is missing although there is b_0001.nii.gz" in said


def test_more_files_than_channels(tmp_path, images, check):
    volumes(images)
    write_volume(images / "c_0002.nii.gz", 4, 20, 24)
    code, said = check(write_model(tmp_path, ".nii.gz", MRI))
    assert code == 2
    assert f"{images / 'c_0000.nii.gz'} and the other files of its case have together 3 channel(s)" in said
    assert "leave out" in said


def test_files_of_a_case_that_differ_in_shape(tmp_path, images, check):
    volumes(images)
    write_volume(images / "a_0001.nii.gz", 5, 20, 24)
    code, said = check(write_model(tmp_path, ".nii.gz", MRI))
    assert code == 2
    assert f"{images / 'a_0001.nii.gz'} has the shape (1, 5, 20, 24), and a_0000.nii.gz (1, 4, 20, 24)" in said


def test_files_of_a_case_that_differ_in_spacing(tmp_path, images, check):
    volumes(images)
    write_volume(images / "a_0001.nii.gz", 4, 20, 24, spacing=2)
    code, said = check(write_model(tmp_path, ".nii.gz", MRI))
    assert code == 2
    assert f"{images / 'a_0001.nii.gz'} has the spacing (2.0, 2.0, 2.0), and a_0000.nii.gz (1.0, 1.0, 1.0)" in said


def write_phases(path: Path, *shape: int) -> None:
    """One file with all phases of a series, as converters of DICOM write it; axes as x, y, z, phase."""
    if path.name.endswith(".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(picture(*shape), np.eye(4)), path)
    else:
        phases = [sitk.GetImageFromArray(picture(*shape[2::-1])) for _ in range(shape[3])]
        sitk.WriteImage(sitk.JoinSeries(phases), path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_phases_in_one_file_are_refused_by_its_header_alone(tmp_path, images, check, monkeypatch, ending, reader):
    if reader == "NibabelIO" and ending != ".nii.gz":
        pytest.skip("nibabel reads NIfTI alone")
    model = write_model(tmp_path, ending, MRI)
    set_plans(model, image_reader_writer=reader)
    write_phases(images / f"a_0000{ending}", 24, 20, 4, 2)
    monkeypatch.setattr("nnunet_logvmamba.plugin.acceptance.read_once", None)
    code, line = check(model)
    assert code == 2
    said = f"a_0000{ending} has 4 axes (24 x 20 x 4 x 2), and nnU-Net needs three: split it into "
    assert f"{said}a_0000{ending}, a_0001{ending}" in line
    if reader == "SimpleITKIO":  # it reads them, and cannot write the mask
        for case in preprocess_all(images, model):
            assert len(case) == 2
        values, properties = SimpleITKIO().read_images([str(images / f"a_0000{ending}")])
        with pytest.raises(AssertionError):
            SimpleITKIO().write_seg(values[0], str(tmp_path / f"mask{ending}"), properties)


def test_phases_that_are_not_the_channels_come_with_what_the_model_takes(tmp_path, images, check):
    model = write_model(tmp_path, ".nii.gz", ("CT",))
    write_phases(images / "a_0000.nii.gz", 24, 20, 4, 3)
    code, line = check(model)
    assert code == 2
    assert "a_0000.nii.gz has 4 axes (24 x 20 x 4 x 3)" in line
    assert "the model was trained on 1 channel(s) (CT): save each of them as a file of three axes" in line


def test_a_fourth_axis_of_one_is_none_to_itk(tmp_path, images, check):
    write_phases(images / "a_0000.nii.gz", 24, 20, 4, 1)
    model = write_model(tmp_path, ".nii.gz", ("CT",))
    assert check(model) == (0, "ready: 1 case(s), 1 channel(s) each")
    values, properties = SimpleITKIO().read_images([str(images / "a_0000.nii.gz")])
    SimpleITKIO().write_seg(values[0], str(tmp_path / "mask.nii.gz"), properties)
    set_plans(model, image_reader_writer="NibabelIO")
    code, line = check(model)
    assert code == 2
    assert "a_0000.nii.gz has 4 axes (24 x 20 x 4 x 1), and nnU-Net needs three: save it with those" in line


@pytest.mark.parametrize("name", ["colour_0000.png", "b_0001.nii.gz"])
def test_a_truncated_file(tmp_path, images, check, name):
    ending = "." + name.partition(".")[2]
    (pictures_of_all_kinds if ending == ".png" else volumes)(images)
    content = (images / name).read_bytes()
    (images / name).write_bytes(content[: len(content) // 2])
    code, said = check(write_model(tmp_path, ending, RGB if ending == ".png" else MRI))
    assert code == 2
    assert f"{images / name} cannot be read by nnU-Net's" in said


def test_volumes_that_simpleitk_refuses_and_the_reader_that_takes_them(tmp_path, images, check):
    model = write_model(tmp_path, ".nii.gz", ("MR",))
    values = picture(24, 20, 6)
    image = nibabel.Nifti1Image(values, nifti_headers.affine(shear=0.02))
    nibabel.save(image, images / "a_0000.nii.gz")
    code, said = check(model)
    assert code == 2
    assert f"{images / 'a_0000.nii.gz'} cannot be read by nnU-Net's SimpleITKIO (ITK ERROR: ITK only supports" in said
    assert "axes at right angles" in said
    assert "'image_reader_writer': 'NibabelIO' in its plans.json" in said
    plans = json.loads((model / "plans.json").read_text())
    (model / "plans.json").write_text(json.dumps({**plans, "image_reader_writer": "NibabelIO"}))
    assert check(model) == (0, "ready: 1 case(s), 1 channel(s) each")
    assert preprocess_all(images, model)[0].shape[1] == 6
    nibabel.save(nibabel.Nifti1Image(values[..., None], np.eye(4)), images / "a_0000.nii.gz")
    code, said = check(model)
    assert code == 2
    assert "has 4 axes (24 x 20 x 6 x 1), and nnU-Net needs three: save it with those" in said


@pytest.mark.parametrize("shape", [(1, 20, 24), (20, 24, 1)])
def test_a_tiff_with_an_axis_of_length_1(shape, tmp_path, images, check):
    imwrite(images / "a_0000.tif", picture(20, 24).reshape(shape))
    code, said = check(write_model(tmp_path, ".tif", ("grey",)))
    assert code == 2
    assert f"{images / 'a_0000.tif'} cannot be read by nnU-Net's NaturalImage2DIO" in said
    assert said.endswith("save it with the shape (20, 24)")


@pytest.mark.parametrize("name", ["a_0000.tif", "a_0000.PNG", "a.jpeg"])
def test_images_under_another_ending(tmp_path, images, check, name):
    (images / name).write_bytes(b"not looked into")
    code, said = check(write_model(tmp_path))
    assert code == 2
    assert f"{images} holds no file that ends in .png" in said
    assert "1 file(s)" in said
    assert "no case" in said


def test_a_name_without_channel_number(tmp_path, images, check):
    pictures_of_all_kinds(images)
    Image.fromarray(picture(80, 100, 3)).save(images / "gallery.png")
    code, said = check(write_model(tmp_path))
    assert code == 2
    assert f"{images / 'gallery.png'} has no channel number" in said
    assert "<case>_0000.png" in said


def test_an_empty_folder(tmp_path, images, check):
    code, said = check(write_model(tmp_path))
    assert code == 2
    assert f"{images} holds no files; expected are <case>_0000.png" in said


def test_no_folder(tmp_path, check):
    code, said = check(write_model(tmp_path), images=tmp_path / "nowhere")
    assert code == 2
    assert f"{tmp_path / 'nowhere'} is not a folder" in said


def test_a_folder_that_is_no_model(tmp_path, images, check):
    fold = write_model(tmp_path) / "fold_0"
    fold.mkdir()
    for folder in (fold, tmp_path / "nowhere"):
        code, said = check(folder)
        assert code == 2
        assert f"{folder} is no trained model, for it has no dataset.json" in said
        assert "TRAINER__PLANS__CONFIGURATION" in said


@pytest.mark.parametrize(
    ("file", "key", "value", "said_about_it"),
    [
        ("dataset.json", "channel_names", {}, "names no channels"),
        ("plans.json", "image_reader_writer", None, "names no 'image_reader_writer'"),
        ("plans.json", "image_reader_writer", "ReaderOfTomorrow", "'ReaderOfTomorrow'"),
    ],
)
def test_a_model_whose_files_say_too_little(tmp_path, images, check, file, key, value, said_about_it):
    model = write_model(tmp_path)
    content = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps({**content, key: value}))
    code, said = check(model)
    assert code == 2
    assert str(model / file) in said
    assert said_about_it in said


def test_swapped_folders_and_segmentations_are_recognised(tmp_path, images, check):
    model = write_model(tmp_path, ".nii.gz", ("MR",))
    write_volume(images / "a_0000.nii.gz", 4, 20, 24)
    code, said = check(images, images=model)
    assert (code, said) == (
        2,
        f"logvmamba: {model} holds a model: the folder of images comes first, then that of the model",
    )
    labels = tmp_path / "labels"
    labels.mkdir()
    mask = (picture(4, 20, 24) > 200).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(mask), labels / "a.nii.gz")
    code, said = check(model, images=labels)
    assert (code, f"{labels / 'a.nii.gz'} holds nothing but labels, so it is no scan" in said) == (2, True)
    sitk.WriteImage(sitk.GetImageFromArray(mask * 0), labels / "a.nii.gz")  # a dark scan may be 0 everywhere
    assert "has no channel number" in check(model, images=labels)[1]


# Numbers

NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(
    ("ending", "reader"),
    [
        (".nrrd", None),
        (".mha", None),
        (".nii.gz", "NibabelIO"),
        (".nii", "NibabelIOWithReorient"),
        (".tif", "Tiff3DIO"),
    ],
)
def test_voxels_that_are_not_finite_are_counted_by_file_and_channel(tmp_path, images, check, ending, reader, value):
    model = write_model(tmp_path, ending, MRI)
    if reader is not None:
        set_plans(model, image_reader_writer=reader)
    for case in ("a", "b", "c"):
        for channel in range(2):
            values = noise(4, 20, 24)
            values[0, 0, : 3 * (case != "a") * channel] = value
            write_array(images / f"{case}_{channel:04d}{ending}", values)
    code, said = check(model)
    assert code == 2
    assert f"{images / f'b_0001{ending}'} holds 3 voxel(s) of 1920 that are NaN or infinite (channel 1, T1)" in said
    assert said.endswith("repair the image or leave it out; 1 more case(s) have faults")


@pytest.mark.parametrize("value", NOT_FINITE)
def test_what_simpleitk_hides_is_warned_about(tmp_path, images, value, capsys):
    model = write_model(tmp_path, ".nii.gz", ("MR",))
    values = noise(4, 20, 24)
    values[0, 0, :2] = value
    write_array(images / "a_0000.nii.gz", values)
    assert main(["check", str(images), str(model), "--jobs", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("ready: 1 case(s)")
    assert f"ATTENTION: {images / 'a_0000.nii.gz'} holds 2 voxel(s) of 1920 that are NaN or infinite" in printed.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda values: values * 0,
            "has the value 0 everywhere (channel 1, T1), so its segmentation will mean nothing",
        ),
        (lambda values: values * 0 - 7, "has the value -7 everywhere"),
        (lambda values: values * 1e6, "far outside of what was trained on (channel 1, T1): its values go from -3"),
        (lambda values: with_spike(values, 1e30), "holds 1 voxel(s) of 1920 far outside of what was trained on"),
        (lambda values: values * 9, None),
        (lambda values: values, None),
    ],
)
def test_odd_images_are_ready_with_a_warning_that_names_the_file(tmp_path, images, capsys, change, said):
    model = write_model(tmp_path, ".nrrd", MRI)
    learned = {"min": -3.0, "max": 3.0, "mean": 0.0, "std": 1.0}
    set_plans(model, foreground_intensity_properties_per_channel={"0": learned, "1": learned})
    for channel in range(2):
        values = noise(4, 20, 24)
        write_array(images / f"a_{channel:04d}.nrrd", (change(values) if channel else values).astype(np.float32))
    assert main(["check", str(images), str(model), "--jobs", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "ready: 1 case(s), 2 channel(s) each\n"
    warned = [line for line in printed.err.splitlines() if line.startswith("ATTENTION")]
    assert len(warned) == (said is not None)
    assert said is None or (str(images / "a_0001.nrrd") in warned[0] and said in warned[0])


def test_a_colour_that_is_missing_is_not_odd_but_a_black_picture_is(tmp_path, images, capsys):
    colours = picture(80, 100, 3)
    colours[..., 2] = 0
    Image.fromarray(colours).save(images / "a_0000.png")
    Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(images / "b_0000.png")
    assert main(["check", str(images), str(write_model(tmp_path)), "--jobs", "1"]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ATTENTION")]
    assert warned
    assert all(str(images / "b_0000.png") in line for line in warned)


# A model alone


@pytest.fixture
def trained_model(tmp_path) -> Path:
    model = write_model(tmp_path)
    for fold in range(2):
        (model / f"fold_{fold}").mkdir()
        for name in ("final", "best"):
            weights = {"network_weights": {"weight": torch.randn(100, 100), "steps": torch.tensor(3)}}
            torch.save(weights, model / f"fold_{fold}" / f"checkpoint_{name}.pth")
    return model


def run(capsys, *words: object) -> tuple[int, str]:
    code = main(["check", *map(str, words), "--jobs", "1"])
    printed = capsys.readouterr()
    (line,) = [line for line in (printed.err if code else printed.out).splitlines() if "case/s" not in line]
    return code, line


def test_whole_checkpoints_with_finite_weights_are_ready(trained_model, capsys):
    assert run(capsys, trained_model) == (
        0,
        f"{trained_model}: 4 checkpoint(s), whole, with finite weights, and nothing in them but weights and settings",
    )


def with_nan(content: bytes) -> bytes:
    file = io.BytesIO(content)
    checkpoint = torch.load(file)
    checkpoint["network_weights"]["weight"][3, :4] = float("nan")
    saved = io.BytesIO()
    torch.save(checkpoint, saved)
    return saved.getvalue()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content[:9000] + bytes(4000) + content[13000:], "the checksum of its part "),
        (lambda content: content[: len(content) // 2], "its end is missing"),
        (lambda content: b"", "it is empty"),
        (lambda content: b"<html>", "it does not begin as a file of PyTorch does"),
        (with_nan, "holds weights that are NaN or infinite (4 of 10000 in 'weight')"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_damaged_checkpoints_are_named_with_one_that_is_whole(trained_model, images, capsys, change, said, alone):
    pictures_of_all_kinds(images)
    for fold, name in ((0, "final"), (1, "best")):
        file = trained_model / f"fold_{fold}" / f"checkpoint_{name}.pth"
        file.write_bytes(change(file.read_bytes()))
    code, line = run(capsys, trained_model) if alone else run(capsys, images, trained_model)
    assert code == 2
    assert (
        f"{trained_model / 'fold_0' / 'checkpoint_final.pth'} {'holds' if change is with_nan else 'is damaged ('}"
        in line
    )
    assert said in line
    assert "copy it anew, or use checkpoint_best.pth beside it (predict with -chk checkpoint_best.pth)" in line
    assert line.endswith("; 1 more checkpoint(s) have faults")


def test_a_model_without_checkpoint_and_a_folder_that_is_nothing(tmp_path, images, capsys):
    model = write_model(tmp_path)
    assert "holds no checkpoint: name a trained model, its zip file, or a raw data set" in run(capsys, model)[1]
    code, line = run(capsys, images)
    assert code == 2
    assert f"{images} holds no checkpoint" in line


# What a model tells of its data


def fill(trained_model: Path, case: str = "patient_4711") -> None:
    """What nnU-Net and this package leave beside checkpoints, with the name of a case and paths in it."""
    entry = {"prediction_file": f"/home/me/{case}.nii.gz", "reference_file": f"/data/{case}.nii.gz", "metrics": {}}
    summary = json.dumps({"metric_per_case": [entry]})
    for fold in ("fold_0", "fold_1"):
        (trained_model / fold / "validation").mkdir()
        (trained_model / fold / "validation" / "summary.json").write_text(summary)
        split = f"(['other_{fold}'], ['{case}'])"
        debug = {"_split": split, "output_folder": "/home/me/results", "hostname": "ward7"}
        (trained_model / fold / "debug.json").write_text(json.dumps(debug))
        (trained_model / fold / "progress.png").write_bytes(b"a picture")
    (trained_model / "fold_0" / "logvmamba.json").write_text(json.dumps({"sessions": [{"command": "nnUNetv2_train"}]}))
    results = trained_model / "crossval_results_folds_0_1"
    results.mkdir()
    (results / "summary.json").write_text(summary)
    (results / "postprocessing.json").write_text(json.dumps({"input_folder": {"mean": {"1": {"Dice": 0.5}}}}))
    (results / "postprocessing.pkl").write_bytes(pickle.dumps(([], [])))


TOLD = "note: before this model is shared, look at what in it tells of its data and of this machine:"
BOTH = "names of cases and absolute paths"


def told(capsys, path: Path) -> list[str]:
    """What the command says of a sound model beyond that it is sound."""
    assert main(["check", str(path), "--jobs", "1"]) == 0
    return capsys.readouterr().out.splitlines()[1:]


def test_files_of_a_zip_that_tell_names_or_paths_are_listed_until_they_are_gone(trained_model, tmp_path, capsys):
    fill(trained_model)
    best = {"some_plans_file": "C:\\\\results\\\\plans.json", "postprocessing_file": "/home/me/postprocessing.pkl"}
    model = f"Dataset501_X/{trained_model.name}"
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive, zipfile.ZipFile(tmp_path / "rest.zip", "w") as rest:
        archive.writestr("Dataset501_X/inference_information.json", json.dumps({"best_model_or_ensemble": best}))
        for path in sorted(trained_model.rglob("*")):
            archive.write(path, f"{model}/{path.relative_to(trained_model)}")
            if path.name not in ("summary.json", "debug.json"):  # as the page says
                rest.write(path, f"{model}/{path.relative_to(trained_model)}")
    assert told(capsys, tmp_path / "model.zip") == [
        TOLD,
        "  Dataset501_X/inference_information.json: absolute paths",
        f"  {model}/crossval_results_folds_0_1/summary.json: {BOTH}",
        f"  {model}/fold_*/debug.json (2): {BOTH}",
        f"  {model}/fold_*/validation/summary.json (2): {BOTH}",
    ]
    assert told(capsys, tmp_path / "rest.zip") == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "fold_0/training_log_2026_1_2_3_4_5.txt",
            "predicting patient_4711",
            "fold_*/training_log_*.txt: names of cases",
        ),
        ("fold_0/training_log_2026_1_2_3_4_5.txt", "see https://some.where/a/b, 2/3 of 1/2/3, patient_47110", None),
        ("fold_0/training_log_2026_1_2_3_4_5.txt", "in D:\\results\\x", "fold_*/training_log_*.txt: absolute paths"),
        ("fold_0/report.html", "<td>patient_4711</td>", "fold_*/report.html: names of cases"),
        ("fold_0/report.html", "<img src='data:image/png;base64,a+/b/cd/efg=='><b>a</b></p>", None),
        ("fold_0/scores/scores.csv", "case,dice\nother_fold_1,0.5", "fold_*/scores/scores.csv: names of cases"),
        ("fold_0/validation/unseen.nii.gz", "", "fold_*/validation/*.nii.gz: names of cases"),
        ("fold_0/patient_4711.png", "", "fold_*/*.png: names of cases"),
        ("fold_0/broken.json", '{"folder": "/home/me/x', "fold_*/broken.json: absolute paths"),
    ],
)
def test_files_of_a_folder_that_tell_names_or_paths_are_listed(trained_model, capsys, name, text, said):
    fill(trained_model)
    before = told(capsys, trained_model)
    (trained_model / name).parent.mkdir(exist_ok=True)
    (trained_model / name).write_text(text)
    more = [line for line in told(capsys, trained_model) if line not in before]
    assert more == ([] if said is None else [f"  {said}"])


def test_a_list_of_images_in_dataset_json_is_in_every_checkpoint_too(trained_model, capsys):
    content = json.loads((trained_model / "dataset.json").read_text())
    listed = {"p1": {"images": ["imagesTr/p1_0000.png"], "label": "labelsTr/p1.png"}}
    (trained_model / "dataset.json").write_text(json.dumps({**content, "dataset": listed}))
    assert told(capsys, trained_model) == [TOLD, "  dataset.json: names of cases; every checkpoint holds a copy"]


def test_names_of_one_or_two_characters_are_found_as_names_of_files_alone(trained_model, capsys):
    fill(trained_model, case="1")
    log = trained_model / "fold_0" / "training_log_1.txt"
    log.write_text("Epoch 1, learning rate 0.1")
    assert not any("log" in line for line in told(capsys, trained_model))
    log.write_text("1_0000.nii.gz was read")
    assert "  fold_*/training_log_*.txt: names of cases" in told(capsys, trained_model)


# A raw data set


@pytest.fixture
def raw(tmp_path) -> Path:
    small_dataset.write_raw(tmp_path / "raw", size=(8, 16, 16))
    return tmp_path / "raw" / small_dataset.NAME


def rewrite(path: Path, change) -> None:
    image = sitk.ReadImage(str(path))
    values = sitk.GetArrayFromImage(image)
    change(values)
    changed = sitk.GetImageFromArray(values)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path))


def test_a_sound_data_set_is_ready(raw, capsys):
    assert run(capsys, raw) == (0, "ready: 5 labelled case(s)")


@pytest.mark.parametrize(
    ("values", "said"),
    [((7,), "7 in 1 voxel(s)"), ((3, 3, 200), "3 in 2 voxel(s), 200 in 1 voxel(s)"), ((255,) * 5, "255 in 5 voxel(s)")],
)
def test_labels_out_of_range_are_named_with_case_value_and_number(raw, capsys, values, said):
    for case in (1, 3):
        rewrite(raw / "labelsTr" / f"ball_{case}.nii.gz", lambda label: np.put(label, range(len(values)), values))
    code, line = run(capsys, raw)
    assert code == 2
    assert (
        f"{raw / 'labelsTr' / 'ball_1.nii.gz'} holds values that are no labels ({said}); the labels are 0, 1, 2" in line
    )
    assert line.endswith("; 1 more case(s) have faults")


def test_an_ignore_label_and_regions_are_labels(raw, capsys):
    content = json.loads((raw / "dataset.json").read_text())
    content["labels"] = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    (raw / "dataset.json").write_text(json.dumps({**content, "regions_class_order": [1, 2]}))
    rewrite(raw / "labelsTr" / "ball_0.nii.gz", lambda label: np.put(label, 0, 3))
    assert run(capsys, raw) == (0, "ready: 5 labelled case(s)")


def test_an_image_in_other_units_than_the_others_is_warned_about(raw, capsys):
    rewrite(raw / "imagesTr" / "ball_2_0000.nii.gz", lambda image: np.multiply(image, 1000, out=image))
    assert main(["check", str(raw), "--jobs", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "ready: 5 labelled case(s)\n"
    (warned,) = [line for line in printed.err.splitlines() if line.startswith("ATTENTION")]
    assert f"{raw / 'imagesTr' / 'ball_2_0000.nii.gz'} (channel 0) has values from -" in warned
