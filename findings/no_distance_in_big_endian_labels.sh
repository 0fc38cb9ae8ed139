#!/usr/bin/env bash
# The distance map of a FreeSurfer segmentation is zero everywhere, without a word.
#
# Expected: the distance transform of a label map does not depend on the byte order of its numbers, or fails.
# Seen with edt 3.1.2: an array of zeros for big-endian numbers of more than one byte (and for float16). The signed
#   transform, sdf, is right outside and zero inside, so half of a boundary loss is missing.
# Why: the format MGH/MGZ stores big-endian numbers and nibabel keeps them so. edt compares the dtype with the native
#   ones, one after the other, and has no last branch for a dtype that is none of them: the result stays as allocated.
# Source: edt's src/edt.pyx, functions edtsq and below, and the dtypes in their docstrings; nibabel's mghformat.py.
# Cost: days of looking for the fault in one's own loss, weight map or centreline; cc3d refuses the same array.
# Remedy: array.astype(array.dtype.newbyteorder("=")) after reading.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check edt==3.1.2 nibabel==5.4.2 numpy==2.2.6 scipy==1.15.3
cd "$folder"

"$python" - <<'PYTHON'
import sys
from importlib.metadata import version

import edt
import nibabel
import numpy as np
from scipy.ndimage import distance_transform_edt

print("Versions:", *(f"{name} {version(name)}" for name in ("edt", "nibabel", "numpy", "scipy")))
labels = np.zeros((16, 16, 16), np.int32)
labels[3:13, 3:13, 3:13] = 1017
nibabel.save(nibabel.MGHImage(labels, np.eye(4)), "segmentation.mgz")

stored = np.asarray(nibabel.load("segmentation.mgz").dataobj)
native = stored.astype(np.int32)
assert stored.dtype == np.dtype(">i4") and np.array_equal(stored, labels)
expected = float(distance_transform_edt(labels).max())
seen = {
    "native": float(edt.edt(native).max()),
    "as stored": float(edt.edt(stored).max()),
    "float16": float(edt.edt(native.astype(np.float16)).max()),
}
signed = edt.sdf(stored)
print(f"Expected: the centre is {expected} voxels deep, in every byte order")
print("Seen:    ", seen, f"; signed transform from {signed.min():.3f} to {signed.max():.3f}")
changed = seen != {"native": expected, "as stored": 0.0, "float16": 0.0} or signed.max() != 0 or signed.min() >= 0
sys.exit("the behaviour has changed" if changed else 0)
PYTHON
