"""The record that every training writes beside its checkpoints."""

import importlib.metadata
import json
import re
import shlex
from copy import deepcopy
from pathlib import Path

import pytest
import small_dataset
import torch
from commands import environment_with
from small_project import TRAIN, TRAINER

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.plugin import trainers
from nnunet_logvmamba.plugin.trainers import recording as run_record
from nnunet_logvmamba.plugin.trainers.recording import split_digest
from nnunet_logvmamba.results.record import KEYS, RECORD_NAME, read_record, without_paths

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
DATASET = "Dataset501_BraTS2020"


@pytest.fixture
def make(nnunet_folders):
    """Make a trainer for patches of 16 voxels; ``settings`` go into the configuration."""
    plans_file = small_dataset.copy_into(nnunet_folders)

    def make(name: str, **settings):
        content = json.loads(plans_file.read_text())
        configuration = content["configurations"]["small"] = deepcopy(content["configurations"]["3d_fullres"])
        configuration["patch_size"] = [16, 16, 16]
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [16, 16, 32]
        configuration["logvmamba"] = {**SHORT, **settings}
        content["continue_training"] = False
        dataset = json.loads((plans_file.parent / "dataset.json").read_text())
        return getattr(trainers, name)(content, "small", 0, dataset, torch.device("cpu"))

    return make


def fold_of(trainer) -> Path:
    return Path(trainer.output_folder)


# What a training writes


@pytest.fixture(scope="module")
def record(trained) -> dict:
    return read_record(trained.fold("3d_tiny").path)


def test_the_record_says_what_was_trained_on_what(record, trained):
    expected = {
        "trainer": TRAINER,
        "network": "LoGVMambaUNet",
        "dataset": DATASET,
        "plans": "nnUNetPlans",
        "configuration": "3d_tiny",
        "fold": 0,
        "seed": 1,
        "epochs": 4,
        "epochs_done": 4,
        "validated_epochs": 4,
        "iterations_per_epoch": 10,
        "recipe": {"optimizer": "adam", "initial_lr": 0.003, "weight_decay": 1e-4},
    }
    assert {key: record[key] for key in expected} == expected
    planned = trained.fold("3d_tiny").checkpoint["init_args"]["plans"]["configurations"]["3d_fullres"]
    assert record["patch_size"] == planned["patch_size"]
    assert record["batch_size"] == planned["batch_size"]
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    assert record["device"]["type"] == "cpu"


def test_the_record_counts_what_logvmamba_summary_counts(record, trained, capsys):
    with environment_with(trained.folders.environment):
        assert main(["summary", "-d", "501", "-c", "3d_tiny"]) == 0
    said = capsys.readouterr().out
    assert f"parameters    {record['parameters']:,}" in said
    (total,) = re.findall(r"multiply-adds ([0-9.]+) GMAC", said)
    assert f"{record['multiply_adds'] / 1e9:.2f}" == total
    weights = trained.fold("3d_tiny").checkpoint["network_weights"]
    assert record["parameters"] == sum(value.numel() for value in weights.values())


