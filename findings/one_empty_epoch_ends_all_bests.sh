#!/usr/bin/env bash
# One validation epoch without foreground, and nnU-Net never saves a best checkpoint again.
#
# Expected: where the few validation patches of an epoch happen to hold no foreground and the network rightly predicts
#   none, the Dice of this epoch is undefined; the moving average passes over it, and a later, better epoch is the best.
# Seen with nnunetv2 2.8.1: the moving average is NaN in that epoch and in all after it. "New best" compares with
#   "greater than", which NaN never is, so checkpoint_best.pth stays that of the epoch before, for good; the curve of the
#   average ends in progress.png.
# Why: the Dice per class is 2 tp / (2 tp + fp + fn), 0 / 0 for a class that is nowhere; nanmean over classes that are
#   all NaN is NaN, and 0.9 * average + 0.1 * NaN stays NaN.
# Source: nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py (on_validation_epoch_end, on_epoch_end) and
#   nnunetv2/training/logging/nnunet_logger.py (MetaLogger.log), of that version.
# Cost: small lesions, a batch size of 1 or few validation iterations; whoever predicts with -chk checkpoint_best.pth, or
#   ensembles best checkpoints, takes an early one.
# Remedy: predict with checkpoint_final.pth, or give num_val_iterations_per_epoch more patches.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.13.0 nnunetv2==2.8.1
cd "$folder"

nnUNet_raw=raw nnUNet_preprocessed=preprocessed nnUNet_results=results "$python" - <<'PYTHON'
import sys
import warnings
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

warnings.simplefilter("ignore")
print("Versions:", *(f"{name} {version(name)}" for name in ("nnunetv2", "numpy")))


def outputs(tp, errors):
    """What validation steps of one epoch hand over: voxels per foreground class, of two patches."""
    counts = {"tp_hard": np.array([tp, tp]), "fp_hard": np.array([errors, errors]), "fn_hard": np.array([0, 0])}
    return [counts | {"loss": np.array(0.1)}] * 2


trainer = SimpleNamespace(logger=MetaLogger(".", False), is_ddp=False, current_epoch=0)
best = None
bests = []
for epoch, (tp, errors) in enumerate([(50, 50), (0, 0), (80, 20), (90, 10), (99, 1)]):
    trainer.current_epoch = epoch
    nnUNetTrainer.on_validation_epoch_end(trainer, outputs(tp, errors))
    average = trainer.logger.get_value("ema_fg_dice", step=-1)
    print(f"epoch {epoch}: Dice {trainer.logger.get_value('mean_fg_dice', step=-1):.3f}, moving average {average:.3f}")
    if best is None or average > best:  # the condition of on_epoch_end
        best = average
        bests.append(epoch)
print("Expected: epochs 0, 2, 3 and 4 are each the best so far")
print(f"Seen:     {bests}, and the average ends as {average}")
sys.exit(0 if bests == [0] and np.isnan(average) else "the behaviour has changed")
PYTHON
