#!/usr/bin/env bash
# A perfect prediction has a Dice loss of 0.17 as soon as a part of the image is masked out.
#
# Expected: voxels outside the mask do not count, so a perfect prediction has the loss 0.
# Seen with MONAI 1.6.1: MaskedDiceLoss(softmax=True, to_onehot_y=True) gives 0.170, and more the more is masked out.
#   The wrapper MaskedLoss around a loss with its own activation gives 0.889 (sigmoid).
# Why: the mask is multiplied into the prediction and into the label numbers. Label 0 is a class, the background, so
#   one-hot encoding, which follows, turns every masked-out voxel into background that the prediction, 0 there, missed.
#   MaskedLoss masks logits instead, and a logit of 0 is a probability of one half.
# Source: monai/losses/dice.py and spatial_mask.py; MONAI issues 657 and 8655, which are about the activation alone.
# Cost: partly labelled data train towards the size of the mask; the loss has a floor that nothing explains.
# Remedy: one-hot labels from outside (to_onehot_y=False), or include_background=False.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check monai==1.6.1 numpy==2.2.6 torch==2.13.0
cd "$folder"

"$python" - <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

import torch

warnings.simplefilter("ignore")
from monai.losses import DiceLoss, MaskedDiceLoss, MaskedLoss

print("Versions:", *(f"{name} {version(name)}" for name in ("monai", "torch")))
labels = torch.zeros(1, 1, 16, 16, 16)
labels[..., 4:8, 4:8, 4:8] = 1
foreground = 20 * (2 * labels - 1)
logits = torch.cat([-foreground, foreground], 1)
one_hot = torch.cat([1 - labels, labels], 1)
seen = {}
for kept in (16, 12, 8):
    mask = torch.zeros_like(labels)
    mask[..., :kept, :, :] = 1
    seen[f"{kept} of 16 slices"] = MaskedDiceLoss(softmax=True, to_onehot_y=True)(logits, labels, mask).item()
remedy = MaskedDiceLoss(softmax=True)(logits, one_hot, mask).item()
wrapped = MaskedLoss(DiceLoss(sigmoid=True))(foreground, labels, mask).item()
print("Expected: loss 0 for a perfect prediction, whatever is masked out")
print("Seen:    ", {name: round(loss, 3) for name, loss in seen.items()}, f"; MaskedLoss with sigmoid {wrapped:.3f}")
print(f"Remedy:   one-hot labels from outside give {remedy:.3f}")
losses = torch.tensor([*seen.values(), remedy])
changed = not torch.allclose(losses, torch.tensor([0, 0.0725, 0.1702, 0]), atol=1e-3) or abs(wrapped - 0.889) > 1e-3
sys.exit("the behaviour has changed" if changed else 0)
PYTHON
