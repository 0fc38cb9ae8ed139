"""A small data set in folders of its own, and the commands of nnU-Net on it as a user types them."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import SimpleITK as sitk
import torch
from commands import NnunetFolders, environment_with, run_command
from fingerprints import write_fingerprint

from nnunet_logvmamba.cli import main

TRAINER = "nnUNetTrainerLoGVMamba"
PLANS = "nnUNetPlans"
# Enough steps for a Dice that no untrained network reaches, few enough for seconds.
SETTINGS = {"num_epochs": 4, "num_iterations_per_epoch": 10, "num_val_iterations_per_epoch": 1, "initial_lr": 0.003}
WIDTHS = [16, 16, 32]
TRAIN, PREDICT = "nnUNetv2_train", "nnUNetv2_predict"


@dataclass(frozen=True)
class Fold:
    """What a training left in the folder of its fold."""

    path: Path

    @property
    def checkpoint(self) -> dict:
        """Content of the final checkpoint."""
        return read_checkpoint(self.path / "checkpoint_final.pth")

    @property
    def epochs(self) -> int:
        """Epochs of which the final checkpoint knows a training loss."""
        return len(self.checkpoint["logging"]["train_losses"])

    @property
    def dice(self) -> dict[str, float]:
        """Validation Dice per label or region, named as in nnU-Net's summary."""
        return dice(self.path / "validation")


@dataclass(frozen=True)
class Project:
    """One data set in folders of its own."""

    folders: NnunetFolders
    dataset: str

    def copied_to(self, root: Path) -> Project:
        """Copy everything, so that a test may train, plan and delete."""
        for folder in vars(self.folders).values():
            shutil.copytree(folder, root / folder.name)
        return Project(NnunetFolders.below(root), self.dataset)

    @property
    def number(self) -> str:
        return self.dataset[len("Dataset") :][:3]

    @property
    def plans_file(self) -> Path:
        return self.folders.preprocessed / self.dataset / f"{PLANS}.json"

    def run(self, *command: object, check: bool = True, **env: str) -> CompletedProcess:
        """Run a command with these folders."""
        return run_command(command, check=check, **self.folders.environment, **env)

    def plan(self, *configurations: str) -> None:
        """Plan and preprocess."""
        write_fingerprint(self.number, self.folders.environment)
        # The planner takes this variable for a number of threads; the 0 of the training, it refuses.
        command = ("nnUNetv2_plan_and_preprocess", "-d", self.number, "-c", *configurations, "-np", 1, "-npfp", 1)
        self.run(*command, nnUNet_n_proc_DA="1")

    def configure(self, base: str, name: str, *options: object, **settings: object) -> None:
        """Write a configuration with ``logvmamba plans``; what ``settings`` leave open is ``SETTINGS``, seed 1."""
        words = [f"{key}={value}" for key, value in {**SETTINGS, "seed": 1, **settings}.items()]
        command = ("plans", "-d", self.number, "-c", base, "--name", name, "--train", *words, *options)
        with environment_with(self.folders.environment), redirect_stdout(StringIO()):
            assert main([*map(str, command)]) == 0

    def narrow(self, *bases: str, plans: str = PLANS) -> None:
        """Add ``<base>_narrow`` with ``WIDTHS``, in nnU-Net's own format, since our command leaves widths to plans."""
        file = self.plans_file.with_name(f"{plans}.json")
        content = json.loads(file.read_text())
        for base in bases:
            architecture = deepcopy(content["configurations"][base]["architecture"])
            arguments = architecture["arch_kwargs"]
            arguments["features_per_stage"] = [*WIDTHS, *WIDTHS[-1:] * 9][: arguments["n_stages"]]
            content["configurations"][f"{base}_narrow"] = {"inherits_from": base, "architecture": architecture}
        file.write_text(json.dumps(content))

    def model(self, configuration: str, trainer: str = TRAINER, plans: str = PLANS) -> Path:
        """Folder of a trained model."""
        return self.folders.results / self.dataset / f"{trainer}__{plans}__{configuration}"

    def fold(self, configuration: str, fold: object = 0, trainer: str = TRAINER, plans: str = PLANS) -> Fold:
        return Fold(self.model(configuration, trainer, plans) / f"fold_{fold}")

    def train(
        self,
        configuration: str,
        fold: object = 0,
        *options: object,
        trainer: str = TRAINER,
        plans: str = PLANS,
        **env: str,
    ) -> Fold:
        """Train on the CPU and give what was written."""
        command = (TRAIN, self.number, configuration, fold, "-tr", trainer, "-p", plans, "-device", "cpu", *options)
        self.run(*command, **env)
        return self.fold(configuration, fold, trainer, plans)

    def predict(
        self,
        images: Path,
        target: Path,
        configuration: str,
        *options: object,
        fold: object = 0,
        trainer: str = TRAINER,
        plans: str = PLANS,
    ) -> list[Path]:
        """Predict on the CPU and give the segmentations that were written, sorted by case."""
        command = (PREDICT, "-i", images, "-o", target, "-d", self.number, "-c", configuration, "-f", fold)
        self.run(*command, "-tr", trainer, "-p", plans, "-device", "cpu", "-npp", 1, "-nps", 1, *options)
        return segmentations(target)

    def evaluate(self, truths: Path, predictions: Path) -> dict[str, float]:
        """Compare two folders with ``nnUNetv2_evaluate_folder``; Dice per label or region."""
        command = ("nnUNetv2_evaluate_folder", truths, predictions, "-np", 1)
        plans = predictions / "plans.json"
        self.run(*command, "-djfile", predictions / "dataset.json", "-pfile", plans)
        return dice(predictions)


def dice(folder: Path) -> dict[str, float]:
    """Mean Dice per label or region from the summary that nnU-Net wrote into a folder."""
    summary = json.loads((folder / "summary.json").read_text())
    return {name: metrics["Dice"] for name, metrics in summary["mean"].items()}


def read_checkpoint(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=False)


def segmentations(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, sorted by name."""
    return sorted(folder.glob("*.nii.gz"))


def voxels(path: Path) -> np.ndarray:
    """Values of an image, axes z, y, x."""
    return sitk.GetArrayFromImage(sitk.ReadImage(path))
