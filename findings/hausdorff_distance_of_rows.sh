#!/usr/bin/env bash
# A lesion that is predicted 30 pixels too low has the Hausdorff distance 0.
#
# Expected: the Hausdorff distance of a mask and the same mask 30 pixels lower is 30, and "AHD" averages distances.
# Seen with miseval 1.3.0: "HD" is 0 for the move down and 3.2 for the same move to the right. For volumes it raises.
#   "AHD" is the largest distance, so that one stray pixel far away decides it.
# Why: for HD the masks go to py-hausdorff as they are. That package takes lists of points, one per row, so a row of the
#   picture becomes a point with as many coordinates as the picture has columns, and rows have no position. The function
#   behind AHD computes both directed distance maps and returns their maximum.
# Source: miseval's miseval/hausdorff.py; the README of py-hausdorff (package "hausdorff"), section on its usage.
# Cost: wrong numbers in a table, which look plausible as long as masks overlap.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check \
    hausdorff==0.2.6 MedPy==0.5.2 miseval==1.3.0 numpy==2.2.6 scipy==1.15.3
cd "$folder"

"$python" - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from medpy.metric.binary import assd, hd
from miseval import evaluate

print("Versions:", *(f"{name} {version(name)}" for name in ("miseval", "hausdorff", "medpy", "numpy")))
truth = np.zeros((64, 64), int)
truth[10:20, 10:20] = 1
stray = truth.copy()
stray[60, 60] = 1
changed = False
for what, prediction in (("down", np.roll(truth, 30, axis=0)), ("right", np.roll(truth, 30, axis=1))):
    seen = evaluate(truth, prediction, metric="HD")
    print(f"Expected: HD {hd(prediction, truth):.2f} for a move by 30 pixels {what}")
    print(f"Seen:     HD {seen:.2f}")
    changed |= abs(seen - (0 if what == "down" else 10**0.5)) > 1e-6
average = evaluate(truth, stray, metric="AHD")
print(f"Expected: AHD about {assd(stray, truth):.2f} for one stray pixel beside a perfect mask")
print(f"Seen:     AHD {average:.2f}, which is the largest distance, {hd(stray, truth):.2f}")
changed |= abs(average - hd(stray, truth)) > 1e-6
sys.exit("the behaviour has changed" if changed else 0)
PYTHON
