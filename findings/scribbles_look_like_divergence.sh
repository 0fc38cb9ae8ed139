#!/usr/bin/env bash
# With scribbles, nnU-Net's trainer with cross entropy alone reports the loss NaN, and goes on learning.
#
# Expected: voxels of the ignore label count for nothing; where a scale of deep supervision has no annotated voxel left,
#   it adds nothing to the loss, as with nnU-Net's default loss.
# Seen with nnunetv2 2.8.1: nnUNetTrainerCELoss has the loss NaN for such a batch, and with it the epoch, in the log and in
#   progress.png. The gradients are finite all the same, those of the scales that have annotated voxels alone, so the
#   network learns. Nothing tells this from a training that has diverged.
# Why: the labels of each scale are taken from every second, fourth, ... voxel, so a line one voxel wide may vanish. Then
#   the mean over annotated voxels is 0 / 0, whose derivative PyTorch takes for 0. The default loss asks for their number
#   before, this trainer does not, and any weight times NaN is NaN in the sum over scales.
# Source: nnunetv2/training/nnUNetTrainer/variants/loss/nnUNetTrainerCELoss.py, nnunetv2/training/loss/compound_losses.py
#   (DC_and_CE_loss) and batchgeneratorsv2/transforms/utils/deep_supervision_downsampling.py, of these versions.
# Cost: trainings on scribbles or single annotated slices, which the ignore label is for, are given up for diverged, and
#   one that has diverged looks no different.
# Remedy: the default trainer, or DC_and_CE_loss with weight_dice 0, which has the check (and is the number 0, without
#   gradients, where nothing at all is annotated).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check \
    numpy==2.2.6 torch==2.13.0 nnunetv2==2.8.1 batchgeneratorsv2==0.3.6
cd "$folder"

nnUNet_raw=raw nnUNet_preprocessed=preprocessed nnUNet_results=results "$python" - <<'PYTHON'
import sys
from importlib.metadata import version
from types import SimpleNamespace

import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerCELoss import nnUNetTrainerCELoss
from torch import nn

print("Versions:", *(f"{name} {version(name)}" for name in ("nnunetv2", "batchgeneratorsv2", "torch")))
IGNORE, SCALES = 2, [[1, 1], [0.5, 0.5], [0.25, 0.25], [0.125, 0.125]]

scribble = torch.full((1, 64, 64), IGNORE, dtype=torch.int16)
scribble[0, 16, 10:30] = 0  # a line across the background, and one across the organ
scribble[0, 40, 20:50] = 1
targets = DownsampleSegForDSTransform(SCALES)(segmentation=scribble)["segmentation"]
left = [int((target != IGNORE).sum()) for target in targets]
print("annotated pixels by scale:", left)

trainer = SimpleNamespace(
    label_manager=SimpleNamespace(
        has_regions=False, has_ignore_label=True, ignore_label=IGNORE, all_labels=[0, 1], foreground_labels=[1]
    ),
    configuration_manager=SimpleNamespace(batch_dice=True),
    enable_deep_supervision=True,
    is_ddp=False,
    _get_deep_supervision_scales=lambda: SCALES,
    _do_i_compile=lambda: False,
)
torch.manual_seed(0)
network = nn.Conv2d(1, 2, 1)
image = torch.randn(1, 1, 64, 64)
maps = [network(nn.functional.avg_pool2d(image, round(1 / scale[0]))) for scale in SCALES]
batch = [target[None] for target in targets]
default = nnUNetTrainer._build_loss(trainer)(maps, batch)
alone = nnUNetTrainerCELoss._build_loss(trainer)(maps, batch)
alone.backward()
finite = all(bool(weight.grad.isfinite().all()) and bool(weight.grad.any()) for weight in network.parameters())
print(f"Expected: a finite loss, as the default's {default.item():.3f}, with finite gradients")
print(f"Seen:     {alone.item()}, with gradients that are {'finite' if finite else 'not finite or 0'}")
gone = left[0] > 0 and 0 in left[:-1]
sys.exit(0 if gone and default.isfinite() and alone.isnan() and finite else "the behaviour has changed")
PYTHON
