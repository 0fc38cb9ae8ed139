"""A training is finished by its own final validation, not by one of an earlier training in the same folder."""

import json
import os
from pathlib import Path

import pytest
import torch
from small_results import write_run

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.plugin import first_run
from nnunet_logvmamba.results.runs import is_finished

MODEL = "nnUNetTrainerLoGVMamba__nnUNetPlans__2d"
FINISHED = {"epochs": 5, "epochs_done": 5}
DICE = {"a": [0.9, 0.8], "b": [0.7, 0.9]}


@pytest.fixture
def fold(tmp_path) -> Path:
    """Three finished folds of two methods; the last is to be changed."""
    write_run(tmp_path, MODEL.replace("LoGVMamba", "VMamba"), 0, DICE)
    write_run(tmp_path, MODEL, 0, DICE)
    return write_run(tmp_path, MODEL, 1, DICE, record=FINISHED)


def save(fold: Path, name: str, second: int) -> None:
    path = fold / f"checkpoint_{name}.pth"
    torch.save({"logging": {}}, path)
    os.utime(path, (second, second))


def begin_anew(fold: Path) -> None:
    save(fold, "final", 1)
    save(fold, "latest", 2)


def lose_the_final_checkpoint(fold: Path) -> None:
    save(fold, "best", 1)


def begin_anew_without_a_save(fold: Path) -> None:
    save(fold, "final", 1)
    (fold / "logvmamba.json").write_text(json.dumps({"format": 1, "epochs": 5, "epochs_done": 0}))


def stay_as_nnunet_leaves_it(fold: Path) -> None:
    save(fold, "final", 1)
    save(fold, "best", 2)  # a copy may have any times


def be_copied_without_checkpoints(fold: Path) -> None:
    pass


def keep_the_latest_of_the_same_training(fold: Path) -> None:
    save(fold, "latest", 1)
    save(fold, "final", 2)


@pytest.mark.parametrize("change", [begin_anew, lose_the_final_checkpoint, begin_anew_without_a_save])
def test_an_old_validation_beside_an_unfinished_training_does_not_make_it_finished(change, fold, tmp_path, capsys):
    change(fold)
    assert not is_finished(fold)
    assert main(["compare", str(tmp_path)]) == 0
    assert f"Left out, not finished: {MODEL}/fold_1" in " ".join(capsys.readouterr().out.split())
    assert main(["report", str(fold.parent)]) == 0
    assert f"{fold}  (no final validation yet)" in capsys.readouterr().out


def be_stopped_early_and_validated(fold: Path) -> None:
    save(fold, "final", 1)
    save(fold, "latest", 2)
    stopped = {"format": 1, "epochs": 5, "epochs_done": 3, "validated_epochs": 2}
    (fold / "logvmamba.json").write_text(json.dumps(stopped))


@pytest.mark.parametrize(
    "change",
    [
        stay_as_nnunet_leaves_it,
        be_copied_without_checkpoints,
        keep_the_latest_of_the_same_training,
        be_stopped_early_and_validated,
    ],
)
def test_a_finished_training_stays_finished(change, fold):
    change(fold)
    assert is_finished(fold)


def log(fold: Path, name: str, *lines: str) -> None:
    (fold / f"training_log_{name}.txt").write_text("".join(f"2026-01-01 00:00:00.000000: {line}\n" for line in lines))


def test_a_stock_training_begun_anew_is_not_finished_by_the_scores_of_the_one_before(fold, monkeypatch):
    (fold / "logvmamba.json").unlink()  # nnU-Net's own trainers write none
    stay_as_nnunet_leaves_it(fold)
    assert is_finished(fold)
    log(fold, "2026_1_9_10_00_00", "Epoch 0 ", "Mean Validation Dice:  0.8")
    assert is_finished(fold)
    log(fold, "2026_1_10_9_00_00", "Epoch 0 ", "predicting a")
    assert not is_finished(fold)
    assert option_of(fold, monkeypatch) == "--val"
    log(fold, "2026_1_11_9_00_00", "predicting a", "Mean Validation Dice:  0.9")  # by --val
    assert is_finished(fold)
    log(fold, "2026_1_12_9_00_00", "predicting a")  # the same weights once more
    assert is_finished(fold)


@pytest.mark.parametrize(
    ("change", "option"),
    [(begin_anew, "--c"), (begin_anew_without_a_save, "--c"), (stay_as_nnunet_leaves_it, None)],
)
def test_a_whole_run_goes_on_with_what_is_not_finished(change, option, fold, monkeypatch):
    change(fold)
    assert option_of(fold, monkeypatch) == option


@pytest.mark.parametrize(("damaged", "option"), [("checkpoint_final.pth", "--c"), ("validation/summary.json", "--val")])
def test_a_whole_run_does_not_take_half_a_file_for_a_finished_training(damaged, option, fold, monkeypatch):
    stay_as_nnunet_leaves_it(fold)
    path = fold / damaged
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert option_of(fold, monkeypatch) == option


def option_of(fold: Path, monkeypatch) -> str | None:
    """What ``logvmamba run`` gives to ``nnUNetv2_train``, None if it is not run."""
    run = object.__new__(first_run.FirstRun)  # nothing but the folders of the results matters
    run.number, run.device, run.dataset, run.results = "4", "cpu", fold.parents[1].name, fold.parents[2]
    run.request = first_run.Request("4", "2d", ("nnUNetTrainerLoGVMamba",))
    step = run._training("nnUNetTrainerLoGVMamba", "1", dry_run=False)
    return None if step.finished else step.command[-1]
