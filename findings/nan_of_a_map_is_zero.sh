#!/usr/bin/env bash
# A parameter map whose voxels without a fit are NaN: the mean over a tumour halves in SimpleITK, if the map is NIfTI.
#
# Expected: a reader gives the numbers that are in the file, NaN and infinity among them.
# Seen with SimpleITK 2.5.7: NaN and infinity of .nii and .nii.gz are read as 0; of .nrrd and .mha they are kept, from the
#   same array. They are in the NIfTI file that SimpleITK itself wrote, as nibabel 5.4.2 shows.
# Why: the NIfTI library inside ITK looks through floating point data as it reads them and puts 0 in place of what is not
#   finite, without a word; ITK's other readers do nothing of the kind.
# Source: nifti_read_buffer in nifti1_io.c (nifti2_io.c) of the NIfTI C library, which ITK carries along.
# Cost: a diffusion or perfusion map in which NaN means "no fit" has true zeros instead: means and medians of a lesion are
#   too low, and a test for NaN that was meant to find a broken scan finds nothing. nnU-Net trains and predicts on other
#   numbers with SimpleITKIO than with NibabelIO.
# Remedy: read with nibabel where NaN means something, or keep such maps as NRRD.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check nibabel==5.4.2 numpy==2.2.6 SimpleITK==2.5.7
cd "$folder"

"$python" - <<'PYTHON'
import sys
from importlib.metadata import version

import nibabel
import numpy as np
import SimpleITK as sitk

print("Versions:", *(f"{name} {version(name)}" for name in ("SimpleITK", "nibabel")))
diffusion = np.full((4, 6, 8), 1.2, np.float32)
diffusion[:, ::2] = np.nan  # no fit in every second row
diffusion[0, 1, 0] = np.inf
print("Expected: a mean of 1.2 where there is a fit, 96 voxels that are NaN, 1 that is infinite")

seen = {}
for ending in (".nii", ".nii.gz", ".nrrd", ".mha"):
    sitk.WriteImage(sitk.GetImageFromArray(diffusion), f"adc{ending}")
    seen[ending] = sitk.GetArrayFromImage(sitk.ReadImage(f"adc{ending}"))
seen[".nii.gz, nibabel"] = nibabel.load("adc.nii.gz").get_fdata()

found = []
for name, values in seen.items():
    fitted = values[np.isfinite(values)]
    counts = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    print(f"Seen in {name}: mean {fitted.mean():.3f}, {counts[0]} NaN, {counts[1]} infinite")
    found.append((round(float(fitted.mean()), 3), *counts))
zeros, kept = (0.594, 0, 0), (1.2, 96, 1)
sys.exit(0 if found == [zeros, zeros, kept, kept, kept] else "the behaviour has changed")
PYTHON
