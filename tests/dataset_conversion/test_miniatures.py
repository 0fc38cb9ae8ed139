"""nnU-Net's own verdict on every converted miniature: its integrity check, its planning, and one epoch of training."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from fingerprints import write_fingerprint

from dataset_conversion import Dataset004_Hippocampus as hippocampus
from dataset_conversion import Dataset501_BraTS2020 as brats
from dataset_conversion import Dataset502_ACDC as acdc
from dataset_conversion import Dataset503_EndoVis2017 as endovis
from dataset_conversion import Dataset504_NeurIPSCellSeg as cells
from dataset_conversion import phantoms


@dataclass(frozen=True)
class Miniature:
    """A generated source with the traps of its layout, its converter, and a configuration to train."""

    write: object
    convert: object
    configuration: str
    patch: tuple[int, ...]


# The traps: an odd mask name, a float mask, a case without enhancing tumour, end diastole in frame 11, crossing
# instruments, masks with three channels, pictures of every format.
ODD = 355
MINIATURES = {
    501: Miniature(
        partial(
            phantoms.write_brats2020,
            num_cases=3,
            first_number=353,
            traps={353: "no_enhancing_tumour", 354: "float_mask", ODD: "odd_mask_name"},
        ),
        brats.convert,
        "3d_fullres",
        (32, 32, 32),
    ),
    511: Miniature(
        partial(phantoms.write_brats2020, num_cases=3, file_ending=".nii", release="2021"),
        brats.convert,
        "3d_fullres",
        (32, 32, 32),
    ),
    521: Miniature(
        partial(phantoms.write_brats2020, num_cases=4, release="2023-GLI"), brats.convert, "3d_fullres", (32, 32, 32)
    ),
    502: Miniature(
        partial(phantoms.write_acdc, num_patients=3, num_test_patients=1), acdc.convert, "3d_fullres", (4, 32, 32)
    ),
    503: Miniature(
        partial(phantoms.write_endovis2017, frames_per_sequence=1, sequences=(1, 4, 7), test_sequences=(2,)),
        partial(endovis.convert, geometry="full-third"),
        "2d",
        (128, 128),
    ),
    504: Miniature(
        partial(phantoms.write_cells, num_pictures=6, num_tuning=1, groups=True), cells.convert, "2d", (64, 64)
    ),
    4: Miniature(
        partial(phantoms.write_hippocampus, num_cases=4, float_masks=[2]),
        hippocampus.convert,
        "3d_fullres",
        (32, 32, 32),
    ),
}


def run(environment, *command):
    program = Path(sys.executable).with_name(command[0])
    # The planner hands nnUNet_n_proc_DA to torch.set_num_threads, so that the 0 of other tests would not do.
    settings = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1"}
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_THREAD_LIMIT"}
    done = subprocess.run(
        [program, *map(str, command[1:])],
        env=inherited | environment | settings,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


# Each costs four processes that import torch; one layout is enough before every commit.
QUICK = (502,)
every_miniature = pytest.mark.parametrize(
    "planned",
    [pytest.param(number, marks=() if number in QUICK else pytest.mark.slow) for number in MINIATURES],
    indirect=True,
    scope="module",
)


@dataclass(frozen=True)
class Planned:
    """A miniature that stock nnU-Net checked, planned and preprocessed."""

    number: int
    name: str
    environment: dict[str, str]
    said: str
    splits_before: str

    @property
    def preprocessed(self) -> Path:
        return Path(self.environment["nnUNet_preprocessed"]) / self.name

    @property
    def cases(self) -> set[str]:
        folder = self.preprocessed / f"nnUNetPlans_{MINIATURES[self.number].configuration}"
        return {path.stem for path in folder.glob("*.pkl")}


@pytest.fixture(scope="module")
def planned(request, tmp_path_factory):
    number, miniature = request.param, MINIATURES[request.param]
    root = tmp_path_factory.mktemp(f"miniature{number}")
    environment = {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
    miniature.write(root / "source")
    name = miniature.convert(root / "source", root / "raw", root / "preprocessed", number).name
    splits = (root / "preprocessed" / name / "splits_final.json").read_text()
    write_fingerprint(number, environment)
    said = run(
        environment, "nnUNetv2_plan_and_preprocess", "-d", number, "--verify_dataset_integrity",
        "-c", miniature.configuration, "-np", 1, "-npfp", 1,
    )  # fmt: skip
    return Planned(number, name, environment, said, splits)


@every_miniature
def test_nnunet_finds_nothing_wrong_and_keeps_our_splits(planned):
    assert "verify_dataset_integrity Done" in planned.said
    assert "Warning" not in planned.said
    assert len(planned.cases) == json.loads((planned.preprocessed / "dataset.json").read_text())["numTraining"]
    splits = (planned.preprocessed / "splits_final.json").read_text()
    assert splits == planned.splits_before
    for fold in json.loads(splits):
        assert set(fold["train"]) | set(fold["val"]) == planned.cases
        assert not set(fold["train"]) & set(fold["val"])


@pytest.mark.slow
@every_miniature
def test_one_epoch_of_training_runs(planned):
    miniature, trainer = MINIATURES[planned.number], "nnUNetTrainerLoGVMamba"
    run(
        planned.environment, "logvmamba", "plans", "-d", planned.number, "-c", miniature.configuration,
        "--name", "tiny", "--batch-size", 2, "--patch-size", *miniature.patch,
        "--train", "num_epochs=1", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1", "seed=1",
    )  # fmt: skip
    run(planned.environment, "nnUNetv2_train", planned.number, "tiny", 0, "-tr", trainer, "-device", "cpu")
    fold = Path(planned.environment["nnUNet_results"]) / planned.name / f"{trainer}__nnUNetPlans__tiny" / "fold_0"
    assert (fold / "checkpoint_final.pth").is_file()
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert set(summary["foreground_mean"]) >= {"Dice", "IoU"}