def test_the_record_has_the_seconds_of_every_epoch_and_the_peak_memory(record, trained):
    log = trained.fold("3d_tiny").checkpoint["logging"]
    seconds = [end - start for start, end in zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"])]
    assert record["seconds_per_epoch"] == pytest.approx(seconds, abs=1e-3)
    assert min(seconds) <= record["median_seconds_per_epoch"] <= max(seconds)
    assert record["peak_memory_bytes"] > 2**27  # torch alone is larger


def test_the_record_names_the_command_and_no_folder_of_the_machine(record, trained):
    (session,) = record["sessions"]
    assert shlex.split(session["command"]) == shlex.split(
        f"{TRAIN} 501 3d_tiny 0 -tr {TRAINER} -p nnUNetPlans -device cpu --npz"
    )
    text = (trained.fold("3d_tiny").path / RECORD_NAME).read_text()
    assert str(trained.folders.results) not in text
    assert not re.search(r'[" =]/\w', text), "an absolute path"


def test_the_record_tells_the_split(record, trained):
    split = json.loads((trained.folders.preprocessed / DATASET / "splits_final.json").read_text())[0]
    assert record["split"] == {
        "training_cases": len(split["train"]),
        "validation_cases": len(split["val"]),
        "digest": split_digest(split["train"], split["val"]),
    }


@pytest.mark.slow
def test_a_repeated_validation_leaves_the_record_alone(own_trained):
    fold = own_trained.fold("3d_tiny").path
    before = (fold / RECORD_NAME).read_bytes()
    own_trained.train("3d_tiny", 0, "--val")
    assert (fold / RECORD_NAME).read_bytes() == before


def test_nnunets_own_network_is_counted_too(make):
    trainer = make("nnUNetTrainerStockNetwork")
    trainer.run_training()
    record = read_record(fold_of(trainer))
    assert record["network"] == "PlainConvUNet"
    assert record["multiply_adds"] > record["parameters"] > 0


# Interrupted and hindered trainings


def test_a_continued_training_keeps_every_session_and_the_highest_peak(make, monkeypatch):
    killed = make(TRAINER)
    killed.save_checkpoint = lambda filename: (
        type(killed).save_checkpoint(killed, filename),
        _stop_after_latest(filename),
    )
    monkeypatch.setattr("sys.argv", ["/opt/bin/nnUNetv2_train", "998", "small", "0"])
    monkeypatch.setattr(run_record, "peak_memory_bytes", lambda device: 2000)
    with pytest.raises(KeyboardInterrupt):
        killed.run_training()

    monkeypatch.setattr("sys.argv", ["/opt/bin/nnUNetv2_train", "998", "small", "0", "--c"])
    monkeypatch.setattr(run_record, "peak_memory_bytes", lambda device: 1000)
    continued = make(TRAINER)
    continued.load_checkpoint(str(fold_of(continued) / "checkpoint_latest.pth"))
    continued.run_training()
    record = read_record(fold_of(continued))
    assert [(session["command"], session["first_epoch"]) for session in record["sessions"]] == [
        ("nnUNetv2_train 998 small 0", 0),
        ("nnUNetv2_train 998 small 0 --c", 1),
    ]
    assert record["peak_memory_bytes"] == 2000
    assert len(record["seconds_per_epoch"]) == record["epochs_done"] == 2


def _stop_after_latest(filename: str) -> None:
    if Path(filename).name == "checkpoint_latest.pth":
        raise KeyboardInterrupt


def test_a_training_that_starts_anew_forgets_the_record_of_the_one_before(make):
    for _ in range(2):
        trainer = make(TRAINER, num_epochs=1)
        trainer.run_training()
    assert len(read_record(fold_of(trainer))["sessions"]) == 1


def test_a_record_that_cannot_be_written_is_said_in_the_log_and_training_goes_on(make):
    trainer = make(TRAINER, num_epochs=1)
    (fold_of(trainer) / RECORD_NAME).mkdir(parents=True)  # a folder in its place
    trainer.run_training()
    assert (fold_of(trainer) / "checkpoint_final.pth").is_file()
    assert f"{RECORD_NAME} could not be written (Is a directory)" in Path(trainer.log_file).read_text()
    assert [path.name for path in fold_of(trainer).iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("error", [RuntimeError, TypeError, AssertionError, AttributeError, IndexError])
def test_a_network_that_cannot_be_counted_is_said_in_the_log_and_training_goes_on(error, make, monkeypatch):
    def refuse(*_):
        raise error("this network looks at its data\nand more")

    monkeypatch.setattr(run_record, "count_multiply_adds", refuse)
    trainer = make(TRAINER, num_epochs=1)
    trainer.on_train_start()
    assert read_record(fold_of(trainer))["multiply_adds"] is None
    reason = f"could not be counted: this network looks at its data ({error.__name__})"
    assert reason in Path(trainer.log_file).read_text()


def test_whatever_a_record_fails_of_is_said_in_the_log_and_training_goes_on(make, monkeypatch):
    def refuse(device):
        raise TypeError("no such device")

    monkeypatch.setattr(run_record, "peak_memory_bytes", refuse)
    trainer = make(TRAINER, num_epochs=1)
    trainer.on_train_start()
    assert f"{RECORD_NAME} could not be written (TypeError: no such device)" in Path(trainer.log_file).read_text()


def test_a_record_holds_the_keys_that_are_promised(make):
    trainer = make(TRAINER, num_epochs=1)
    trainer.on_train_start()
    assert [*read_record(fold_of(trainer)), "validated_epochs"] == list(KEYS)
    trainer.record_validation()
    assert list(read_record(fold_of(trainer))) == list(KEYS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("parameters", "x"),
        ("multiply_adds", [1]),
        ("median_seconds_per_epoch", float("nan")),
        ("sessions", 5),
        ("sessions", [5]),
        ("sessions", None),
        ("recipe", "adam"),
        ("split", ["a"]),
        ("device", "cpu"),
        ("versions", None),
        ("patch_size", 16),
        ("epochs_done", True),
    ],
)
def test_a_record_with_values_of_another_type_is_refused(key, value, tmp_path):
    (tmp_path / RECORD_NAME).write_text(json.dumps({"format": 1, "parameters": 3, key: value}))
    with pytest.raises(ValueError, match=f"{re.escape(RECORD_NAME)} is damaged, '{key}' cannot be ") as caught:
        read_record(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}'])
def test_a_damaged_record_is_refused_by_readers_and_survived_by_trainings(text, make):
    trainer = make(TRAINER, num_epochs=1)
    trainer.on_train_start()
    path = fold_of(trainer) / RECORD_NAME
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_record(fold_of(trainer))
    trainer.current_epoch = 1
    assert len(run_record._sessions(trainer)["sessions"]) == 1
    assert "What was recorded before this training was continued is lost" in Path(trainer.log_file).read_text()


# Pieces


def test_paths_in_a_command_line_become_names():
    words = [
        "nnUNetv2_train",
        "501",
        "/",
        "-pretrained_weights",
        "/home/me/my model.pth",
        "--x=/a/b.json",
        "a/b",
        "C:\\x\\y",
    ]
    assert without_paths(words) == "nnUNetv2_train 501 / -pretrained_weights 'my model.pth' --x=b.json a/b y"


def test_a_split_is_known_by_its_cases_and_not_by_their_order():
    assert split_digest(["a", "b"], ["c"]) == split_digest(["b", "a"], ["c"])
    assert split_digest(["a", "b"], ["c"]) != split_digest(["a"], ["b", "c"])


def test_a_fold_without_a_record_has_none(tmp_path):
    assert read_record(tmp_path) is None
