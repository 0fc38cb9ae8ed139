#!/usr/bin/env bash
# Seven regions of a brain atlas are one region after loading.
#
# Expected: a label map that is stored as 32-bit integers keeps its numbers; seven regions stay seven.
# Seen with MONAI 1.6.1: LoadImage gives one region for seven. Loaded as integers, Spacing and RandAffine give one.
#   TorchIO 1.2.1 loads integers, and its RandomAffine gives one.
# Why: the numbers pass through float32, whose neighbours are 32 apart at 312 million. Atlases of the mouse brain have
#   regions with nine-digit numbers, and some of these are a few numbers apart.
# Source: monai/transforms/io/array.py (dtype of LoadImage) and the affine resampling of both packages, which sample a
#   grid in floating point; IEEE 754 for the distance of neighbours.
# Cost: volumes and counts per region that are silently those of a group of regions; no number is out of range.
# Remedy: map the numbers to 1..N before anything else reads them.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check \
    monai==1.6.1 nibabel==5.4.2 numpy==2.2.6 torch==2.13.0 torchio==1.2.1
cd "$folder"

"$python" - <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

import nibabel
import numpy as np
import torch

warnings.simplefilter("ignore")
import torchio
from monai.transforms import LoadImage, RandAffine, Spacing

print("Versions:", *(f"{name} {version(name)}" for name in ("monai", "torchio", "nibabel", "torch")))
numbers = np.arange(312782546, 312782571, 4, dtype=np.int32)
atlas = np.tile(numbers[:, None, None], (1, 7, 7))
nibabel.save(nibabel.Nifti1Image(atlas, np.eye(4)), "atlas.nii.gz")


def regions(volume):
    return torch.unique(torch.as_tensor(volume)).numel()


integers = LoadImage(dtype=np.int32, ensure_channel_first=True)("atlas.nii.gz")
label_map = torchio.LabelMap("atlas.nii.gz")
still = torchio.RandomAffine(scales=(1, 1), degrees=0, translation=0)
seen = {
    "file": regions(atlas),
    "MONAI LoadImage": regions(LoadImage()("atlas.nii.gz")),
    "MONAI LoadImage(dtype=int32)": regions(integers),
    "... and Spacing": regions(Spacing((1.1, 1, 1), mode="nearest")(integers)),
    "... and RandAffine": regions(RandAffine(prob=1, mode="nearest", padding_mode="border")(integers)),
    "TorchIO LabelMap": regions(label_map.data),
    "... and RandomAffine": regions(still(label_map).data),
}
print(f"Expected: {len(numbers)} regions everywhere")
print("Seen:    ", seen)
sys.exit(0 if list(seen.values()) == [7, 1, 7, 1, 1, 7, 1] else "the behaviour has changed")
PYTHON
