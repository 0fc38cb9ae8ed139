"""What nnU-Net can read, label, split and name, trained and predicted with our trainers by its own commands.

docs/reference/features.md names the test of each of nnU-Net's features.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import small_dataset
import tifffile
import torch
from commands import NnunetFolders
from PIL import Image
from small_project import TRAINER, Project, voxels

SWIN = "nnUNetTrainerLoGVMambaSwin"
PEER = "nnUNetTrainerUMambaEnc"
"""A network of others, and one whose weights belong to the patch of the plan."""
SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 2}


def edit(folder: Path, **keys: object) -> None:
    """Set keys of ``dataset.json``."""
    file = folder / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def volumes(folder: Path, pattern: str = "*Tr/*.nii.gz") -> Iterator[tuple[Path, np.ndarray]]:
    """Every file that ``small_dataset`` wrote, and its values, axes z, y, x."""
    for path in sorted(folder.glob(pattern)):
        yield path, sitk.GetArrayFromImage(sitk.ReadImage(path))


def written_as(ending: str) -> Callable[[Path], None]:
    """Give every file another format of SimpleITK's."""

    def write(folder: Path) -> None:
        for path in folder.glob("*Tr/*.nii.gz"):
            sitk.WriteImage(sitk.ReadImage(path), path.with_name(path.name.replace(".nii.gz", ending)))
            path.unlink()
        edit(folder, file_ending=ending)

    return write


def read_by(reader: str) -> Callable[[Path], None]:
    """Turn the volumes and name the reader."""

    def write(folder: Path) -> None:
        turned = np.diag([-1.0, 1.0, 1.5, 1.0])[[1, 0, 2, 3]]
        for path in folder.glob("*Tr/*.nii.gz"):
            nibabel.save(nibabel.Nifti1Image(np.asanyarray(nibabel.load(path).dataobj), turned), path)
        edit(folder, overwrite_image_reader_writer=reader)

    return write


def tiff_volumes(folder: Path) -> None:
    for path, values in volumes(folder):
        stem = path.name.removesuffix(".nii.gz")
        tifffile.imwrite(path.with_name(f"{stem}.tif"), values)
        path.with_name(f"{stem.removesuffix('_0000')}.json").write_text('{"spacing": [2.0, 1.0, 1.0]}')
        path.unlink()
    edit(folder, file_ending=".tif", overwrite_image_reader_writer="Tiff3DIO")


