"""Data sets that nnU-Net trains though their files are odd: the whole way with stock commands, and our scores of it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import small_dataset
from commands import NnunetFolders
from small_project import Project

from nnunet_logvmamba.evaluation.cases import FOLD_ALL

SHEAR = np.eye(4)
SHEAR[0, 1] = 0.02


def sheared(folder: Path) -> None:
    """Give every file an affine that SimpleITK refuses."""
    for path in folder.glob("*Tr/*.nii.gz"):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), SHEAR), path)


def one_slice_beside_many(folder: Path) -> None:
    """Leave one slice of every second case, as a volume of one slice."""
    for path in folder.glob("*Tr/ball_[024]*.nii.gz"):
        image = nibabel.load(path)
        values = np.asanyarray(image.dataobj)[:, :, 7:8]
        nibabel.save(nibabel.Nifti1Image(values, image.affine), path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "configuration", "reader"),
    [(sheared, "3d_fullres", "NibabelIO"), (one_slice_beside_many, "2d", "SimpleITKIO")],
)
def test_a_data_set_that_nnunet_trains_is_scored_reported_and_compared(spoil, configuration, reader, tmp_path):
    folders = NnunetFolders.below(tmp_path / "nnunet")
    small_dataset.write_raw(folders.raw)
    spoil(folders.raw / small_dataset.NAME)
    project = Project(folders, small_dataset.NAME)
    project.plan(configuration)
    assert json.loads(project.plans_file.read_text())["image_reader_writer"] == reader
    project.narrow(configuration)
    project.configure(f"{configuration}_narrow", "tiny", num_epochs=1)
    for trainer in ("nnUNetTrainerLoGVMamba", "nnUNetTrainerNoSSM"):
        fold = project.train("tiny", "all", trainer=trainer)
        validation = fold.path / "validation"
        surfaces = json.loads((validation / "surface.json").read_text())
        assert surfaces["cases"] == [f"ball_{case}" for case in range(5)]
        assert surfaces["unit"] == "mm"
        assert list(surfaces["metrics"]) == ["hd95", "nsd"]
        assert FOLD_ALL in surfaces["notes"]
        assert len(surfaces["notes"]) == (2 if spoil is one_slice_beside_many else 1)
        truths = folders.preprocessed / small_dataset.NAME / "gt_segmentations"
        command = ("logvmamba", "evaluate", validation, truths, "--output", tmp_path / trainer, "--tolerance", 2)
        project.run(*command, "--metrics", "dice", "hd95", "nsd")  # positions are compared
        scores = json.loads((tmp_path / trainer / "scores.json").read_text())
        summary = json.loads((validation / "summary.json").read_text())
        assert scores["overall"]["dice"]["mean"] == pytest.approx(summary["foreground_mean"]["Dice"])
        assert scores["mean"]["shell"]["nsd"]["mean"] == surfaces["mean"]["shell"]["nsd"]["mean"]
        page = project.run("logvmamba", "report", fold.path, "--output", tmp_path / f"{trainer}.html", "--cases", 1)
        assert f"{trainer}.html" in page.stdout
        assert "cannot be shown" not in (tmp_path / f"{trainer}.html").read_text()
    assert "HD95" in project.run("logvmamba", "compare", folders.results).stdout
    images = folders.raw / small_dataset.NAME / "imagesTr"
    assert "ready: 5 case(s)" in project.run("logvmamba", "check", images, fold.path.parent).stdout
