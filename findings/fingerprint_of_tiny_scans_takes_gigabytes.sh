#!/usr/bin/env bash
# The fingerprint of five scans of 16 x 16 x 16 voxels takes more than a gigabyte for each channel.
#
# Expected: what nnU-Net keeps of a data set for its fingerprint is bounded by the data: five scans of 16 KiB a channel.
# Seen with nnunetv2 2.8.1: about 1.2 GB more for each channel, so 13 channels of tiny scans need 16 GB, and the system ends
#   the command without a word of why on a smaller computer. Fewer processes (-npfp) do not help.
# Why: a hundred million intensities per channel are drawn with replacement, whatever there is to draw from, shared out
#   among the cases; they come back from the worker, are put together, and put together once more over the channels: three
#   copies in float32.
# Source: nnunetv2/experiment_planning/dataset_fingerprint/fingerprint_extractor.py (run, collect_foreground_intensities),
#   of that version.
# Cost: planning of multi-channel data on a laptop or in a container with a limit.
# Remedy: memory of 1.5 GB per channel for planning; or plan with an extractor whose
#   num_foreground_voxels_for_intensitystats is smaller (nnUNetv2_extract_fingerprint -fpe).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.13.0 nnunetv2==2.8.1 SimpleITK==2.5.7
cd "$folder"
export nnUNet_raw=$folder/raw nnUNet_preprocessed=$folder/preprocessed nnUNet_results=$folder/results

"$python" -W ignore - <<'PYTHON'
import json
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import SimpleITK as sitk

print("Versions:", *(f"{name} {version(name)}" for name in ("nnunetv2", "numpy", "SimpleITK")))
random = np.random.default_rng(0)
for channels in (1, 3):
    name = f"Dataset{channels:03d}_Tiny"
    for part in ("imagesTr", "labelsTr"):
        (Path("raw") / name / part).mkdir(parents=True)
    for case in range(5):
        for channel in range(channels):
            image = sitk.GetImageFromArray(random.random((16, 16, 16), dtype=np.float32))
            sitk.WriteImage(image, f"raw/{name}/imagesTr/c{case}_{channel:04d}.nii.gz")
        mask = np.zeros((16, 16, 16), np.uint8)
        mask[4:12, 4:12, 4:12] = 1
        sitk.WriteImage(sitk.GetImageFromArray(mask), f"raw/{name}/labelsTr/c{case}.nii.gz")
    described = {"channel_names": {str(c): f"MR{c}" for c in range(channels)}, "labels": {"background": 0, "a": 1}}
    described |= {"numTraining": 5, "file_ending": ".nii.gz"}
    (Path("raw") / name / "dataset.json").write_text(json.dumps(described))

PEAK = """
import resource, sys
from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import extract_fingerprint_entry
if __name__ == "__main__":
    extract_fingerprint_entry()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)  # KiB on Linux
"""
Path("peak.py").write_text(PEAK)
peaks = {}
for channels in (1, 3):
    done = subprocess.run([sys.executable, "-W", "ignore", "peak.py", "-d", str(channels), "-np", "1"],
                          capture_output=True, text=True, check=True)
    peaks[channels] = float(done.stdout.splitlines()[-1])
each = (peaks[3] - peaks[1]) / 2
print("Expected: less than 0.1 GiB for a channel of five scans of 16 KiB")
print(f"Seen:     {peaks[1]:.1f} GiB with one channel, {peaks[3]:.1f} GiB with three: {each:.1f} GiB for each")
sys.exit(0 if 0.8 < each < 1.6 else "the behaviour has changed")
PYTHON
