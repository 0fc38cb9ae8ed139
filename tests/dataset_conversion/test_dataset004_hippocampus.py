"""The hippocampus converter on generated sources in Decathlon layout and on the real selection."""

import json
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from dataset_conversion import Dataset004_Hippocampus as hippocampus
from dataset_conversion import phantoms
from dataset_conversion.core import reporting
from dataset_conversion.core.cases import ConversionError

NAME = "Dataset004_Hippocampus"
SMALL = (20, 24, 18)


def voxels(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def source_with(tmp_path, num_cases=6, **options):
    return phantoms.write_hippocampus(tmp_path / "source" / "Task04_Hippocampus", num_cases, shape=SMALL, **options)


def assert_no_subject_on_both_sides(splits):
    for fold in splits:
        train, val = ({(int(case[-3:]) + 1) // 2 for case in fold[side]} for side in ("train", "val"))
        assert not train & val
        assert train
        assert val


def test_decathlon_names_become_nnunet_names(tmp_path):
    folder = source_with(tmp_path, num_unlabelled=1)
    target = hippocampus.convert(tmp_path / "source", tmp_path / "raw")
    cases = [f"hippocampus_{number:03d}" for number in range(1, 7)]
    assert sorted(path.name for path in (target / "imagesTr").iterdir()) == [f"{case}_0000.nii.gz" for case in cases]
    assert sorted(path.name for path in (target / "labelsTr").iterdir()) == [f"{case}.nii.gz" for case in cases]
    assert [path.name for path in (target / "imagesTs").iterdir()] == ["hippocampus_007_0000.nii.gz"]
    image = target / "imagesTr" / "hippocampus_001_0000.nii.gz"
    assert image.read_bytes() == (folder / "imagesTr" / "hippocampus_001.nii.gz").read_bytes()
    description = json.loads((target / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert description["channel_names"] == {"0": "MRI"}
    assert description["numTraining"] == 6


def test_a_mask_stored_as_float_becomes_uint8_with_the_same_values(tmp_path):
    folder = source_with(tmp_path, float_masks=[3])
    assert voxels(folder / "labelsTr" / "hippocampus_003.nii.gz").dtype == np.float32
    target = hippocampus.convert(folder, tmp_path / "raw")
    for path in sorted((target / "labelsTr").iterdir()):
        assert voxels(path).dtype == np.uint8
        assert (voxels(path) == voxels(folder / "labelsTr" / path.name)).all()


def test_folds_keep_both_hippocampi_of_a_subject_together(tmp_path):
    source_with(tmp_path, 13)
    hippocampus.convert(tmp_path / "source", tmp_path / "raw", tmp_path / "preprocessed")
    splits = json.loads((tmp_path / "preprocessed" / NAME / "splits_final.json").read_text())
    assert len(splits) == 5
    assert_no_subject_on_both_sides(splits)


def test_two_runs_give_identical_bytes(tmp_path, fingerprint):
    source_with(tmp_path)
    for run in ("a", "b"):
        hippocampus.convert(tmp_path / "source", tmp_path / run / "raw", tmp_path / run / "preprocessed")
    assert len(fingerprint(tmp_path / "a")) == 15
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")


def drop_mask(folder):
    (folder / "labelsTr" / "hippocampus_002.nii.gz").unlink()


def drop_image(folder):
    (folder / "imagesTr" / "hippocampus_002.nii.gz").unlink()


def edit_mask(change):
    def edit(folder):
        path = str(folder / "labelsTr" / "hippocampus_002.nii.gz")
        image = change(sitk.ReadImage(path))
        sitk.WriteImage(image, path)

    return edit


def with_value(value):
    def change(image):
        image = sitk.Cast(image, sitk.sitkFloat32)
        image[1, 1, 1] = value
        return image

    return change


def stretched(image):
    image.SetSpacing((1.0, 1.0, 1.2))
    return image


BAD = {
    "mask missing": (drop_mask, "no mask in labelsTr"),
    "image missing": (drop_image, "no image in imagesTr"),
    "illegal label": (edit_mask(with_value(3)), "label 3"),
    "fraction": (edit_mask(with_value(0.25)), "0.25"),
    "NaN": (edit_mask(with_value(float("nan"))), "nan"),
    "spacing": (edit_mask(stretched), "spacing"),
    "size": (edit_mask(lambda image: image[1:]), "size"),
}


@pytest.mark.parametrize("problem", BAD)
def test_a_bad_case_is_one_sentence_naming_case_and_file_and_writes_nothing(tmp_path, capfd, monkeypatch, problem):
    spoil, what = BAD[problem]
    spoil(source_with(tmp_path))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    assert hippocampus.main([str(tmp_path / "source"), "-np", "1"]) == 2
    errors = capfd.readouterr().err
    assert errors.startswith("error: Case hippocampus_002")
    assert errors.count("\n") == 1
    assert "hippocampus_002.nii.gz" in errors
    assert what in errors
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_no_volume_and_masks_of_test_scans_are_reported(tmp_path):
    folder = source_with(tmp_path, num_unlabelled=1)
    shutil.copytree(folder / "labelsTr", folder / "labelsTs")
    for name in ("imagesTr/a.mha", "labelsTr/a.mha", "imagesTs/notes.txt"):
        (folder / name).touch()
    report = json.loads((hippocampus.convert(folder, tmp_path / "raw") / reporting.REPORT).read_text())
    assert {skip["path"]: skip["reason"] for skip in report["skipped"]} == {
        "imagesTr/a.mha": "no NIfTI file",
        "labelsTr/a.mha": "no NIfTI file",
        "imagesTs/notes.txt": "no NIfTI file",
        "labelsTs": "masks of test scans, which come along unlabelled",
    }


@pytest.mark.parametrize("twin", ["__MACOSX", ".Trash"])
def test_the_second_tree_of_a_mac_is_no_second_source(tmp_path, twin):
    folder = source_with(tmp_path)
    for part in ("imagesTr", "labelsTr"):
        (folder / twin / part).mkdir(parents=True)
    assert hippocampus.find_decathlon_folder(folder) == folder
    shutil.copytree(folder, folder / "copy")
    with pytest.raises(ConversionError, match="There are 2 folders with imagesTr"):
        hippocampus.find_decathlon_folder(folder)


def test_a_folder_of_another_layout_is_refused(tmp_path):
    with pytest.raises(ConversionError, match="no folder with imagesTr and labelsTr"):
        hippocampus.convert(tmp_path, tmp_path / "raw")


@pytest.mark.parametrize("prefix", hippocampus.OTHER_TASKS)
def test_another_task_of_the_decathlon_is_named_and_never_converted(tmp_path, prefix):
    folder = source_with(tmp_path)
    for path in [*folder.rglob("hippocampus_*.nii.gz")]:
        path.rename(path.with_name(path.name.replace("hippocampus", prefix)))
    with pytest.raises(ConversionError, match=rf"{prefix}_001.nii.gz belongs to the Decathlon's Task\d\d_"):
        hippocampus.convert(folder, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_real_selection_converts_with_folds_by_subject(tmp_path, decathlon_hippocampus, run_module, nnunet_variables):
    module = "dataset_conversion.Dataset004_Hippocampus"
    done = run_module(module, decathlon_hippocampus, environment=nnunet_variables)
    assert done.returncode == 0, done.stderr
    assert "164 labelled case(s)" in done.stdout
    assert "label 1: 281,606 voxels" in done.stdout
    assert "label 2: 259,334 voxels" in done.stdout
    target = tmp_path / "nnUNet_raw" / NAME
    for case in ("hippocampus_001", "hippocampus_003", "hippocampus_243"):
        mask = voxels(target / "labelsTr" / f"{case}.nii.gz")
        assert mask.dtype == np.uint8
        assert (mask == voxels(decathlon_hippocampus / "labelsTr" / f"{case}.nii.gz")).all()
    splits = json.loads((tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json").read_text())
    assert len(splits) == 5
    assert_no_subject_on_both_sides(splits)
    assert sum(len(fold["val"]) for fold in splits) == 164
    assert {len(fold["val"]) for fold in splits} == {32, 33}


def test_own_scans_and_predictions_keep_their_names(tmp_path):
    folder = source_with(tmp_path, 2, num_unlabelled=1)
    shutil.copytree(folder / "labelsTr", folder / "labelsTs")
    hippocampus.convert_images(folder, tmp_path / "scans")
    assert sorted(path.name for path in (tmp_path / "scans").iterdir()) == [
        f"hippocampus_{number:03d}_0000.nii.gz" for number in (1, 2, 3)
    ]
    hippocampus.restore(folder / "labelsTr", tmp_path / "submit")
    for path in sorted((tmp_path / "submit").iterdir()):
        assert (voxels(path) == voxels(folder / "labelsTr" / path.name)).all()


@pytest.mark.parametrize("parts", [("imagesTr", "labelsTr"), ("imagesTs",)])
def test_a_link_whose_file_was_not_fetched_is_named_and_no_case_is_lost(tmp_path, parts):
    folder = source_with(tmp_path, num_unlabelled=1)
    name = "hippocampus_007.nii.gz" if parts == ("imagesTs",) else "hippocampus_003.nii.gz"
    for part in parts:
        (folder / part / name).unlink()
        (folder / part / name).symlink_to("../.git/annex/objects/not-here")
    with pytest.raises(ConversionError, match=f"{parts[0]}/{name} leads nowhere"):
        hippocampus.convert(folder, tmp_path / "raw")
    with pytest.raises(ConversionError, match=f"{name} leads nowhere"):
        hippocampus.convert_images(folder / parts[0], tmp_path / "out")
    assert not (tmp_path / "raw").exists()


def test_a_folder_that_is_called_like_a_scan_and_holds_none_is_told(tmp_path, capsys):
    folder = source_with(tmp_path, num_unlabelled=2)
    hollow = folder / "imagesTs" / "hippocampus_007.nii.gz"
    hollow.unlink()
    hollow.mkdir()
    target = hippocampus.convert(folder, tmp_path / "raw")
    assert f"imagesTs/{hollow.name}" in (target / reporting.REPORT).read_text()
    hippocampus.convert_images(folder / "imagesTs", tmp_path / "out")
    assert f"note: 1 file(s) not read, first {hollow}" in capsys.readouterr().out


def test_a_path_that_simpleitk_cannot_open_is_refused(tmp_path, run_module, nnunet_variables):
    folder = source_with(tmp_path)
    moved = folder.rename(folder.with_name(os.fsdecode(b"m\xfcller")))
    done = run_module("dataset_conversion.Dataset004_Hippocampus", moved, environment=nnunet_variables)
    assert done.returncode == 2
    assert "has bytes that are not UTF-8, which SimpleITK cannot open; rename the folder or file" in done.stderr
