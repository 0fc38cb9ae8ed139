#!/usr/bin/env bash
# One slice of a microscope's OME-TIFF series, renamed for a data set, is a stack with slices of zeros.
#
# Expected: a TIFF file with one page of 20 x 30 pixels is read as 20 x 30 pixels, wherever it lies.
# Seen with tifffile 2025.5.10 and scikit-image 0.26.0: each file reads as the whole stack of five, filled from the
#   files beside it; after renaming, the slices of the other files are 0. A line goes to the log, nothing is raised.
#   SimpleITK 2.5.7 reads the one page.
# Why: the OME standard lets a data set span files. Each file's header names all files by name, and a reader that
#   follows it fetches their pages. tifffile leaves zeros where a file is not found.
# Source: the OME-TIFF specification on sets of several files; tifffile's README on OME-TIFF and what it logs for a
#   file of the set that is missing.
# Cost: nnU-Net's names (case_0000.tif) break the links: 2D images turn to volumes, or channels hold nothing but 0.
# Remedy: tifffile.imread(path, key=0), or is_ome=False.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check \
    numpy==2.2.6 scikit-image==0.26.0 SimpleITK==2.5.7 tifffile==2025.5.10
cd "$folder"

"$python" - <<'PYTHON'
import logging
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import tifffile
from skimage.io import imread

logging.disable(logging.CRITICAL)
print("Versions:", *(f"{name} {version(name)}" for name in ("tifffile", "scikit-image", "SimpleITK")))
ids = [f"urn:uuid:00000000-0000-4000-8000-00000000000{number}" for number in range(5)]
planes = "".join(
    f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="field_z{z}.ome.tif">{ids[z]}</UUID></TiffData>'
    for z in range(5)
)
for z in range(5):
    header = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{ids[z]}"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
        'SizeX="30" SizeY="20" SizeZ="5" SizeC="1" SizeT="1">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
    )
    page = np.full((20, 30), 100 + z, np.uint16)
    tifffile.imwrite(f"field_z{z}.ome.tif", page, description=header, metadata=None, photometric="minisblack")


def read(path):
    first = tifffile.imread(path)
    assert np.array_equal(first, imread(path))
    return first.shape, first.max(axis=(-2, -1)).tolist()


beside = read("field_z1.ome.tif")
for z in range(5):
    Path(f"field_z{z}.ome.tif").rename(f"case{z}_0000.tif")
alone = read("case1_0000.tif")
one_page = sitk.ReadImage("case1_0000.tif").GetSize()
remedy = tifffile.imread("case1_0000.tif", key=0)
print("Expected: (20, 30) with the value 101")
print(f"Seen:     {beside[0]} with the values {beside[1]} beside the other files")
print(f"Seen:     {alone[0]} with the values {alone[1]} after renaming; width and height in SimpleITK {one_page}")
print(f"Remedy:   {remedy.shape} with the value {remedy.max()}")
whole = (5, 20, 30)
changed = beside != (whole, [100, 101, 102, 103, 104]) or alone != (whole, [0, 101, 0, 0, 0]) or one_page != (30, 20)
sys.exit("the behaviour has changed" if changed or remedy.shape != (20, 30) else 0)
PYTHON
