"""Finished trainings in one file: what is taken out on another machine is compared as where it was trained."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from small_results import DATASET, write_run

from nnunet_logvmamba.results import comparison

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import kept  # noqa: E402

MODELS = [f"nnUNetTrainer{family}_seed1__nnUNetPlans__base_2x25" for family in ("LoGVMamba", "NoSSM")]


def test_trainings_go_from_machine_to_machine_and_stay_what_they_are(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for number, model in enumerate([*MODELS, "nnUNetTrainerNoSSM_seed1__nnUNetPlans__other"]):
        fold = write_run(here, model, 0, {f"case_{case}": [0.8, 0.7 + number / 10] for case in range(4)})
        (fold / "training_log_2026_1_1_0_0_0.txt").write_text("x: Epoch 0\nx: train_loss -0.5\n")
    unfinished = write_run(here, MODELS[0], 1, {"case_5": [0.5, 0.5]})
    (unfinished / "checkpoint_latest.pth").touch()
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    names = [f"{DATASET}/{model}/fold_0" for model in MODELS]
    assert kept.keep(first, here, MODELS) == names
    assert kept.keep(first, here, MODELS) == []
    assert "/gt/" not in first.read_text()
    content = json.loads(first.read_text())
    content["circumstances"]["processor"] = "another"
    for training in content["trainings"].values():
        training["circumstances"]["processor"] = "another"
        assert training["curves"]["train_losses"] == [-0.5]
    first.write_text(json.dumps(content))
    assert kept.restore(first, there, MODELS[:1]) == names[:1]
    assert kept.restore(first, there, MODELS) == names[1:]
    assert kept.restore(first, there, MODELS) == []
    shutil.rmtree(unfinished)
    paths = [[folder / DATASET / model for model in MODELS] for folder in (here, there)]
    ours, theirs = map(comparison.compare, paths)
    assert repr((ours.pairs, ours.scores)) == repr((theirs.pairs, theirs.scores))  # NaN is not equal to itself
    assert kept.keep(second, there, MODELS) == names
    assert json.loads(second.read_text())["trainings"] == content["trainings"]
