#!/usr/bin/env bash
# Volumes of 3 or 4 slices change their axes, and as 16-bit labels their numbers.
#
# Expected: a TIFF with a stack of slices is read as (slices, height, width), by every reader, with the numbers stored.
# Seen: scikit-image 0.26.0 reads stacks of 2 and 5 slices so, and stacks of 3 and 4 as (height, width, slices), without
#   a word. The other way round, tifffile 2025.5.10 writes an array with 3 slices as the planes of one colour picture
#   (it warns of it), and SimpleITK 2.5.7 reads that as (height, width, 4) with 8 bits: instance 300 is 1, 45 is gone.
# Why: an axis of 3 or 4 values is taken for colours, by scikit-image's imread on reading and by tifffile's imwrite on
#   writing, where nothing says otherwise. nnU-Net's Tiff3DIO writes its predictions with that call.
# Source: skimage/io/_io.py, end of imread; the docstring of tifffile.TiffWriter.write on photometric; ITK's
#   itkTIFFImageIO.cxx, fallback to an 8-bit RGBA reader, of which it prints a warning.
# Cost: the thin volumes of a data set, and only these, are transposed or lose instances.
# Remedy: photometric="minisblack" on writing; tifffile.imread on reading.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check \
    imagecodecs==2025.3.30 numpy==2.2.6 scikit-image==0.26.0 SimpleITK==2.5.7 tifffile==2025.5.10
cd "$folder"

"$python" - 2>/dev/null <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

import numpy as np
import SimpleITK as sitk
import tifffile
from skimage.io import imread

warnings.simplefilter("ignore")
print("Versions:", *(f"{name} {version(name)}" for name in ("scikit-image", "SimpleITK", "tifffile")))
seen = {}
for slices in (2, 3, 4, 5):
    labels = np.zeros((slices, 20, 30), np.uint16)
    labels[0, 2:6, 2:6], labels[-1, 12:18, 20:28] = 300, 45
    sitk.WriteImage(sitk.GetImageFromArray(labels), "stack.tif")
    seen[slices] = imread("stack.tif").shape
print("Expected:", {slices: (slices, 20, 30) for slices in seen})
print("Seen:    ", seen, "by scikit-image")
changed = seen != {2: (2, 20, 30), 3: (20, 30, 3), 4: (20, 30, 4), 5: (5, 20, 30)}

labels = np.zeros((3, 20, 30), np.uint16)
labels[:, 2:6, 2:6], labels[:, 12:18, 20:28] = 300, 45
tifffile.imwrite("prediction.tif", labels, compression="zlib")
read = sitk.GetArrayFromImage(sitk.ReadImage("prediction.tif"))
print("Expected:", labels.shape, labels.dtype, "labels", np.unique(labels).tolist())
print("Seen:    ", read.shape, read.dtype, "labels", np.unique(read[..., :3]).tolist(), "by SimpleITK")
changed |= read.shape != (20, 30, 4) or np.unique(read[..., :3]).tolist() != [0, 1]
tifffile.imwrite("prediction.tif", labels, compression="zlib", photometric="minisblack")
remedy = sitk.GetArrayFromImage(sitk.ReadImage("prediction.tif"))
print("Remedy:  ", remedy.shape, remedy.dtype, "labels", np.unique(remedy).tolist())
changed |= not np.array_equal(remedy, labels)
sys.exit("the behaviour has changed" if changed else 0)
PYTHON
