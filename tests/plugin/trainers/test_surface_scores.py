"""Surfaces of the final validation, after a real training and on files whose distances are known."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import nibabel
import nifti_headers
import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage.io import imsave
from tifffile import imwrite

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.plugin.plans import check_training_settings
from nnunet_logvmamba.plugin.trainers.scores import write_surface_scores

REGIONS = {"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}


def truths(project) -> Path:
    return project.folders.preprocessed / project.dataset / "gt_segmentations"


def test_a_training_ends_with_the_surfaces_of_its_validation(trained, tmp_path):
    validation = trained.fold("3d_tiny").path / "validation"
    surfaces = json.loads((validation / "surface.json").read_text())
    cases = sorted(path.name.removesuffix(".nii.gz") for path in validation.glob("*.nii.gz"))
    assert surfaces["cases"] == cases
    assert surfaces["labels"] == REGIONS
    assert (surfaces["hd95"], surfaces["unit"], surfaces["policy"]["name"]) == ("joined", "mm", "brats")
    assert [one["value"] for one in surfaces["tolerances"].values()] == [2, 2, 2]
    assert all(one["source"].startswith("default: 2 mm") for one in surfaces["tolerances"].values())
    assert [(row["case"], row["label"]) for row in surfaces["scores"]] == [(c, name) for c in cases for name in REGIONS]
    assert 0 < surfaces["mean"]["whole tumor"]["nsd"]["mean"] <= 1
    # They are what the command says about the same files.
    out = tmp_path / "out"
    words = ("--metrics", "hd95", "nsd", "--tolerance", 2, "--predicted-only", "--output", out)
    trained.run("logvmamba", "evaluate", validation, truths(trained), *words)
    command = json.loads((out / "scores.json").read_text())
    for key in ("mean", "overall", "policy", "metrics", "unit", "empty_masks"):
        assert command[key] == surfaces[key], key
    # nnU-Net's own summary is nnU-Net's.
    summary = json.loads((validation / "summary.json").read_text())
    assert set(summary) == {"foreground_mean", "mean", "metric_per_case"}
    logs = [path.read_text() for path in validation.parent.glob("training_log_*.txt")]
    assert any("Surfaces (surface.json): mean hd95" in log for log in logs)


@pytest.mark.slow
def test_validating_again_takes_the_tolerance_of_the_configuration(own_trained):
    own_trained.configure("3d_fullres_narrow", "3d_tiny", "--overwrite", surface_tolerance=0.5)
    file = own_trained.fold("3d_tiny").path / "validation/surface.json"
    before = json.loads(file.read_text())
    own_trained.train("3d_tiny", 0, "--val", nnUNet_def_n_proc=2)
    after = json.loads(file.read_text())
    assert after["tolerances"]["tumor core"] == {
        "value": 0.5,
        "unit": "mm",
        "source": "'surface_tolerance' under 'logvmamba' of configuration '3d_tiny'",
    }
    assert after["mean"]["whole tumor"]["hd95"] == before["mean"]["whole tumor"]["hd95"]
    assert after["mean"]["whole tumor"]["nsd"]["mean"] < before["mean"]["whole tumor"]["nsd"]["mean"]


@pytest.fixture
def finished(tmp_path):
    """What a trainer knows at the end of a validation of two pictures; ``log`` holds what it was told to log."""
    validation, truth = tmp_path / "fold_0/validation", tmp_path / "preprocessed/gt_segmentations"
    for folder in (validation, truth):
        folder.mkdir(parents=True)
    for case in ("a", "b", "c"):
        mask = np.zeros((30, 30), np.uint8)
        mask[10:20, 10:20] = 1
        imsave(truth / f"{case}.png", mask, check_contrast=False)
        if case != "c":  # a training case
            imsave(validation / f"{case}.png", np.roll(mask, 3, 0), check_contrast=False)
    log = []
    return SimpleNamespace(
        local_rank=0,
        output_folder=str(tmp_path / "fold_0"),
        preprocessed_dataset_folder_base=str(tmp_path / "preprocessed"),
        dataset_json={"labels": {"background": 0, "cell": 1}, "file_ending": ".png"},
        configuration_manager=SimpleNamespace(configuration={}),
        configuration_name="2d",
        plans_manager=SimpleNamespace(
            dataset_name="Dataset704_Pictures", plans={"image_reader_writer": "NaturalImage2DIO"}
        ),
        print_to_log_file=lambda *words, **_: log.append(" ".join(map(str, words))),
        log=log,
    )


def test_pictures_are_scored_in_pixels(finished):
    surfaces = json.loads(write_surface_scores(finished).read_text())
    assert (surfaces["unit"], surfaces["policy"]["name"]) == ("px", "nnunet")
    assert surfaces["mean"]["cell"]["hd95"]["mean"] == 3
    assert surfaces["tolerances"]["cell"]["unit"] == "px"
    assert surfaces["tolerances"]["cell"]["source"].startswith("default: 2 px")
    assert surfaces["cases"] == ["a", "b"]
    assert "mean hd95 3.0000 px" in finished.log[-1]


@pytest.mark.parametrize(
    "labels",
    [{"background": "0", "cell": "1"}, {"background": 0.0, "cell": [1.0]}, {"background": 0, "cell": [" 1", "2"]}],
)
def test_labels_are_scored_however_their_numbers_are_written(labels, finished):
    expected = json.loads(write_surface_scores(finished).read_text())
    finished.dataset_json["labels"] = labels
    surfaces = json.loads(write_surface_scores(finished).read_text())
    assert surfaces["mean"] == expected["mean"]
    assert surfaces["labels"]["cell"] in ([1], [1, 2])


@pytest.mark.slow
def test_a_training_with_regions_of_1_0_has_its_surfaces_and_is_compared(own_planned, capsys):
    for folder in (own_planned.folders.raw, own_planned.folders.preprocessed):
        file = folder / own_planned.dataset / "dataset.json"
        content = json.loads(file.read_text())
        content["labels"] = {
            name: [float(one) for one in value] if isinstance(value, list) else value
            for name, value in content["labels"].items()
        }
        file.write_text(json.dumps(content))
    for trainer in ("nnUNetTrainerLoGVMamba_1epochs", "nnUNetTrainerNoSSM_1epochs"):
        fold = own_planned.train("3d_tiny", 0, trainer=trainer)
        surfaces = json.loads((fold.path / "validation/surface.json").read_text())
        assert surfaces["labels"] == REGIONS
        assert "(1.0, 2.0, 3.0)" in fold.dice
    assert main(["compare", str(own_planned.folders.results)]) == 0
    page = capsys.readouterr().out
    assert "whole tumor | tumor core | enhancing tumor | average" in page
    assert "NSD per class" in page
    assert main(["report", str(fold.path)]) == 0


def test_the_tolerance_of_the_configuration_is_named(finished):
    finished.configuration_manager.configuration["logvmamba"] = {"surface_tolerance": 4}
    surfaces = json.loads(write_surface_scores(finished).read_text())
    assert surfaces["mean"]["cell"]["nsd"]["mean"] == 1
    assert surfaces["tolerances"]["cell"] == {
        "value": 4,
        "unit": "px",
        "source": "'surface_tolerance' under 'logvmamba' of configuration '2d'",
    }


def test_only_the_first_process_writes(finished):
    finished.local_rank = 1
    assert write_surface_scores(finished) is None
    assert not (Path(finished.output_folder) / "validation/surface.json").exists()


def test_a_validation_is_not_lost_for_its_surfaces(finished):
    written = write_surface_scores(finished)
    (written.parent / "a.png").write_bytes(b"broken")
    assert write_surface_scores(finished) is None
    assert "No surface.json" in finished.log[-1]
    assert "a.png cannot be read" in finished.log[-1]
    assert not written.exists()  # an older one would pass for the new one


def test_pictures_also_have_the_nsd_of_published_tables(finished):
    surfaces = json.loads(write_surface_scores(finished).read_text())
    assert list(surfaces["metrics"]) == ["hd95", "nsd", "nsd_umamba"]
    assert surfaces["mean"]["cell"]["nsd"]["mean"] < surfaces["mean"]["cell"]["nsd_umamba"]["mean"] < 1
    assert "mean nsd_umamba" in finished.log[-1]


def replace_pictures(finished, ending: str) -> tuple[Path, Path]:
    """Make the validation one of files with another ending, none there yet; folders of truths and predictions."""
    finished.dataset_json["file_ending"] = ending
    folders = (
        Path(finished.preprocessed_dataset_folder_base, "gt_segmentations"),
        Path(finished.output_folder, "validation"),
    )
    for folder in folders:
        for path in folder.iterdir():
            path.unlink()
    return folders


@pytest.mark.parametrize("reader", [NibabelIO, SimpleITKIO])
def test_a_fold_of_odd_headers_is_scored_in_mm(reader, finished):
    truths, validation = replace_pictures(finished, ".nii.gz")
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[3:8, 3:8, 3:8] = 1
    for number, (header, write) in enumerate(nifti_headers.HEADERS.items()):
        if reader is SimpleITKIO and header in nifti_headers.NOT_FOR_SIMPLEITK or "micro" in header:
            continue
        truth = truths / f"{number}.nii.gz"
        write(truth.with_suffix(""), mask)
        truth.write_bytes(gzip.compress(truth.with_suffix("").read_bytes()))
        truth.with_suffix("").unlink()
        values, properties = reader().read_seg(str(truth))
        reader().write_seg(np.roll(values[0], 1, 0), str(validation / truth.name), properties)  # one slice, 3 mm
    surfaces = json.loads(write_surface_scores(finished).read_text())
    assert len(surfaces["cases"]) > 8
    assert [row["hd95"] for row in surfaces["scores"]] == pytest.approx([3] * len(surfaces["cases"]))


@pytest.mark.parametrize("reader", [NibabelIO, SimpleITKIO, NibabelIOWithReorient, SimpleITKIOWithReorient])
def test_a_label_with_a_mirrored_header_is_scored_as_nnunet_scores_it(reader, finished):
    truths, validation = replace_pictures(finished, ".nii.gz")
    mask = np.zeros((20, 12, 12), np.uint8)
    mask[2:8, 3:8, 3:8] = 1
    mirrored = np.diag([-1.0, 1, 1, 1])
    mirrored[0, 3] = 19  # the same grid
    for case, values in (("voxels", mask), ("places", mask[::-1])):
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), validation / f"{case}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(values, mirrored), truths / f"{case}.nii.gz")
    finished.plans_manager.plans["image_reader_writer"] = reader.__name__
    surfaces = json.loads(write_surface_scores(finished).read_text())
    distances = {row["case"]: row["hd95"] for row in surfaces["scores"]}
    for case, distance in distances.items():
        files = (str(folder / f"{case}.nii.gz") for folder in (truths, validation))
        dice = compute_metrics(*files, reader(), [1])["metrics"][1]["Dice"]
        assert (dice == 1) == (distance == 0)
    assert distances["places" if "Reorient" in reader.__name__ else "voxels"] == 0


@pytest.mark.parametrize("volumes", [True, False])
def test_single_slices_are_scored_beside_volumes(volumes, finished):
    truths, validation = replace_pictures(finished, ".nii.gz")
    mask = np.zeros((12, 12, 4), np.uint8)
    mask[3:8, 3:8, 1:3] = 1
    cases = {
        "first": mask[:, :, 1:2],
        "flat": mask[:, :, 1],
        "sideways": mask[:, 5:6],
        **({"volume": mask} if volumes else {}),
    }
    for case, values in cases.items():
        for folder, shown in ((truths, values), (validation, np.roll(values, 1, 0))):
            nibabel.save(nibabel.Nifti1Image(shown, np.eye(4)), folder / f"{case}.nii.gz")
    surfaces = json.loads(write_surface_scores(finished).read_text())
    assert surfaces["cases"] == sorted(cases)
    assert [row["hd95"] for row in surfaces["scores"]] == [1] * len(cases)
    assert list(surfaces["metrics"]) == ["hd95", "nsd", *([] if volumes else ["nsd_umamba"])]
    assert surfaces["notes"] == (
        ["3 of 4 cases are one slice, the first is 'first'; their distances are those of outlines within the slice"]
        if volumes
        else []
    )


def test_tiff_volumes_of_one_page_are_scored_beside_others(finished):
    truths, validation = replace_pictures(finished, ".tif")
    mask = np.zeros((4, 12, 12), np.uint8)
    mask[1:3, 3:8, 3:8] = 1
    for case, values in (("one", mask[1:2]), ("several", mask)):
        imwrite(truths / f"{case}.tif", values, photometric="minisblack")
        (truths / f"{case}.json").write_text(json.dumps({"spacing": [5, 2, 2]}))
        read, properties = Tiff3DIO().read_seg(str(truths / f"{case}.tif"))
        Tiff3DIO().write_seg(np.roll(read[0], 1, 1), str(validation / f"{case}.tif"), properties)
    surfaces = json.loads(write_surface_scores(finished).read_text())
    assert (surfaces["cases"], surfaces["unit"]) == (["one", "several"], "mm")
    assert [row["hd95"] for row in surfaces["scores"]] == [2, 2]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_a_validation_is_not_lost_for_a_full_disk_or_memory(error, finished, monkeypatch):
    write_text = Path.write_text

    def fail(self, *args, **kwargs):
        if "surface.json" not in self.name:
            return write_text(self, *args, **kwargs)
        write_text(self, "{")
        raise error

    monkeypatch.setattr(Path, "write_text", fail)
    assert write_surface_scores(finished) is None
    assert "No surface.json" in finished.log[-1]
    assert ("No space left on device" if isinstance(error, OSError) else "MemoryError") in finished.log[-1]
    assert [
        path.name for path in (Path(finished.output_folder) / "validation").iterdir() if path.suffix != ".png"
    ] == []


def test_a_target_that_cannot_be_replaced_is_said_in_the_log(finished):
    (Path(finished.output_folder) / "validation/surface.json").mkdir()
    assert write_surface_scores(finished) is None
    assert "No surface.json" in finished.log[-1]


@pytest.mark.parametrize("value", [-1, "2", None, True, float("inf"), [2]])
def test_a_tolerance_must_be_a_number(value):
    with pytest.raises(ValueError, match="'surface_tolerance' under 'logvmamba' must be a number of at least 0"):
        check_training_settings({"surface_tolerance": value})
    assert check_training_settings({"surface_tolerance": 0.5}) == {"surface_tolerance": 0.5}
