"""What grows in long runs must not: memory, open files and threads of trainings and predictions in one process."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import small_dataset
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from small_model import TRAINER, planned_architecture, write_model

from nnunet_logvmamba.plugin import trainers

pytestmark = pytest.mark.slow
PAGE = 4096  # bytes
FEW = 12 * 2**20  # bytes: what the allocator of the C library moves about


def held() -> tuple[int, int, int]:
    """Memory of this process in bytes, its open files and its threads."""
    process = Path("/proc/self")
    if not process.is_dir():
        pytest.skip("needs /proc")
    resident = int((process / "statm").read_text().split()[1]) * PAGE
    return resident, len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))


def test_two_thousand_iterations_hold_no_more_than_five_hundred(nnunet_folders):
    dataset = small_dataset.copy_into(nnunet_folders).parent
    plans = json.loads((dataset / "nnUNetPlans.json").read_text())
    entry = plans["configurations"]["small"] = deepcopy(plans["configurations"]["3d_fullres"])
    entry.update(patch_size=[16, 16, 16], batch_size=2, logvmamba={"seed": 1})
    entry["architecture"]["arch_kwargs"]["features_per_stage"] = [8, 8, 16]
    about = json.loads((dataset / "dataset.json").read_text())
    trainer = getattr(trainers, TRAINER)(
        {**plans, "continue_training": False}, "small", "all", about, torch.device("cpu")
    )
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    losses = []

    def iterate(times: int) -> tuple[int, int, int]:
        for _ in range(times):
            losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
        return held()

    before, after = iterate(500), iterate(1500)
    assert after[0] - before[0] < FEW
    assert after[1:] == before[1:]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-100:]) < np.mean(losses[:100])


def test_two_hundred_predictions_hold_no_more_than_fifty(tmp_path):
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(write_model(tmp_path, 3, [16, 16, 16])), (0,))
    image = np.random.default_rng(0).standard_normal((1, 20, 24, 28)).astype(np.float32)

    def predict(times: int) -> tuple[int, int, int]:
        for _ in range(times):
            predictor.predict_single_npy_array(image, {"spacing": [1.0, 1.0, 1.0]})
        return held()

    before, after = predict(50), predict(150)
    assert after[0] - before[0] < FEW
    assert after[1:] == before[1:]


PEAK = """
import resource, sys
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

predictor = nnUNetPredictor(tile_step_size=1, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(sys.argv[1], (0,))
logits = predictor.predict_logits_from_preprocessed_data(torch.zeros(1, 200, 400, 400))
print(logits.shape, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_large_image_needs_no_more_memory_than_with_the_network_of_nnunet(tmp_path):
    architecture = planned_architecture(3)
    architecture["arch_kwargs"]["features_per_stage"] = [16, 32, 64, 128]

    def peak(trainer: str) -> int:
        model = write_model(tmp_path, 3, [104, 104, 104], trainer=trainer, architecture=architecture)
        done = subprocess.run([sys.executable, "-c", PEAK, str(model)], capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1])

    assert peak(TRAINER) <= 1.1 * peak("nnUNetTrainerStockNetwork")
