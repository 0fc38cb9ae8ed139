#!/usr/bin/env bash
# In the corners of every image, nnU-Net's logits are whole numbers, and the class that leads by less than one is lost.
#
# Expected: where one window alone covers a voxel, the weight of the window cancels: what is predicted there is what the
#   network said. A network that gives class 1 a lead of 0.15 everywhere has class 1 everywhere.
# Seen with nnunetv2 2.8.1, default options: all eight corners of the image are class 0, about as much as cubes of an
#   eighth of the patch (16 voxels a side for a patch of 128). Both logits are 0 there, a tie, and the first class gets it.
#   Logits of 3.2 and 3.4 would be 3 and 3. Along the edges logits are rounded less and less.
# Why: logits times a Gaussian are added up in half precision. Four sigmas away on three axes the Gaussian is 4e-10; half
#   precision ends at 6e-8, which is then the weight there. Products are multiples of 6e-8 too, so once the weight is
#   divided out again the logit is a multiple of 1.
# Source: nnunetv2/inference/sliding_window_prediction.py (compute_gaussian) and predict_from_raw_data.py
#   (_internal_predict_sliding_window_return_logits), of that version.
# Cost: masks in the corners of cropped scans, and probabilities there (--save_probabilities), which ensembles average.
# Remedy: pad images before prediction where corners matter, or use_gaussian=False in Python.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.13.0 nnunetv2==2.8.1
cd "$folder"

nnUNet_raw=raw nnUNet_preprocessed=preprocessed nnUNet_results=results nnUNet_compile=f "$python" -W ignore - <<'PYTHON'
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from types import SimpleNamespace

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


class SaysOne(torch.nn.Module):
    """Class 1 leads by 0.15 in every voxel of every window."""

    def forward(self, image):
        logits = torch.tensor([0.30, 0.45]).view(1, 2, 1, 1, 1)
        return logits.expand(-1, -1, *image.shape[2:]).clone()


def corners(patch, side, use_gaussian=True):
    with redirect_stdout(StringIO()):
        predictor = nnUNetPredictor(use_gaussian=use_gaussian, use_mirroring=False, device=torch.device("cpu"),
                                    allow_tqdm=False)
    network, heads = SaysOne(), SimpleNamespace(num_segmentation_heads=2)
    predictor.manual_initialization(network, SimpleNamespace(get_label_manager=lambda _: heads),
                                    SimpleNamespace(patch_size=[patch] * 3), [network.state_dict()], {}, "", None)
    logits = predictor.predict_sliding_window_return_logits(torch.zeros(1, side, side, side))
    return [round(float(logit), 2) for logit in logits[:, 0, 0, 0]], int((logits.argmax(0) == 0).sum())


print("Versions:", *(f"{name} {version(name)}" for name in ("nnunetv2", "torch", "numpy")))
seen = {patch: corners(patch, patch * 5 // 4) for patch in (32, 64, 128)}
without = corners(64, 80, use_gaussian=False)
print("Expected: logits 0.3 and 0.45 in the corner, and no voxel of class 0, for each patch")
for patch, (logits, voxels) in seen.items():
    print(f"Seen:     patch {patch}: logits {logits} in the corner, {voxels} voxels of class 0, 8 x {voxels / 8:.0f}")
print(f"          patch 64 without Gaussian: logits {without[0]}, {without[1]} voxels")
as_described = all(logits == [0.0, 0.0] and voxels > 7 * (patch // 8) ** 3 for patch, (logits, voxels) in seen.items())
sys.exit(0 if as_described and without == ([0.3, 0.45], 0) else "the behaviour has changed")
PYTHON
