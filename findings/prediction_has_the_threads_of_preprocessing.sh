#!/usr/bin/env bash
# On a CPU, a prediction runs on as many threads as a variable for worker processes says, and on 8 if nobody sets it.
#
# Expected: nnU-Net gives torch one thread per core before it predicts on a CPU ("-device cpu"), and nnUNet_def_n_proc is
#   about processes: how many preprocess, and how many write results. So it changes no thread of the network.
# Seen with nnunetv2 2.8.1: around the network the number of threads is the smaller one of what it was and of
#   nnUNet_def_n_proc. Of 16 threads 8 are left by default and 2 with nnUNet_def_n_proc=2, a value that people set to save
#   memory. Nothing is printed, and afterwards the number is what it was. More than 8 need the variable, too.
# Source: nnunetv2/inference/predict_from_raw_data.py (predict_logits_from_preprocessed_data; predict_entry_point sets the
#   number of cores before) and nnunetv2/configuration.py, of that version.
# Cost: a 64-core workstation predicts at an eighth of its width, and the validation after a training alike.
# Remedy: for predictions on a CPU set nnUNet_def_n_proc to the number of cores, and the number of processes by -npp and
#   -nps, which come first.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.13.0 nnunetv2==2.8.1
cd "$folder"

cat > predict.py <<'PYTHON'
"""Predict an array with one convolution that says how many threads it has."""
import sys
from types import SimpleNamespace

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

seen = set()


class Says(torch.nn.Conv2d):
    def forward(self, image):
        seen.add(torch.get_num_threads())
        return super().forward(image)


torch.set_num_threads(16)  # as on a machine with 16 cores
network = Says(1, 2, 3, padding=1)
predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
plan = SimpleNamespace(patch_size=[16, 16], spacing=[1.0, 1.0])
labels = SimpleNamespace(num_segmentation_heads=2)
predictor.manual_initialization(network, SimpleNamespace(get_label_manager=lambda _: labels), plan,
                                [network.state_dict()], {}, "nnUNetTrainer", None)
predictor.predict_logits_from_preprocessed_data(torch.rand(1, 3, 16, 16))
print(*seen, torch.get_num_threads(), file=sys.stderr)
PYTHON

"$python" -c "from importlib.metadata import version as v; print('Versions:', *(f'{n} {v(n)}' for n in ('nnunetv2', 'torch')))"
export nnUNet_raw=raw nnUNet_preprocessed=preprocessed nnUNet_results=results nnUNet_compile=f
unset nnUNet_def_n_proc
seen=$("$python" -W ignore predict.py 2>&1 >/dev/null | tail -1)
for processes in 2 32; do
    seen="$seen; $(nnUNet_def_n_proc=$processes "$python" -W ignore predict.py 2>&1 >/dev/null | tail -1)"
done
echo "Threads in the network and after it, without the variable; with 2; with 32 processes"
echo "Expected: 16 16; 16 16; 16 16"
echo "Seen:     $seen"
[ "$seen" = "8 16; 2 16; 16 16" ] || { echo "the behaviour has changed" >&2; exit 1; }