def slices_as(ending: str) -> Callable[[Path], None]:
    """Keep the middle slice, images with 16 bits."""

    def write(folder: Path) -> None:
        for path, values in volumes(folder):
            plane = values[len(values) // 2]
            if path.parent.name == "imagesTr":
                plane = np.clip(20000 + 10000 * plane, 0, 65535).astype(np.uint16)
            Image.fromarray(plane).save(path.with_name(path.name.replace(".nii.gz", ending)))
            path.unlink()
        edit(folder, file_ending=ending)

    return write


def own_paths(folder: Path) -> None:
    """Keep the files elsewhere, and say where."""
    elsewhere = folder.parent.parent / "archive"
    elsewhere.mkdir()
    cases = {}
    for label in sorted((folder / "labelsTr").iterdir()):
        case = label.name.removesuffix(".nii.gz")
        image = (folder / "imagesTr" / f"{case}_0000.nii.gz").rename(elsewhere / f"scan-{case}.nii.gz")
        cases[case] = {"images": [str(image)], "label": str(label.rename(elsewhere / f"truth-{case}.nii.gz"))}
    edit(folder, dataset=cases)


def one_class(folder: Path) -> None:
    for path, values in volumes(folder, "labelsTr/*"):
        sitk.WriteImage(sitk.GetImageFromArray((values > 0).astype(np.uint8)), path)
    edit(folder, labels={"background": 0, "ball": 1})


def many_classes(folder: Path) -> None:
    """118 blocks of 16 voxels each, as many labels as the largest public data sets have."""
    for path, values in volumes(folder, "labelsTr/*"):
        blocks = np.arange(values.size).reshape(values.shape) // 16
        sitk.WriteImage(sitk.GetImageFromArray(np.where(blocks < 118, blocks + 1, 0).astype(np.uint8)), path)
    edit(folder, labels={"background": 0, **{f"organ {number}": number for number in range(1, 119)}})


def many_channels(folder: Path) -> None:
    for path, values in volumes(folder, "imagesTr/*"):
        for channel in range(1, 13):
            other = sitk.GetImageFromArray(values * channel)
            sitk.WriteImage(other, path.with_name(path.name.replace("_0000", f"_{channel:04d}")))
    edit(folder, channel_names={str(channel): f"echo {channel}" for channel in range(13)})


def nested_regions(folder: Path) -> None:
    edit(folder, labels={"background": 0, "ball": [1, 2], "core": 2}, regions_class_order=[1, 2])


def overlapping_regions(folder: Path) -> None:
    """Two regions that share a label and neither of which holds the other."""
    for path, values in volumes(folder, "labelsTr/*"):
        values[:, :, values.shape[2] // 3 :] *= 3
        sitk.WriteImage(sitk.GetImageFromArray(np.minimum(values, 3)), path)
    edit(folder, labels={"background": 0, "left": [1, 2], "core": [2, 3]}, regions_class_order=[1, 3])


def regions_and_ignore(folder: Path) -> None:
    for path, values in volumes(folder, "labelsTr/*"):
        values[::2] = 3
        sitk.WriteImage(sitk.GetImageFromArray(values), path)
    edit(folder, labels={"background": 0, "ball": [1, 2], "core": 2, "ignore": 3}, regions_class_order=[1, 2])


def odd_names(folder: Path) -> None:
    """Dots, blanks, brackets and what looks like the number of a channel, all in names of cases."""
    for old, new in (("ball_0", "v1.2-a"), ("ball_1", "left (copy)"), ("ball_2", "scan_0001"), ("ball_3", "7")):
        (folder / "imagesTr" / f"{old}_0000.nii.gz").rename(folder / "imagesTr" / f"{new}_0000.nii.gz")
        (folder / "labelsTr" / f"{old}.nii.gz").rename(folder / "labelsTr" / f"{new}.nii.gz")


DATASETS = {
    "NIfTI read by nibabel": (read_by("NibabelIO"), "3d_fullres"),
    "NIfTI read by nibabel and reoriented": (read_by("NibabelIOWithReorient"), "3d_fullres"),
    "NRRD": (written_as(".nrrd"), "3d_fullres"),
    "MetaImage": (written_as(".mha"), "3d_fullres"),
    "TIFF, 3D": (tiff_volumes, "3d_fullres"),
    "TIFF, 2D": (slices_as(".tif"), "2d"),
    "PNG of 16 bits": (slices_as(".png"), "2d"),
    "own paths": (own_paths, "3d_fullres"),
    "1 class": (one_class, "3d_fullres"),
    "118 classes": (many_classes, "3d_fullres"),
    "13 channels": (many_channels, "3d_fullres"),
    "nested regions": (nested_regions, "3d_fullres"),
    "regions that overlap": (overlapping_regions, "3d_fullres"),
    "regions and an ignore label": (regions_and_ignore, "3d_fullres"),
    "odd names of cases": (odd_names, "3d_fullres"),
}


def planned(tmp_path: Path, spoil: Callable[[Path], None], configuration: str) -> Project:
    """A data set with the configuration ``tiny``, planned and preprocessed by nnU-Net."""
    folders = NnunetFolders.below(tmp_path / "nnunet")
    small_dataset.write_raw(folders.raw)
    spoil(folders.raw / small_dataset.NAME)
    project = Project(folders, small_dataset.NAME)
    project.plan(configuration)
    project.narrow(configuration)
    # The network stays nnU-Net's in the plans; each trainer translates it.
    project.configure(f"{configuration}_narrow", "tiny", "--keep-network", **SHORT)
    return project


@pytest.mark.slow
@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_is_trained_predicted_scored_and_checked(name, tmp_path):
    spoil, configuration = DATASETS[name]
    project = planned(tmp_path, spoil, configuration)
    raw, truths = (folder / project.dataset for folder in (project.folders.raw, project.folders.preprocessed))
    ending = json.loads((raw / "dataset.json").read_text())["file_ending"]
    images, truths = raw / "imagesTr", truths / "gt_segmentations"
    if spoil is own_paths:
        images = raw.parent.parent / "images"  # prediction knows no list of paths
        images.mkdir()
        for scan in (raw.parent.parent / "archive").glob("scan-*"):
            os.link(scan, images / scan.name.removeprefix("scan-").replace(".nii.gz", "_0000.nii.gz"))
    for trainer in (TRAINER, PEER, *([SWIN] if configuration == "2d" else [])):
        fold = project.train("tiny", trainer=trainer)
        assert np.isfinite(fold.checkpoint["logging"]["train_losses"]).all()
        summary = json.loads((fold.path / "validation" / "summary.json").read_text())
        assert len(summary["metric_per_case"]) == 1
        if spoil not in (nested_regions, overlapping_regions, regions_and_ignore):
            # Labels and regions alike have a surface; those of regions are tested with the phantoms.
            assert (fold.path / "validation" / "surface.json").is_file()
        out = tmp_path / trainer
        project.predict(images, out, "tiny", trainer=trainer)
        cases = sorted(path.name.removesuffix(ending) for path in truths.iterdir() if path.name.endswith(ending))
        assert sorted(path.name.removesuffix(ending) for path in out.glob(f"*{ending}")) == cases
        assert len(cases) == 5
        done = project.run("logvmamba", "evaluate", out, truths, "--output", tmp_path / f"{trainer} scores")
        assert "dice" in done.stdout.lower()
        assert "ready: 5 case(s)" in project.run("logvmamba", "check", images, fold.path.parent).stdout


@pytest.mark.slow
def test_a_split_without_validation_is_refused_with_the_remedy_which_works(tmp_path):
    project = planned(tmp_path, lambda folder: None, "3d_fullres")
    splits = [{"train": [f"ball_{case}" for case in range(5)], "val": []}]
    (project.plans_file.parent / "splits_final.json").write_text(json.dumps(splits))
    command = ("nnUNetv2_train", project.number, "tiny", 0, "-tr", TRAINER, "-device", "cpu")
    done = project.run(*command, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("Fold 0 of splits_final.json has no case to validate with")
    assert project.train("tiny", "all").epochs == 1


@pytest.mark.slow
@pytest.mark.parametrize("size", ["L", "XL"])
def test_plans_for_large_residual_encoders_are_trained_and_predicted(size, own_planned, new_images, tmp_path):
    plans = f"nnUNetResEncUNet{size}Plans"
    command = ("nnUNetv2_plan_experiment", "-d", own_planned.number, "-pl", f"nnUNetPlannerResEnc{size}")
    own_planned.run(*command, nnUNet_n_proc_DA="1")
    own_planned.narrow("3d_fullres", plans=plans)
    # The network stays nnU-Net's in the plans; our trainer translates it.
    own_planned.configure("3d_fullres_narrow", "3d_residual", "-p", plans, "--keep-network", **SHORT)
    fold = own_planned.train("3d_residual", 0, plans=plans)
    planned_for = fold.checkpoint["init_args"]["plans"]["configurations"]["3d_fullres_narrow"]["architecture"]
    assert planned_for["network_class_name"].endswith("ResidualEncoderUNet")
    assert any(key.endswith("A_log") for key in fold.checkpoint["network_weights"])
    assert len(own_planned.predict(new_images, tmp_path / "predicted", "3d_residual", plans=plans)) == 2


@pytest.mark.slow
def test_weights_and_biases_is_off_unless_asked_for_and_runs_offline(own_planned, tmp_path):
    pytest.importorskip("wandb", reason="needs wandb (pip install wandb)")
    own_planned.configure("3d_fullres_narrow", "3d_short", **SHORT)
    fold = own_planned.train("3d_short")
    assert not (fold.path / "wandb").exists()
    asked = {"nnUNet_wandb_enabled": "1", "nnUNet_wandb_mode": "offline"}
    fold = own_planned.train("3d_short", trainer="nnUNetTrainerNoSSM", **asked, TMPDIR=str(tmp_path))
    assert list((fold.path / "wandb").glob("offline-run-*"))


# What is predicted, and how

AS_ON_CUDA = """
import sys, torch
torch.serialization.register_package(0, lambda storage: "cuda:0", lambda storage, location: None)
file = sys.argv[1]
torch.save(torch.load(file, weights_only=False), file)
"""


@pytest.mark.slow
def test_a_checkpoint_made_on_cuda_predicts_and_continues_on_a_cpu(own_trained, new_images, predicted, tmp_path):
    own_trained.configure("3d_fullres_narrow", "3d_tiny", "--overwrite", num_epochs=5)
    file = own_trained.fold("3d_tiny").path / "checkpoint_final.pth"
    own_trained.run("python", "-c", AS_ON_CUDA, file)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(file, weights_only=False)  # the file does say so
    for path in own_trained.predict(new_images, tmp_path / "out", "3d_tiny"):
        assert np.array_equal(voxels(path), voxels(predicted / path.name))
    file.rename(file.with_name("checkpoint_latest.pth"))
    assert own_trained.train("3d_tiny", 0, "--c").epochs == 5
