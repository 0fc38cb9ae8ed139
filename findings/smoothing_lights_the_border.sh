#!/usr/bin/env bash
# Smoothing a CT of nothing but air makes soft tissue at its border.
#
# Expected: the mean of equal values is that value; a smoothed constant image is the constant.
# Seen with MONAI 1.6.1: GaussianSmooth(2) turns a block of -1000 HU into -600 at its faces, -358 at its edges and -215
#   at its corners; GaussianSharpen goes below -4000, SavitzkyGolaySmooth above -750.
# Why: the filters are convolutions that pad with 0, and 0 HU is water. The Gaussian transforms leave no choice of the
#   padding; SavitzkyGolaySmooth has one. nnU-Net's own blur (batchgeneratorsv2) reflects the image instead.
# Source: monai/networks/layers/simplelayers.py, GaussianFilter and separable_filtering, where mode is "zeros".
# Cost: each patch gets a bright frame with some probability; intensities at the border of predictions differ.
# Remedy: add 1000 before and subtract it after, or pad with replicated values and crop.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check monai==1.6.1 numpy==2.2.6 scipy==1.15.3 torch==2.13.0
cd "$folder"

"$python" - <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

import torch

warnings.simplefilter("ignore")
from monai.transforms import GaussianSharpen, GaussianSmooth, MedianSmooth, SavitzkyGolaySmooth
from scipy.ndimage import gaussian_filter

print("Versions:", *(f"{name} {version(name)}" for name in ("monai", "torch", "scipy")))
air = torch.full((1, 24, 24, 24), -1000.0)
smooth = GaussianSmooth(sigma=2)(air)[0]
seen = {
    "centre": smooth[12, 12, 12].item(),
    "face": smooth[0, 12, 12].item(),
    "edge": smooth[0, 0, 12].item(),
    "corner": smooth[0, 0, 0].item(),
    "sharpened": GaussianSharpen()(air).min().item(),
    "Savitzky-Golay": SavitzkyGolaySmooth(5, 2)(air).max().item(),
}
print("Expected: -1000 everywhere, as from SciPy:", gaussian_filter(air[0].numpy(), 2).max())
print("Seen:    ", {name: round(value) for name, value in seen.items()})
print("          MedianSmooth, which replicates:", MedianSmooth(1)(air).max().item())
known = torch.tensor([-1000.0, -599, -358, -215, -4439, -743])
changed = not torch.allclose(torch.tensor(list(seen.values())), known, atol=6)
sys.exit("the behaviour has changed" if changed else 0)
PYTHON
