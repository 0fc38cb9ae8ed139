"""Finished trainings in one file: what is taken out on another machine is compared as where it was trained."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from small_results import DATASET, write_run

from nnunet_logvmamba import files
from nnunet_logvmamba.results import comparison
from nnunet_logvmamba.results.record import FORMAT, RECORD_NAME

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import kept  # noqa: E402

MODELS = [f"nnUNetTrainer{family}_seed1__nnUNetPlans__base_2x25" for family in ("LoGVMamba", "NoSSM")]


def test_trainings_go_from_machine_to_machine_and_stay_what_they_are(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for number, model in enumerate([*MODELS, "nnUNetTrainerNoSSM_seed1__nnUNetPlans__other"]):
        fold = write_run(here, model, 0, {f"case_{case}": [0.8, 0.7 + number / 10] for case in range(4)})
        (fold / "training_log_2026_1_1_0_0_0.txt").write_text(
            "x: Epoch 0\nx: train_loss -0.5\nx: Mean Validation Dice:  0.8\n"
        )
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


def test_a_training_is_taken_once_all_its_scores_are_written(tmp_path):
    record = {"format": FORMAT, "epochs": 2, "epochs_done": 2}
    fold = write_run(tmp_path / "here", MODELS[0], 0, {"case_1": [0.8, 0.7]}, record=record)
    file = tmp_path / "kept.json"
    assert kept.keep(file, tmp_path / "here", MODELS) == []
    (fold / RECORD_NAME).write_text(json.dumps(record | {"validated_epochs": 2}))
    assert kept.keep(file, tmp_path / "here", MODELS) == [f"{DATASET}/{MODELS[0]}/fold_0"]


def kept_of_two(tmp_path: Path) -> Path:
    for model in MODELS:
        write_run(tmp_path / "here", model, 0, {"case_1": [0.8, 0.7]})
    file = tmp_path / "kept.json"
    assert len(kept.keep(file, tmp_path / "here", MODELS)) == len(MODELS)
    return file


@pytest.mark.parametrize("written", range(4))
def test_a_fold_that_was_not_restored_to_its_end_is_restored_the_next_time(tmp_path, monkeypatch, written):
    file, there = kept_of_two(tmp_path), tmp_path / "there"
    write, left = files.replace_text, list(range(written))

    def taken_away(*words: object) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        write(*words)

    monkeypatch.setattr(files, "replace_text", taken_away)
    with pytest.raises(KeyboardInterrupt):
        kept.restore(file, there, MODELS[:1])
    monkeypatch.undo()
    assert kept.restore(file, there, MODELS) == [f"{DATASET}/{model}/fold_0" for model in MODELS]
    again = tmp_path / "again.json"
    kept.keep(again, there, MODELS)
    assert json.loads(again.read_text())["trainings"] == json.loads(file.read_text())["trainings"]


def test_a_training_that_has_begun_here_is_left_alone(tmp_path):
    file, there = kept_of_two(tmp_path), tmp_path / "there"
    for model, name in zip(MODELS, ("checkpoint_latest.pth", "training_log_2026_1_1_0_0_0.txt")):
        begun = there / DATASET / model / "fold_0" / name
        begun.parent.mkdir(parents=True)
        begun.touch()
    assert kept.restore(file, there, MODELS) == []
    assert sorted(path.name for path in there.rglob("*") if path.is_file()) == [
        "checkpoint_latest.pth",
        "training_log_2026_1_1_0_0_0.txt",
    ]


def test_two_writers_lose_nothing_of_each_other(tmp_path, monkeypatch):
    file = tmp_path / "kept.json"
    for model in MODELS:
        write_run(tmp_path / model, model, 0, {"case_1": [0.8, 0.7]})
    both, read = threading.Barrier(2, timeout=0.5), kept.read

    def read_at_once(path: Path) -> dict:
        found = read(path)
        try:  # the one waits for the other, if that can have read the same
            both.wait()
        except threading.BrokenBarrierError:
            both.reset()
        return found

    monkeypatch.setattr(kept, "read", read_at_once)
    writers = [threading.Thread(target=kept.keep, args=(file, tmp_path / model, [model])) for model in MODELS]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    monkeypatch.undo()
    assert sorted(kept.read(file)) == sorted(f"{DATASET}/{model}/fold_0" for model in MODELS)


def test_a_table_that_is_ended_politely_keeps_what_is_finished_and_ends_what_it_runs(shared, tmp_path):
    source, folder, file = tmp_path / "source", tmp_path / "tables", tmp_path / "kept.json"
    for part in ("imagesTr", "labelsTr"):
        (source / part).mkdir(parents=True)
        for path in sorted((shared / "data" / "hippocampus" / part).glob("*.nii.gz"))[:5]:
            shutil.copy(path, source / part / path.name)
    results = folder / "hippocampus" / "results"
    write_run(results, MODELS[0], 0, {"case_1": [0.8, 0.7]})
    words = ["--source", source, "--folder", folder, "--seeds", "1", "--epochs", "2", "--keep", file]
    command = [sys.executable, "-u", Path(kept.__file__).with_name("paper_tables.py"), "fair", *words]
    with subprocess.Popen(map(str, command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = ""
        for line in process.stdout:
            said += line
            if "$ logvmamba study run" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait() == 130, said + process.stderr.read()
        assert "interrupted; what is finished stays" in process.stderr.read()
    assert "1 training(s) added to" in said
    assert list(kept.read(file)) == [f"{DATASET}/{MODELS[0]}/fold_0"]
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in _words(path)]
    assert left == []


def _words(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it has just ended
        return ""
