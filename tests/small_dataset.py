"""A data set small enough to be planned and preprocessed in seconds by the stock commands: balls of two shells."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from commands import NnunetFolders, run_command
from fingerprints import write_fingerprint
from made_once import made_once

NAME = "Dataset998_Balls"
NUMBER = "998"
LABELS = {"background": 0, "shell": 1, "core": 2}


def write_raw(raw: Path, num_cases: int = 5, size: tuple[int, int, int] = (16, 20, 24)) -> None:
    """Write the cases into nnU-Net's folder of raw data."""
    folder = raw / NAME
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"), -1)
    for case in range(num_cases):
        distance = np.linalg.norm(grid - generator.uniform(7, 9, 3), axis=-1)
        label = (distance < 6).astype(np.uint8) + (distance < 4)
        image = (label + generator.normal(0, 0.3, size)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(image), folder / "imagesTr" / f"ball_{case}_0000.nii.gz")
        sitk.WriteImage(sitk.GetImageFromArray(label), folder / "labelsTr" / f"ball_{case}.nii.gz")
    dataset = {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": num_cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))


def prepared() -> NnunetFolders:
    """Folders with the planned and preprocessed data set, made once; for reading only."""
    return NnunetFolders.below(made_once("balls", _prepare))


def _prepare(root: Path) -> None:
    folders = NnunetFolders.below(root)
    write_raw(folders.raw)
    write_fingerprint(NUMBER, folders.environment)
    # The planner takes this variable for a number of threads; the 0 of the training, it refuses.
    command = ["nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-c", "2d", "3d_fullres", "-np", "1", "-npfp", "1"]
    run_command(command, nnUNet_n_proc_DA="1", **folders.environment)


def copy_into(folders: NnunetFolders) -> Path:
    """Copy the preprocessed data set to folders that a test may write to, and return its plans file."""
    shutil.copytree(prepared().preprocessed, folders.preprocessed, dirs_exist_ok=True)
    return folders.preprocessed / NAME / "nnUNetPlans.json"
