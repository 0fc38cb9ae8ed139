#!/usr/bin/env bash
# A slice has twice as many lesions as the same slice in a volume of one slice.
#
# Expected: the lesions of a mask do not depend on an axis of length 1.
# Seen with panoptica 2.1.7: two squares that meet at a corner are 2 instances as (20, 20) and 1 as (1, 20, 20).
# Why: for two axes panoptica labels with SciPy, which joins pixels at edges, for three with cc3d, which joins voxels at
#   corners, too.
# Source: panoptica's panoptica/_functionals.py and instance_approximator.py (docstring of cca_backend); SciPy's
#   reference of ndimage.label, structure; the README of connected-components-3d, connectivity.
# Cost: recognition quality and lesion counts change if a 2D data set is saved as NIfTI volumes of one slice.
# Remedy: name the backend, for instance cca_backend=CCABackend.scipy.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check \
    connected-components-3d==3.29.0 numpy==2.2.6 panoptica==2.1.7 scipy==1.15.3
cd "$folder"

cat > count.py <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from panoptica import (
    CCABackend,
    ConnectedComponentsInstanceApproximator,
    InputType,
    NaiveThresholdMatching,
    Panoptica_Evaluator,
)

print("Versions:", *(f"{name} {version(name)}" for name in ("panoptica", "connected-components-3d", "scipy")))


def score(truth, prediction, backend=None):
    evaluator = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(cca_backend=backend),
        instance_matcher=NaiveThresholdMatching(),
    )
    result = evaluator.evaluate(prediction, truth)["ungrouped"]
    return result.n_ref_instances, round(float(result.pq), 3)


if __name__ == "__main__":
    truth = np.zeros((20, 20), np.uint8)
    truth[2:6, 2:6] = truth[6:10, 6:10] = 1
    prediction = truth.copy()
    prediction[6:10, 6:10] = 0
    seen = score(truth, prediction), score(truth[None], prediction[None])
    named = score(truth[None], prediction[None], CCABackend.scipy)
    print("Expected: the same number of lesions and the same quality as a picture and as a volume of one slice")
    print(f"Seen:     {seen[0][0]} lesions, PQ {seen[0][1]} as a picture; {seen[1][0]}, PQ {seen[1][1]} as a volume")
    print(f"Remedy:   {named[0]} lesions, PQ {named[1]} as a volume with the backend named")
    changed = [counted for counted, _ in seen] != [2, 1] or named != seen[0]
    sys.exit("the behaviour has changed" if changed else 0)
PYTHON
"$python" count.py
