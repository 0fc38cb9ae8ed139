"""``logvmamba doctor DATASET`` names what a data set holds, in which files, and what nnU-Net makes of it."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import small_dataset
from commands import NnunetFolders
from nifti_headers import HEADERS, affine, mirrored, write
from PIL import Image
from tifffile import imwrite

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.plugin import acceptance, raw_dataset
from nnunet_logvmamba.plugin.reading import read_once


@pytest.fixture(scope="module")
def balls(tmp_path_factory) -> Path:
    """A sound data set; for reading only."""
    root = tmp_path_factory.mktemp("raw")
    small_dataset.write_raw(root, num_cases=4, size=(8, 16, 16))
    return root / small_dataset.NAME


@pytest.fixture
def raw(balls, tmp_path) -> Path:
    return shutil.copytree(balls, tmp_path / balls.name)


@pytest.fixture
def ask(capsys):
    """Run the command and give its exit code and its findings by state and name."""

    def run(folder: Path) -> tuple[int, dict[tuple[str, str], dict]]:
        code = main(["doctor", str(folder), "--json", "--jobs", "1"])
        found = json.loads(capsys.readouterr().out)["findings"]
        return code, {(one["state"], one["name"]): one for one in found if one["state"] != "ok"}

    return run


def rewrite(path: Path, header: Callable[[Path, np.ndarray], None] | str, change: Callable = np.asarray) -> None:
    """Write a file anew under another header, its voxels changed."""
    values = change(np.asanyarray(nibabel.load(path).dataobj))
    plain = path.with_name("plain.nii")
    (HEADERS[header] if isinstance(header, str) else header)(plain, values)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()


def image_and_label(raw: Path, case: int) -> tuple[Path, Path]:
    return raw / "imagesTr" / f"ball_{case}_0000.nii.gz", raw / "labelsTr" / f"ball_{case}.nii.gz"


def test_a_sound_data_set_is_ready_and_described(balls, capsys):
    assert main(["doctor", str(balls), "--jobs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(balls)
    assert "4 case(s), 1 channel(s) (MR), read by nnU-Net's SimpleITKIO" in lines[1]
    assert not [line for line in lines if line.startswith(("  note", "  FAILS"))]
    assert "nnU-Net makes 5 only of as many cases: train the fold all, or write your own" in lines[-3]
    assert lines[-1] == "doctor: ready to train"


def test_voxels_of_a_sound_data_set_are_read_once(balls, monkeypatch):
    """On large data sets reading is nearly all of its time."""
    asked = []

    def watched(reader, file, **options):
        asked.append(file)
        return read_once(reader, file, **options)

    for module in (acceptance, raw_dataset):
        monkeypatch.setattr(module, "read_once", watched)
    assert main(["doctor", str(balls), "--jobs", "1"]) == 0
    assert sorted(asked) == sorted((*balls.glob("imagesTr/*"), *balls.glob("labelsTr/*")))


def test_a_case_counts_for_a_region_by_any_of_its_labels(raw, capsys):
    content = json.loads((raw / "dataset.json").read_text())
    content |= {"labels": {"background": 0, "ball": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
    (raw / "dataset.json").write_text(json.dumps(content))
    for case in range(4):  # label 1 alone, 2 alone, both, none
        kept = ((1,), (2,), (1, 2), ())[case]
        rewrite(image_and_label(raw, case)[1], "usual", lambda values, kept=kept: values * np.isin(values, kept))
        rewrite(image_and_label(raw, case)[0], "usual")
    assert main(["doctor", str(raw), "--jobs", "1"]) == 0
    assert "ball in 3 case(s), core in 2 case(s)" in capsys.readouterr().out


def test_a_data_set_is_found_by_its_number(balls, ask, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(balls.parent))
    assert ask("998") == (0, {})
    assert main(["doctor", "7"]) == 2


@pytest.mark.parametrize(
    ("header", "kind", "said"),
    [
        ("two transforms, scanner first", "two transforms", "SimpleITK takes the qform and nibabel takes the sform"),
        ("two transforms, scanner last", "two transforms", "SimpleITK takes the sform and nibabel takes the sform"),
        ("two transforms, turned", "two transforms", "by its qform (code 1) and by its sform (code 4)"),
        ("no transform", "no position", "qform_code and sform_code are 0"),
        ("scaled sform", "two spacings", "voxels of 1 x 2 x 3 by pixdim and of 2 x 4 x 6 by its sform"),
        ("scaled sform alone", "two spacings", "nnU-Net plans, resamples and scores with 1 x 2 x 3"),
        ("sheared beside a quaternion", "sheared", "5.7 degrees off a right angle"),
        ("micrometres", "units", "counts in micrometres"),
    ],
)
def test_what_a_header_says_in_two_ways_is_named_with_its_cases_and_trained_all_the_same(raw, ask, header, kind, said):
    for case in range(4):
        for path in image_and_label(raw, case):
            rewrite(path, header if case in (1, 3) or kind == "units" else "usual")
    code, found = ask(raw)
    assert code == 0
    assert said in found["note", kind]["text"]
    assert list(found["note", kind]["cases"]) == (
        [f"ball_{case}" for case in (1, 3)] if kind != "units" else list(found["note", kind]["cases"])
    )
    assert all(len(said) == 2 for said in found["note", kind]["cases"].values())  # the image and its label
    assert image_and_label(raw, 0 if kind == "units" else 1)[0].name in found["note", kind]["text"]


@pytest.mark.parametrize(
    "header", ["usual", "oblique", "quaternion alone", "hardly sheared", "mirrored", "mirrored sform"]
)
def test_what_is_only_unusual_is_not_mentioned(raw, ask, header):
    for case in range(4):
        for path in image_and_label(raw, case):
            rewrite(path, header)
    assert ask(raw) == (0, {})


def test_a_sheared_first_case_makes_nnunet_read_all_by_nibabel_and_a_later_one_stops_it(raw, ask):
    for path in image_and_label(raw, 0):
        rewrite(path, "sheared")
    code, found = ask(raw)
    assert code == 0
    assert "nnU-Net's NibabelIO takes them for right angles" in found["note", "sheared"]["text"]
    for path, other in zip(image_and_label(raw, 0), image_and_label(raw, 2)):
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)
    code, found = ask(raw)
    assert code == 1
    text = found["FAILS", "cannot be read"]["text"]
    assert "imagesTr/ball_2_0000.nii.gz cannot be read by nnU-Net's SimpleITKIO" in text
    assert "'overwrite_image_reader_writer': 'NibabelIO' in dataset.json" in text


def test_masks_that_are_stored_scaled_are_named_and_those_that_are_no_masks_any_more_fail(raw, ask):
    def scaled(slope: float, factor: int):
        return lambda path, values: write(path, values.astype(np.int16) * factor, sform=affine(), slope=slope)

    for case in range(4):
        image, label = image_and_label(raw, case)
        rewrite(image, "usual")
        rewrite(label, scaled(0.1, 10) if case == 2 else "usual")
    code, found = ask(raw)
    assert (code, list(found)) == (0, [("note", "scaled mask")])
    assert "scl_slope 0.1 and scl_inter 0" in found["note", "scaled mask"]["text"]
    rewrite(image_and_label(raw, 2)[1], scaled(0.3, 1))
    code, found = ask(raw)
    assert code == 1
    assert "numbers that are not whole" in found["FAILS", "labels"]["text"]
    assert ("note", "scaled mask") not in found  # whose sentence says that they are whole


def test_a_slope_of_0_beside_an_intercept_is_read_in_two_ways(raw, ask):
    for path in image_and_label(raw, 1):
        rewrite(path, lambda path, values: write(path, values, sform=affine(), slope=0, intercept=5))
    code, found = ask(raw)
    assert code == 1
    assert "SimpleITK adds 5 to its values, nibabel does not" in found["note", "scaling"]["text"]
    assert "holds values that are no labels (5 in" in found["FAILS", "labels"]["text"]


def test_faults_of_all_cases_are_counted_by_kind(raw, ask):
    for case in (0, 3):
        rewrite(image_and_label(raw, case)[1], "usual", lambda label: label + np.uint8(7) * (label == 2))
    rewrite(image_and_label(raw, 1)[1], "usual", lambda label: label[:-1])
    path = image_and_label(raw, 2)[0]
    path.write_bytes(path.read_bytes()[:-30])
    code, found = ask(raw)
    assert code == 1
    fails = {name: list(one["cases"]) for (state, name), one in found.items() if state == "FAILS"}
    assert fails == {
        "labels": ["ball_0", "ball_3"],
        "grid": ["ball_0", "ball_1", "ball_3"],  # the header of the test has another spacing
        "cannot be read": ["ball_2"],
    }
    assert found["FAILS", "labels"]["text"].startswith(
        "2 cases: labelsTr/ball_0.nii.gz holds values that are no labels (9 in"
    )


def test_numbers_that_nnunet_cannot_train_with(raw, ask):
    for case, value in ((0, np.nan), (1, np.inf)):
        path = image_and_label(raw, case)[0]
        image = nibabel.load(path)
        values = image.get_fdata()
        values[0, 0, :2] = value
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), image.affine), path)
    code, found = ask(raw)
    assert code == 0  # SimpleITK reads 0 in their place
    assert list(found["note", "not finite"]["cases"]) == ["ball_0", "ball_1"]
    content = json.loads((raw / "dataset.json").read_text())
    content["overwrite_image_reader_writer"] = "NibabelIO"
    (raw / "dataset.json").write_text(json.dumps(content))
    code, found = ask(raw)
    assert code == 1
    assert list(found["FAILS", "not finite"]["cases"]) == ["ball_0", "ball_1"]


def one_slice(raw: Path) -> None:
    for path in image_and_label(raw, 1):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj)[:, :, 3:4], image.affine), path)


def constant(raw: Path) -> None:
    path = image_and_label(raw, 1)[0]
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.full(image.shape, 3, np.float32), image.affine), path)


def another_type(raw: Path) -> None:
    path = image_and_label(raw, 1)[0]
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(), image.affine), path)


def sizes(case: float, factor: float):
    def spoil(raw: Path) -> None:
        for path in image_and_label(raw, case):
            image = nibabel.load(path)
            grid = image.affine @ np.diag([factor] * 3 + [1])
            nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), grid), path)

    return spoil


def mirror(raw: Path) -> None:
    for path in image_and_label(raw, 1):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), mirrored() / np.array([1, 2, 3, 1])), path)


def label_elsewhere(raw: Path) -> None:
    path = image_and_label(raw, 1)[1]
    image = nibabel.load(path)
    moved = image.affine.copy()
    moved[:3, 3] += 5
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), moved), path)


def no_label(raw: Path) -> None:
    path = image_and_label(raw, 1)[1]
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (one_slice, "one slice", "(shape (1, 16, 16)), beside 3 case(s) of several"),
        (constant, "constant", "has the value 3 everywhere"),
        (another_type, "types", "holds numbers of type float64, 3 case(s) float32"),
        (sizes(1, 1.5), "spacings", "voxels of 1.5 x 1.5 x 1.5, 3 case(s) as in the middle, 1 x 1 x 1"),
        (sizes(1, 1000), "spacing", "voxels of 1000 x 1000 x 1000, the other cases mostly of 1 x 1 x 1"),
        (mirror, "directions", "runs along"),
        (label_elsewhere, "position", "labelsTr/ball_1.nii.gz lies elsewhere than its image"),
        (no_label, "empty labels", "holds no label"),
    ],
)
def test_what_differs_from_case_to_case_is_named(raw, ask, spoil, kind, said):
    spoil(raw)
    code, found = ask(raw)
    assert code == 0
    assert said in found["note", kind]["text"]
    assert list(found["note", kind]["cases"]) == ["ball_1"]


def test_labels_that_nobody_has_and_a_wrong_number_of_cases(raw, ask):
    content = json.loads((raw / "dataset.json").read_text())
    content["labels"]["ghost"] = 3
    (raw / "dataset.json").write_text(json.dumps({**content, "numTraining": 9}))
    code, found = ask(raw)
    assert code == 0
    assert "no case holds ghost" in found["note", "labels never seen"]["text"]
    assert "numTraining 9, and there are 4" in found["note", "numTraining"]["text"]


FAULTY = {
    "a gap": ({"labels": {"background": 0, "shell": 1, "core": 4}}, "no label has the number 2 although there is 4"),
    "a gap in regions": (
        {"labels": {"background": 0, "ball": [1, 4], "core": [4]}, "regions_class_order": [1, 4]},
        "no label has the number 2 although there is 4",
    ),
    "channels the wrong way round": ({"channel_names": {"MR": "0"}}, "and has 'MR' before '0'"),
    "no background": ({"labels": {"shell": 1, "core": 2}}, "Background label not declared"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_dataset_json_that_nnunet_would_not_train_with_fails(fault, raw, ask, capsys):
    changes, said = FAULTY[fault]
    file = raw / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    for case in range(4):  # 1 and 4 as labels, so that the label maps are not at fault
        rewrite(image_and_label(raw, case)[1], "usual", lambda values: np.where(values == 2, 4, values))
    code, found = ask(raw)
    assert code == 1
    assert list(found) == [("FAILS", "dataset.json")]
    assert said in found["FAILS", "dataset.json"]["text"]
    assert main(["check", str(raw), "--jobs", "1"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(file) in line
    assert said in line


def test_preprocessed_data_fail_for_their_dataset_json_where_nnunets_training_does(tmp_path, ask, capsys):
    folders = NnunetFolders.below(tmp_path)
    file = small_dataset.copy_into(folders).with_name("dataset.json")
    capsys.readouterr()  # of nnU-Net, if this is the first test to need them
    content = json.loads(file.read_text())
    for changes, said in (FAULTY["a gap"], FAULTY["channels the wrong way round"]):
        file.write_text(json.dumps(content | changes))
        code, found = ask(file.parent)
        assert code == 1
        assert said in found["FAILS", "dataset.json"]["text"]


def test_phases_in_one_file_fail_though_the_reader_takes_them_for_channels(raw, ask):
    file = raw / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"channel_names": {"0": "early", "1": "late"}}))
    for case in range(4):
        path = image_and_label(raw, case)[0]
        image = nibabel.load(path)
        values = np.asanyarray(image.dataobj)
        nibabel.save(nibabel.Nifti1Image(np.stack((values, values), -1), image.affine), path)
    code, found = ask(raw)
    assert code == 1
    assert list(found["FAILS", "axes"]["cases"]) == [f"ball_{case}" for case in range(4)]
    assert "imagesTr/ball_0_0000.nii.gz has 4 axes (16 x 16 x 8 x 2)" in found["FAILS", "axes"]["text"]
    assert "split it into ball_0_0000.nii.gz, ball_0_0001.nii.gz" in found["FAILS", "axes"]["text"]


def test_a_number_of_cases_that_is_not_there_fails(raw, ask):
    content = json.loads((raw / "dataset.json").read_text())
    del content["numTraining"]
    (raw / "dataset.json").write_text(json.dumps(content))
    code, found = ask(raw)
    assert code == 1
    assert "numTraining None" in found["FAILS", "numTraining"]["text"]


def test_no_label_anywhere_stops_planning(raw, ask):
    for case in range(4):
        label = nibabel.load(image_and_label(raw, case)[1])
        nibabel.save(nibabel.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), image_and_label(raw, case)[1])
    code, found = ask(raw)
    assert code == 1
    assert ("FAILS", "empty labels") in found


def pictures(root: Path, ending: str, save: Callable[[Path, np.ndarray], None]) -> Path:
    raw = root / "Dataset007_Cells"
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for case in range(3):
        picture = generator.integers(0, 255, (20, 24, 3), np.uint8)
        label = np.zeros((20, 24), np.uint8)
        label[4:9, 5:9] = 1
        file = raw / "imagesTr" / f"c{case}_0000{ending}"
        imwrite(file, picture, photometric="rgb") if ending == ".tif" else Image.fromarray(picture).save(file)
        save(raw / "labelsTr" / f"c{case}{ending}", label)
    content = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "cell": 1}}
    (raw / "dataset.json").write_text(json.dumps({**content, "numTraining": 3, "file_ending": ending}))
    return raw


def as_palette(path: Path, label: np.ndarray) -> None:
    picture = Image.fromarray(label).convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0] + [0, 0, 255] * 254)
    picture.putdata(label.ravel().tolist())
    picture.save(path)


def test_a_palette_in_a_png_mask_fails_and_in_a_tiff_mask_does_not(tmp_path, ask):
    code, found = ask(pictures(tmp_path / "png", ".png", as_palette))
    assert code == 1
    text = found["FAILS", "labels"]["text"]
    assert "holds 3 channels, for it stores a table of colours in place of labels" in text
    assert list(found["FAILS", "labels"]["cases"]) == ["c0", "c1", "c2"]
    assert ask(pictures(tmp_path / "tiff", ".tif", as_palette)) == (0, {})


def test_check_says_the_first_fault_and_groups_its_warnings(raw, capsys):
    for case in range(4):
        for path in image_and_label(raw, case):
            rewrite(path, "no transform")
    assert main(["check", str(raw), "--jobs", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "ready: 4 labelled case(s)\n"
    (warned,) = [line for line in printed.err.splitlines() if line.startswith("ATTENTION")]
    assert warned.startswith("ATTENTION: 4 cases: ")
    assert "likewise ball_1, ball_2, ball_3" in warned


@pytest.mark.parametrize("listed", [False, True])
def test_predictions_within_a_raw_data_set_do_not_make_it_preprocessed(listed, raw, ask):
    if listed:
        content = json.loads((raw / "dataset.json").read_text())
        images, labels = raw.parent / "images", raw.parent / "labels"
        (raw / "imagesTr").rename(images), (raw / "labelsTr").rename(labels)
        cases = [f"ball_{case}" for case in range(4)]
        files = {
            case: {"images": [str(images / f"{case}_0000.nii.gz")], "label": str(labels / f"{case}.nii.gz")}
            for case in cases
        }
        (raw / "dataset.json").write_text(json.dumps({**content, "dataset": files}))
    (raw / "predictions").mkdir()
    for name in ("ball_0.npz", "ball_0.nii.gz", "plans.json"):
        (raw / "predictions" / name).touch()
    assert ask(raw) == (0, {})


def test_a_file_at_which_nnunet_stops_in_preprocessed_data_is_named(tmp_path, ask):
    folder = small_dataset.copy_into(NnunetFolders.below(tmp_path)).parent
    stray = folder / "nnUNetPlans_2d" / ".DS_Store"
    stray.touch()
    code, found = ask(folder)
    assert code == 1
    assert list(found) == [("FAILS", "stray file")]
    said = "nnUNetPlans_2d/.DS_Store is no preprocessed case, and nnU-Net stops at any other file in this folder"
    assert said in found["FAILS", "stray file"]["text"]


def test_an_interrupted_preprocessing_comes_with_the_command_that_does_it_again(tmp_path, ask):
    folder = small_dataset.copy_into(NnunetFolders.below(tmp_path)).parent
    shutil.rmtree(folder / "gt_segmentations")  # which comes last
    (folder / "splits_final.json").write_text("[]")
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "dataset": {}}))  # a data set may list its files
    two, three = (folder / f"nnUNetPlans_{name}" for name in ("2d", "3d_fullres"))

    def said(where: Path, state: str = "FAILS", kind: str = "no cases") -> str:
        code, found = ask(where)
        assert code == (state == "FAILS")
        assert list(found) == [(state, kind)]
        return found[state, kind]["text"]

    command = "run nnUNetv2_preprocess -d 998 -plans_name nnUNetPlans -c 2d"
    again = f"as where preprocessing was interrupted: {command}"
    for file in two.glob("ball_1*"):
        file.unlink()
    few = said(folder, "note", "too few cases")
    assert few == f"4 of 5 preprocessed cases are in nnUNetPlans_2d, {again}"
    for file in two.iterdir():
        file.unlink()
    for _ in range(2):
        assert said(folder) == f"no preprocessed case is in nnUNetPlans_2d, {again}"
        assert said(two) == f"no preprocessed case is in {two}, {again}"
        shutil.rmtree(three, ignore_errors=True)
    two.rmdir()
    assert said(folder) == f"no preprocessed case is in {folder}: {command} 3d_fullres"


def test_a_preprocessed_data_set_is_read_too(tmp_path, ask):
    folders = NnunetFolders.below(tmp_path)
    folder = small_dataset.copy_into(folders).parent
    assert ask(folder) == (0, {})
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    fullres = folder / "nnUNetPlans_3d_fullres"
    image, label, _, properties = nnUNetDatasetBlosc2(str(fullres), ["ball_1"]).load_case("ball_1")
    image, label = np.array(image), np.array(label)
    image[0, 0, 0, :3], label[0, 0, 0, :2] = np.nan, 9
    for file in fullres.glob("ball_1*"):
        file.unlink()
    nnUNetDatasetBlosc2.save_case(image, label, properties, str(fullres / "ball_1"))
    code, found = ask(fullres)
    assert code == 1
    assert "channel 0 (MR) holds 3 value(s) that are not finite" in found["FAILS", "not finite"]["text"]
    assert "its label map holds 9 in 2 voxel(s)" in found["FAILS", "labels"]["text"]
