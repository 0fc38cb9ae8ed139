#!/usr/bin/env bash
# A corrected label map is learned, and validated against the uncorrected one, if the file is dated earlier.
#
# Expected: after nnUNetv2_preprocess the label maps that the final validation reads (gt_segmentations) are those of labelsTr,
#   as the preprocessed cases are.
# Seen with nnunetv2 2.8.1: a label map from an archive, which keeps the date of its correction, replaces one that a
#   converter wrote later. Preprocessing takes the new one, gt_segmentations keeps the old one, without a word, and so it
#   is at every further preprocessing.
# Why: the copies keep the date of what they are a copy of, and are replaced only by what is newer (copy_file with
#   update=True), whatever it holds; the cases themselves are always made anew.
# Source: nnunetv2/experiment_planning/plan_and_preprocess_api.py (preprocess_dataset), of that version.
# Cost: Dice of the cases that mattered most, those that somebody corrected, against the faulty truth.
# Remedy: remove gt_segmentations before preprocessing, or touch what was corrected.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.13.0 nnunetv2==2.8.1 SimpleITK==2.5.7
cd "$folder"
export nnUNet_raw=$folder/raw nnUNet_preprocessed=$folder/preprocessed nnUNet_results=$folder/results
PATH="$folder/venv/bin:$PATH"

"$python" -W ignore - <<'PYTHON'
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

print("Versions:", *(f"{name} {version(name)}" for name in ("nnunetv2", "numpy", "SimpleITK")))
NAME, CASE = "Dataset001_Boxes", "c0"
raw, preprocessed = Path("raw", NAME), Path("preprocessed", NAME)
random = np.random.default_rng(0)


def write(path, size):
    mask = np.zeros((24, 24, 24), np.uint8)
    mask[4 : 4 + size, 4:20, 4:20] = 1
    sitk.WriteImage(sitk.GetImageFromArray(mask), path)


for part in ("imagesTr", "labelsTr"):
    (raw / part).mkdir(parents=True)
for case in range(5):
    image = random.random((24, 24, 24), dtype=np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(image), raw / "imagesTr" / f"c{case}_0000.nii.gz")
    write(raw / "labelsTr" / f"c{case}.nii.gz", 8)
described = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "numTraining": 5, "file_ending": ".nii.gz"}
(raw / "dataset.json").write_text(json.dumps(described))


def run(*words):
    subprocess.run(words, check=True, capture_output=True)


run("nnUNetv2_plan_and_preprocess", "-d", "1", "-c", "3d_fullres", "-np", "1", "-npfp", "1")

# A second reader's correction comes in an archive, dated last year.
write("c0.nii.gz", 12)
os.utime("c0.nii.gz", (1_750_000_000, 1_750_000_000))
run("tar", "-cf", "corrections.tar", "c0.nii.gz")
run("tar", "-xf", "corrections.tar", "-C", str(raw / "labelsTr"))
run("nnUNetv2_preprocess", "-d", "1", "-c", "3d_fullres", "-np", "1")


def voxels(path):
    return int(sitk.GetArrayFromImage(sitk.ReadImage(path)).sum())


data = str(preprocessed / "nnUNetPlans_3d_fullres")
_, learned, *_ = infer_dataset_class(data)(data, [CASE]).load_case(CASE)
labelled, validated = (voxels(where / f"{CASE}.nii.gz") for where in (raw / "labelsTr", preprocessed / "gt_segmentations"))
learned = int((np.asarray(learned) == 1).sum())
print(f"Expected: {labelled} voxels in labelsTr, {labelled} in the preprocessed case, {labelled} in gt_segmentations")
print(f"Seen:     {labelled} voxels in labelsTr, {learned} in the preprocessed case, {validated} in gt_segmentations")
sys.exit(0 if learned == labelled != validated else "the behaviour has changed")
PYTHON
