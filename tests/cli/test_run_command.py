"""``logvmamba run``: what it checks and prints, how its commands end, and a whole run with the real ones."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import SimpleITK as sitk
import small_dataset
from commands import BIN, NnunetFolders, commands_in
from holder import held_elsewhere
from small_project import Project, segmentations
from tifffile import imwrite

from nnunet_logvmamba.cli import main, terminal
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.plugin import first_run
from nnunet_logvmamba.results import runs

TRAINER = "nnUNetTrainerLoGVMamba"


def dry_run(capsys, *words: object) -> str:
    assert main(["run", *map(str, words), "--dry-run"]) == 0
    return capsys.readouterr().out


def refused(capsys, *words: object) -> str:
    assert main(["run", *map(str, words), "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert commands_in(printed.out) == []
    (line,) = printed.err.strip().splitlines()[-1:]
    assert line.startswith("logvmamba: ")
    return line


def images(folders: NnunetFolders, target: Path, number: int = 2) -> Path:
    """Scans to predict."""
    target.mkdir()
    for path in sorted((folders.raw / small_dataset.NAME / "imagesTr").iterdir())[:number]:
        shutil.copy(path, target)
    return target


def files(folders: NnunetFolders) -> list[str]:
    return sorted(str(path) for folder in vars(folders).values() for path in folder.rglob("*"))


# What is due


def test_a_dry_run_prints_the_stock_commands_and_writes_nothing(folders, tmp_path, capsys):
    new, before = images(folders, tmp_path / "new"), files(folders)
    found = commands_in(dry_run(capsys, 998, "3d_fullres", "--predict", new, tmp_path / "out", "--device", "cpu"))
    assert [command.split()[0] for command in found] == [
        "nnUNetv2_plan_and_preprocess",
        "nnUNetv2_train",
        "nnUNetv2_predict",
        "logvmamba",
        "logvmamba",
    ]
    assert found[0].startswith("nnUNetv2_plan_and_preprocess -d 998 -c 3d_fullres --verify_dataset_integrity")
    assert found[1] == f"nnUNetv2_train 998 3d_fullres 0 -tr {TRAINER} -device cpu"
    predict = f"nnUNetv2_predict -i {new} -o {tmp_path / 'out' / 'unfinished'} -d 998 -c 3d_fullres -f 0 -tr {TRAINER}"
    assert found[2].startswith(f"{predict} -device cpu")
    fold = folders.results / small_dataset.NAME / f"{TRAINER}__nnUNetPlans__3d_fullres" / "fold_0"
    assert found[3].startswith(f"logvmamba evaluate {fold / 'validation'} ")
    assert found[4] == f"logvmamba report {fold}"
    assert files(folders) == before
    assert not (tmp_path / "out").exists()


def test_two_trainers_and_folds_are_trained_one_by_one_and_compared(folders, tmp_path, capsys):
    names = [f"{TRAINER}_5epochs", "nnUNetTrainerStockNetwork_5epochs"]
    new, labels = images(folders, tmp_path / "new"), folders.raw / small_dataset.NAME / "labelsTr"
    words = ("Dataset998_Balls", "2d", "--trainer", *names, "--fold", 0, 1, "--device", "cpu", "--references", labels)
    found = commands_in(dry_run(capsys, *words, "--predict", new, tmp_path / "out"))
    trained = [command.split()[3:6] for command in found if command.startswith("nnUNetv2_train")]
    assert trained == [[fold, "-tr", name] for name in names for fold in "01"]
    predicted = [command for command in found if command.startswith("nnUNetv2_predict")]
    for name, command in zip(names, predicted):
        assert f"-o {tmp_path / 'out' / name / 'unfinished'} " in command
        assert f"-f 0 1 -tr {name} " in command
    assert sum(f" {labels} " in command for command in found) == 2
    models = [str(folders.results / small_dataset.NAME / f"{name}__nnUNetPlans__2d") for name in names]
    assert found[-2] == f"logvmamba compare {' '.join(models)} --folds 0 1"
    assert found[-1] == f"logvmamba compare {' '.join(str(tmp_path / 'out' / name) for name in names)}"


def test_seeds_of_one_method_are_not_compared(folders, capsys):
    names = [f"{TRAINER}_seed{seed}" for seed in (1, 2)]
    found = commands_in(dry_run(capsys, 998, "2d", "--trainer", *names))
    assert sum(command.startswith("nnUNetv2_train") for command in found) == 2
    assert not any(command.startswith("logvmamba compare") for command in found)


def test_what_was_trained_on_all_cases_is_not_compared_beside_numbered_folds(folders, capsys):
    def compared(*folds: object) -> str:
        words = (998, "2d", "--trainer", TRAINER, "nnUNetTrainerLVMamba", "--fold", *folds)
        return commands_in(dry_run(capsys, *words))[-1]

    assert compared(0, "all", 1).endswith(" --folds 0 1")
    assert compared("all").endswith(" --folds all")


def test_a_quick_run_writes_its_schedule_with_logvmamba_plans(folders, capsys):
    shown = dry_run(capsys, 998, "2d", "--quick")
    assert "--patch-size PATCH --train num_epochs=8 num_iterations_per_epoch=50" in shown
    assert "nnUNetv2_train 998 2d_quick 0" in shown
    small_dataset.copy_into(folders)
    shown = dry_run(capsys, 998, "2d", "--quick")
    assert "# plan and preprocess: skipped, 5 cases are preprocessed for 2d" in shown
    (patch,) = re.findall(r"--patch-size ([\d ]+) --train", shown)
    plans = json.loads((folders.preprocessed / small_dataset.NAME / "nnUNetPlans.json").read_text())
    assert list(map(int, patch.split())) == plans["configurations"]["2d"]["patch_size"]  # small enough


def test_a_cpu_is_warned_of_the_steps_that_are_due_and_of_no_others(folders, capsys):
    def noted(*trainers: str) -> list[str]:
        said = dry_run(capsys, 998, "2d", "--device", "cpu", "--trainer", *trainers)
        return re.findall(r"^note: nnUNetTrainer(\S*) trains (\S+ steps.*)$", said, re.M)

    ours = ("LoGVMamba", "250,000 steps, far too many for a CPU; --quick trains 400")
    named = ("LoGVMamba_500epochs", "125,000 steps, far too many for a CPU")
    stock = ("_1epoch", "_250epochs_NoMirroring", "_5epochs", "NoMirroring")
    assert noted(TRAINER, f"{TRAINER}_2epochs", f"{TRAINER}_500epochs") == [ours, named]
    entry = {"data_identifier": "x", "patch_size": [16, 16], "architecture": {}, "logvmamba": {"num_epochs": 1}}
    short = {"inherits_from": "base", "logvmamba": {"num_epochs": 1000, "num_iterations_per_epoch": 3}}
    plans = {"dataset_name": small_dataset.NAME, "plans_name": "nnUNetPlans"}
    plans["configurations"] = {"base": entry, "2d": short}
    (folders.preprocessed / small_dataset.NAME).mkdir()
    (folders.preprocessed / small_dataset.NAME / "nnUNetPlans.json").write_text(json.dumps(plans))
    found = noted(TRAINER, *(f"nnUNetTrainer{name}" for name in stock))
    assert [name for name, _ in found] == ["_250epochs_NoMirroring", "NoMirroring"]
    fold = folders.results / small_dataset.NAME / "nnUNetTrainerNoMirroring__nnUNetPlans__2d" / "fold_0"
    (fold / "validation").mkdir(parents=True)
    (fold / "checkpoint_final.pth").touch()
    assert noted("nnUNetTrainerNoMirroring") == [], "it is to be validated only"


@pytest.mark.parametrize(
    ("planned", "strides", "quick"),
    [
        ([40, 56, 40], [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], [24, 40, 24]),
        ([128, 128, 128], [[1] * 3, *[[2] * 3] * 5], [64, 64, 64]),
        ([20, 320, 256], [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]], [8, 64, 64]),
        ([512, 512], [[1, 1], *[[2, 2]] * 7], [256, 256]),
        ([320, 256], [1, 2, 2, 2, 2], [144, 112]),
        ([16, 16, 16], [[1] * 3, [2] * 3], [16, 16, 16]),
        ([40, 56, 40], None, [24, 40, 24]),
    ],
)
def test_the_patch_of_a_quick_run_is_small_and_fits_the_strides(planned, strides, quick):
    arguments = {} if strides is None else {"strides": strides}
    architecture = {"network_class_name": "x", "arch_kwargs": arguments, "_kw_requires_import": []}
    plans = {"configurations": {"c": {"patch_size": planned, "architecture": architecture}}}
    assert first_run.quick_patch(plans, "c") == quick
    arguments["patch_size"] = planned  # which is what the network is built for
    assert first_run.quick_patch(plans, "c") == planned


def test_validations_are_turned_onto_their_labels_only_by_readers_that_reorient(folders, capsys):
    def scoring() -> str:
        (found,) = (command for command in commands_in(dry_run(capsys, 998, "2d")) if "evaluate" in command)
        assert " --ignore-position" in found
        return found

    assert "--reorient" not in scoring()
    dataset = folders.raw / small_dataset.NAME / "dataset.json"
    content = {**json.loads(dataset.read_text()), "overwrite_image_reader_writer": "NibabelIOWithReorient"}
    dataset.write_text(json.dumps(content))
    assert " --reorient" in scoring()  # there are no plans yet
    plans = small_dataset.copy_into(folders)
    assert "--reorient" not in scoring()
    plans.write_text(plans.read_text().replace('"SimpleITKIO"', '"SimpleITKIOWithReorient"'))
    assert " --reorient" in scoring()


def test_what_was_left_unfinished_is_begun_again_or_continued(folders, capsys):
    small_dataset.copy_into(folders)
    fold = folders.results / small_dataset.NAME / f"{TRAINER}__nnUNetPlans__2d" / "fold_0"
    data = folders.preprocessed / small_dataset.NAME / "nnUNetPlans_2d"
    train = f"nnUNetv2_train 998 2d 0 -tr {TRAINER} -device cpu"

    def first() -> str:
        return commands_in(dry_run(capsys, 998, "2d", "--device", "cpu"))[0]

    assert first() == train
    (fold / "validation").mkdir(parents=True)
    (fold / "checkpoint_latest.pth").touch()
    assert first() == f"{train} --c"
    (fold / "checkpoint_final.pth").touch()
    assert first() == f"{train} --val"
    (fold / "validation" / "summary.json").touch()
    assert first().startswith("logvmamba evaluate")
    next(data.glob("*.pkl")).unlink()
    assert first().startswith("nnUNetv2_preprocess -d 998 -plans_name nnUNetPlans -c 2d")


def begin_to_wait(thread: threading.Thread, holder: int, capfd) -> None:
    """Begin what has to wait for a process, and come back once it says so."""
    thread.start()
    while "waiting" not in (said := capfd.readouterr().out):
        assert thread.is_alive()
        time.sleep(0.02)
    assert f"# waiting for process {holder} of" in said


def test_what_another_process_preprocesses_is_waited_for_and_not_done_again(folders, capfd):
    run = first_run.FirstRun(first_run.Request("998", "2d", (TRAINER,), ("0",), "cpu"))
    (dry,) = run.preprocess(["2d"], dry_run=True)
    found: list[first_run.Step] = []
    lock = folders.preprocessed / small_dataset.NAME / first_run.PREPROCESSING_LOCK
    with held_elsewhere(lock, "preprocess") as other:
        assert next(run.preprocess(["2d"], dry_run=True)) == dry, "which waits for nobody"
        thread = threading.Thread(target=lambda: found.extend(run.preprocess(["2d"], dry_run=False)))
        begin_to_wait(thread, other.pid, capfd)
        small_dataset.copy_into(folders)
        other.communicate("\n")
        thread.join()
    assert dry.command[0] == "nnUNetv2_plan_and_preprocess"
    assert [step.finished for step in found] == ["5 cases are preprocessed for 2d"]


def test_what_a_training_reads_is_not_preprocessed_anew(folders):
    small_dataset.copy_into(folders)
    run = first_run.FirstRun(first_run.Request("998", "2d", (TRAINER,), ("0",), "cpu"))
    next((folders.preprocessed / small_dataset.NAME / "nnUNetPlans_2d").glob("*.pkl")).unlink()
    fold = run.model("nnUNetTrainerLVMamba") / "fold_2"
    with held_elsewhere(fold / runs.IN_USE, "train") as other:
        words = f"2d would be preprocessed anew, since cases are missing, and process {other.pid} of .* reads what is "
        with pytest.raises(UserError, match=words + f"there: wait until {fold} is trained, or end that"):
            next(run.preprocess(["2d"], dry_run=False))
        for path in (folders.preprocessed / small_dataset.NAME / "nnUNetPlans_3d_fullres").glob("*.pkl"):
            path.unlink()
        step = next(run.preprocess(["3d_fullres"], dry_run=False))
        assert step.command[0] == "nnUNetv2_preprocess"
    # Other plans have the same folder of cases, and a folder that somebody renamed stands beside them.
    plans_file = folders.preprocessed / small_dataset.NAME / "nnUNetPlans.json"
    fold = run.results / small_dataset.NAME / "nnUNetTrainer__OurPlans__2d" / "fold_0"
    with (
        held_elsewhere(fold / runs.IN_USE, "train"),
        held_elsewhere(fold.parent.with_name("a__b__2d__old") / "fold_0" / runs.IN_USE, "train"),
    ):
        assert next(run.preprocess(["2d"], dry_run=False)).command[0] == "nnUNetv2_preprocess", "nobody knows its plans"
        shutil.copy(plans_file, fold.parent / "plans.json")
        with pytest.raises(UserError, match=f"wait until {fold} is trained"):
            next(run.preprocess(["2d"], dry_run=False))
        plans_file.rename(plans_file.with_name("gone"))
        with pytest.raises(UserError, match=f"wait until {fold} is trained"):
            next(run.preprocess(["2d"], dry_run=False))
        plans_file.with_name("gone").rename(plans_file)
    assert next(run.preprocess(["2d"], dry_run=False)).command[0] == "nnUNetv2_preprocess"


def with_a_cascade(plans_file: Path) -> None:
    """Link configurations as nnU-Net does, so that the cases of the second stage are those of the full resolution."""
    content = json.loads(plans_file.read_text())
    low = {**content["configurations"]["3d_fullres"], "data_identifier": "nnUNetPlans_3d_lowres"}
    content["configurations"] |= {
        "3d_lowres": {**low, "next_stage": "3d_cascade_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        "second": {"inherits_from": "3d_cascade_fullres"},
        "no_cascade": {"inherits_from": "3d_fullres"},
    }
    plans_file.write_text(json.dumps(content))


def test_a_first_stage_has_the_cases_of_the_second_which_its_validation_asks_for(folders, capsys):
    def first(configuration: str) -> str:
        return commands_in(dry_run(capsys, 998, configuration))[0]

    assert " -c 3d_lowres 3d_fullres --verify_dataset_integrity" in first("3d_lowres")
    with_a_cascade(small_dataset.copy_into(folders))
    assert f"{first('3d_lowres')} ".startswith("nnUNetv2_preprocess -d 998 -plans_name nnUNetPlans -c 3d_lowres ")
    data = folders.preprocessed / small_dataset.NAME
    shutil.copytree(data / "nnUNetPlans_3d_fullres", data / "nnUNetPlans_3d_lowres")
    assert first("3d_lowres").startswith("nnUNetv2_train 998 3d_lowres 0 ")
    shutil.rmtree(data / "nnUNetPlans_3d_fullres")
    assert first("3d_lowres").startswith("nnUNetv2_preprocess -d 998 -plans_name nnUNetPlans -c 3d_fullres")


def test_a_second_stage_is_known_by_what_it_needs_and_not_by_its_name(folders, capsys):
    with_a_cascade(small_dataset.copy_into(folders))
    said = refused(capsys, 998, "second")
    assert "'second' is the second stage of a cascade and needs the first one of all folds: run 3d_lowres" in said
    assert commands_in(dry_run(capsys, 998, "no_cascade"))[0].startswith("nnUNetv2_train 998 no_cascade 0 ")


def test_a_stock_training_whose_checkpoint_is_damaged_says_which_to_remove(folders):
    small_dataset.copy_into(folders)
    fold = folders.results / small_dataset.NAME / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").write_bytes(b"half")
    (fold / "checkpoint_best.pth").write_bytes(b"whole")
    request = first_run.Request("998", "2d", ("nnUNetTrainer",), device="cpu")
    steps = first_run.FirstRun(request).steps()
    assert next(steps).finished is not None
    with pytest.raises(UserError, match=r"checkpoint_latest.pth is damaged .*remove it, .* from checkpoint_best.pth"):
        next(steps)
    ours = first_run.FirstRun(first_run.Request("998", "2d", (TRAINER,), device="cpu"))
    fold.parent.rename(ours.model(TRAINER))
    *_, training = (step for _, step in zip(range(2), ours.steps()))
    assert training.command[-1] == "--c"


def test_the_planner_gets_no_zero_for_a_number_of_threads(folders, monkeypatch, capsys):
    """The tests' own setting, and one that users have."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    found = commands_in(dry_run(capsys, 998, "2d"))
    assert found[0].startswith("nnUNet_n_proc_DA=1 nnUNetv2_plan_and_preprocess ")
    assert found[1].startswith("nnUNetv2_train ")


# What is refused


def test_missing_variables_are_named_with_what_to_export(folders, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.setenv("nnUNet_results", "")
    said = refused(capsys, 998, "2d")
    assert "nnUNet_raw and nnUNet_results are not set" in said
    assert said.endswith("export nnUNet_raw=~/nnunet/raw nnUNet_results=~/nnunet/results")


def test_a_home_that_the_shell_did_not_write_out_is_refused_since_nnunet_does_not_either(folders, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(folders.raw.parent))
    monkeypatch.setenv("nnUNet_raw", f"~/{folders.raw.name}")
    said = refused(capsys, 998, "2d")
    assert f"nnUNet_raw is ~/{folders.raw.name}, in which nnU-Net does not replace ~ by your home: export the" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((997, "2d"), "has no data set 997 (there are Dataset998_Balls): nnU-Net wants DATASET/dataset.json"),
        (("/my/scans", "2d"), "'/my/scans' is neither the number nor the name of a data set: nnU-Net wants"),
        (("balls", "2d"), "in nnUNet_raw, and there are Dataset998_Balls; name its number, e.g. 998"),
        ((998, "3d_fulres"), "no configuration '3d_fulres': nnU-Net plans 2d, 3d_fullres, 3d_lowres"),
        ((998, "3d_cascade_fullres"), "'3d_cascade_fullres' is the second stage of a cascade"),
        ((998, "2d", "--fold", "five"), "--fold takes the numbers of folds, as 0, or all, not 'five'"),
        ((998, "2d", "--fold", 0, 5), "there is no fold 5: nnU-Net makes 5 folds, 0 to 4"),
        ((998, "2d", "--trainer", "nnUNetTrainerLogVMamba"), "nnUNetTrainerLoGVMamba"),
        ((998, "2d", "--trainer", "nnUNetTrainerOfMine"), "nnU-Net finds no trainer 'nnUNetTrainerOfMine'"),
        ((998, "3d_fullres", "--trainer", "nnUNetTrainerLoGVMambaSwin"), "LoGVMambaSwinUNet is a 2D network and this"),
        (
            (998, "2d", "--trainer", "nnUNetTrainerSegMamba_sgd"),
            "SegMamba is a 3D network and this configuration",
        ),
        ((998, "2d", "--references", "."), "--references are of the scans to predict"),
        ((998, "2d", "--predict", "nowhere", "out"), "nowhere is not a folder"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_run(folders, capsys, words, reason):
    before = files(folders)
    assert reason in refused(capsys, *words)
    assert files(folders) == before


def test_a_device_that_is_not_there_is_refused(folders, capsys):
    import torch

    for device, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not there:
            assert f"--device {device}: torch sees no such device" in refused(capsys, 998, "2d", "--device", device)


def without_dataset_json(folder: Path) -> None:
    (folder / "dataset.json").unlink()


def without_labels(folder: Path) -> None:
    shutil.rmtree(folder / "labelsTr")


def without_one_label(folder: Path) -> None:
    (folder / "labelsTr" / "ball_3.nii.gz").unlink()


def without_channels(folder: Path) -> None:
    for path in (folder / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))


def without_images(folder: Path) -> None:
    for path in (folder / "imagesTr").iterdir():
        path.rename(path.with_suffix("").with_suffix(".nrrd"))


def labels_that_are_none(folder: Path) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "labels": {"background": 0, "ball": "one"}}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_dataset_json, "Dataset998_Balls has no dataset.json: nnU-Net wants"),
        (without_labels, "Dataset998_Balls has no folder labelsTr"),
        (without_one_label, "ball_3.nii.gz is missing; 1 of 5 image(s) have no label there"),
        (without_channels, "ball_0.nii.gz has no channel number: name images <case>_0000.nii.gz"),
        (without_images, "imagesTr holds no image <case>_0000.nii.gz"),
        (labels_that_are_none, "the label 'ball' must be a whole number"),
    ],
)
def test_a_data_set_in_another_layout_is_refused_with_what_is_wanted(folders, capsys, damage, reason):
    damage(folders.raw / small_dataset.NAME)
    assert reason in refused(capsys, 998, "2d")


def test_two_data_sets_that_nnunet_mixes_up_are_refused(folders, capsys):
    (folders.raw / "Dataset9981_Cubes").mkdir()
    assert "Dataset9981_Cubes and Dataset998_Balls, which nnU-Net mixes up" in refused(capsys, 998, "2d")


def test_folds_of_cases_that_are_gone_are_refused(folders, capsys):
    small_dataset.copy_into(folders)
    splits = folders.preprocessed / small_dataset.NAME / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["ball_0", "ball_1"], "val": ["cube_0"]}]))
    assert f"{splits} lists 1 case(s) that the data set does not have, the first is cube_0" in refused(
        capsys, 998, "2d"
    )


def test_a_fold_that_the_data_set_does_not_have_is_refused_since_nnunet_would_draw_one(folders, capsys):
    small_dataset.copy_into(folders)
    splits = folders.preprocessed / small_dataset.NAME / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["ball_0"], "val": ["ball_1"]}] * 2))
    assert f"there is no fold 2: {splits} has 2 folds, 0 to 1" in refused(capsys, 998, "2d", "--fold", 2)
    dry_run(capsys, 998, "2d", "--fold", 1, "all")


def test_so_few_cases_that_nnunet_makes_no_folds_are_trained_all_at_once_or_with_folds_of_their_own(folders, capsys):
    raw = folders.raw / small_dataset.NAME
    for file in (raw / "imagesTr" / "ball_4_0000.nii.gz", raw / "labelsTr" / "ball_4.nii.gz"):
        file.unlink()
    said = refused(capsys, 998, "2d")
    assert "of 4 case(s) nnU-Net cannot make its 5 folds: train the fold all, or write folds of your own" in said
    dry_run(capsys, 998, "2d", "--fold", "all")
    small_dataset.copy_into(folders)
    splits = folders.preprocessed / small_dataset.NAME / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["ball_0", "ball_1"], "val": ["ball_2"]}]))
    dry_run(capsys, 998, "2d")


def test_cases_that_are_in_no_fold_are_told(folders, capsys):
    small_dataset.copy_into(folders)
    splits = folders.preprocessed / small_dataset.NAME / "splits_final.json"
    assert "ATTENTION" not in dry_run(capsys, 998, "2d")
    splits.write_text(json.dumps([{"train": ["ball_0", "ball_1"], "val": ["ball_3"]}]))
    said = dry_run(capsys, 998, "2d")
    assert (
        f"ATTENTION: 2 of 5 case(s) are in no fold of {splits}, the first is ball_2: they are neither trained" in said
    )
    assert "ATTENTION" not in dry_run(capsys, 998, "2d", "--fold", "all")
    assert "ATTENTION" not in dry_run(capsys, 998, "2d", "--fold", 0, "all")


def test_a_fold_is_one_however_it_is_written(folders, capsys):
    found = commands_in(dry_run(capsys, 998, "2d", "--fold", "00", "01", "0"))
    trained = [command.split()[3] for command in found if command.startswith("nnUNetv2_train")]
    assert trained == ["0", "1"]


def test_the_order_of_folds_makes_no_other_predictions(folders, tmp_path, capsys):
    new, out = images(folders, tmp_path / "new"), tmp_path / "out"
    out.mkdir()
    record = {"images": str(new), "model": f"{TRAINER}__nnUNetPlans__2d", "dataset": small_dataset.NAME}
    (out / first_run.PREDICTED_BY).write_text(json.dumps({**record, "folds": ["0", "1"]}))
    dry_run(capsys, 998, "2d", "--fold", 1, 0, "--predict", new, out)


OTHER_GRIDS = {
    "other origin": ("SetOrigin", (1.0, 0.0, 0.0)),
    "other spacing": ("SetSpacing", (1.0, 1.0, 1.5)),
    "other direction": ("SetDirection", (-1.0, 0, 0, 0, -1, 0, 0, 0, 1)),
}


@pytest.mark.parametrize(
    "fault", ["missing", "other shape", "no labels", "other values", "images", "flipped", *OTHER_GRIDS, None]
)
def test_references_that_the_scores_would_stop_at_are_named_before_the_training(folders, tmp_path, capsys, fault):
    new, references = images(folders, tmp_path / "new"), tmp_path / "references"
    shutil.copytree(folders.raw / small_dataset.NAME / "labelsTr", references)
    last = references / "ball_1.nii.gz"
    if fault == "missing":
        last.unlink()
    elif fault == "other shape":
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(last)))
        sitk.WriteImage(sitk.GetImageFromArray(voxels[:-1]), str(last))
    elif fault == "no labels":
        shutil.copy(new / "ball_1_0000.nii.gz", last)
    elif fault == "other values":
        scan = sitk.Cast(sitk.ReadImage(str(new / "ball_1_0000.nii.gz")) * 100, sitk.sitkUInt16)
        sitk.WriteImage(scan, str(last))
    elif fault == "images":
        references = new
    elif fault == "flipped":  # the same voxels at the same places, as nnU-Net's reorienting readers leave them
        sitk.WriteImage(sitk.Flip(sitk.ReadImage(str(last)), (True, False, True)), str(last))
    elif fault in OTHER_GRIDS:
        read, (setter, value) = sitk.ReadImage(str(last)), OTHER_GRIDS[fault]
        getattr(read, setter)(value)
        sitk.WriteImage(read, str(last))
    words = (998, "2d", "--predict", new, tmp_path / "out", "--references", references)
    if fault in (None, "flipped"):
        assert f"--output {tmp_path / 'out' / 'scores'}" in dry_run(capsys, *words)
        return
    reasons = {
        "missing": f"{references} holds no reference for 1 scan(s) of {new}, the first is 'ball_1'",
        "other shape": f"{last} has the shape",
        "no labels": f"{last} holds numbers that are not whole",
        "other values": f"{last} holds the value",
        "images": f"{new} holds images of the scans, the first is 'ball_0_0000'",
        "other origin": f"{new / 'ball_1_0000.nii.gz'} has origin or direction",
        "other spacing": f"{new / 'ball_1_0000.nii.gz'} has spacing (1.0, 1.0, 1.0) but its reference {last}",
        "other direction": f"{new / 'ball_1_0000.nii.gz'} has origin or direction",
    }
    assert reasons[fault] in refused(capsys, *words)


def test_scores_of_the_data_sets_own_cases_are_called_what_they_are(folders, tmp_path, capsys):
    new, labels = images(folders, tmp_path / "new"), folders.raw / small_dataset.NAME / "labelsTr"
    words = ["run", 998, "2d", "--dry-run", "--predict", new, tmp_path / "out", "--references", labels]
    assert main([*map(str, words)]) == 0
    said = f"2 of the scans in {new} are cases of {small_dataset.NAME} itself, the first is ball_0: "
    assert said in capsys.readouterr().err
    for path in new.iterdir():
        read = sitk.ReadImage(str(path))
        sitk.WriteImage(read + 1, str(path))
    assert main([*map(str, words)]) == 0
    assert "itself" not in capsys.readouterr().err


def test_scans_that_nnunet_cannot_predict_are_named_before_the_training(folders, tmp_path, capsys):
    new = images(folders, tmp_path / "new")
    (new / "ball_0_0000.nii.gz").rename(new / "ball_0.nii.gz")
    assert "ball_0.nii.gz has no channel number" in refused(capsys, 998, "2d", "--predict", new, tmp_path / "out")


@pytest.mark.parametrize("damaged", [False, True])
def test_volumes_in_tiff_are_read_without_a_word_and_damaged_ones_are_named(damaged, folders, tmp_path, capsys):
    dataset = folders.raw / small_dataset.NAME
    for path in dataset.glob("*Tr/*.nii.gz"):
        values = sitk.GetArrayFromImage(sitk.ReadImage(path))
        imwrite(path.with_name(path.name.replace(".nii.gz", ".tif")), values)
        path.unlink()
    content = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**content, "file_ending": ".tif"}))
    new = images(folders, tmp_path / "new")
    if damaged:
        (dataset / "imagesTr" / "ball_0_0000.tif").write_bytes(b"II*")
        said = refused(capsys, 998, "3d_fullres", "--predict", new, tmp_path / "out")
        assert "ball_0_0000.tif can be read by none of nnU-Net's readers" in said
    else:
        assert main(["run", "998", "3d_fullres", "--dry-run", "--predict", str(new), str(tmp_path / "out")]) == 0
        assert "Traceback" not in capsys.readouterr().err


def test_segmentations_are_no_scans_to_predict_and_the_scans_come_first(folders, tmp_path, capsys):
    new, labels = images(folders, tmp_path / "new"), folders.raw / small_dataset.NAME / "labelsTr"
    said = refused(capsys, 998, "2d", "--predict", labels, tmp_path / "out")
    assert f"{labels / 'ball_0.nii.gz'} holds nothing but labels, so it is no scan" in said
    (tmp_path / "out").mkdir()
    said = refused(capsys, 998, "2d", "--predict", tmp_path / "out", new)
    assert f"{new} holds scans and {tmp_path / 'out'} none: --predict takes the folder of the scans first" in said


def target_of(step: first_run.Step) -> Path:
    return Path(step.command[step.command.index("-o") + 1])


@pytest.fixture
def predicted(folders, tmp_path) -> Path:
    """Everything that a finished run leaves, without its computing."""
    small_dataset.copy_into(folders)
    new, out = images(folders, tmp_path / "new"), tmp_path / "out"
    fold = folders.results / small_dataset.NAME / f"{TRAINER}__nnUNetPlans__2d" / "fold_0"
    (fold / "validation").mkdir(parents=True)
    for name in ("checkpoint_final.pth", "validation/summary.json"):
        (fold / name).write_text("{}")
    request = first_run.Request("998", "2d", (TRAINER,), device="cpu", new=first_run.NewScans(new, out))
    for step in first_run.FirstRun(request).steps():
        if step.title.startswith("predict"):
            for case in ("ball_0.nii.gz", "ball_1.nii.gz"):
                shutil.copy(folders.raw / small_dataset.NAME / "labelsTr" / case, target_of(step))
    return tmp_path


def move(everything: Path, monkeypatch) -> Path:
    moved = everything.rename(everything.with_name(f"{everything.name} elsewhere"))
    for name, value in NnunetFolders.below(moved / "nnunet").environment.items():
        monkeypatch.setenv(name, value)
    for path in moved.rglob("*"):  # a copy may have any times
        os.utime(path, (1, 1) if path.name == first_run.PREDICTED_BY else (2, 2))
    return moved


PREDICTED = "# predict with nnUNetTrainerLoGVMamba: skipped, 2 case(s) are predicted"


def test_a_project_that_was_moved_goes_on(predicted, monkeypatch, capsys):
    moved = move(predicted, monkeypatch)
    words = (998, "2d", "--device", "cpu", "--predict", moved / "new", moved / "out")
    assert PREDICTED in dry_run(capsys, *words)
    shutil.copytree(moved / "new", moved / "a copy of the scans")
    assert PREDICTED in dry_run(capsys, *words[:-2], moved / "a copy of the scans", moved / "out")


def test_other_weights_and_more_scans_are_predicted_anew(predicted, folders, capsys):
    words = (998, "2d", "--device", "cpu", "--predict", predicted / "new", predicted / "out")
    assert PREDICTED in dry_run(capsys, *words)
    third = folders.raw / small_dataset.NAME / "imagesTr" / "ball_2_0000.nii.gz"
    shutil.copy(third, predicted / "new")
    assert "\n$ nnUNetv2_predict" in dry_run(capsys, *words)
    (predicted / "new" / third.name).unlink()
    next(folders.results.rglob("checkpoint_final.pth")).write_text("trained again")
    assert "\n$ nnUNetv2_predict" in dry_run(capsys, *words)


def test_predictions_stand_without_the_weights_that_made_them_and_none_are_begun_without(predicted):
    new = first_run.NewScans(predicted / "new", predicted / "out")
    run = first_run.FirstRun(first_run.Request("998", "2d", (TRAINER,), device="cpu", new=new))
    (run.model(TRAINER) / "fold_0" / "checkpoint_final.pth").unlink()
    (step,) = run._prediction(TRAINER, dry_run=False)
    assert step.finished is not None
    record = predicted / "out" / first_run.PREDICTED_BY
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    before = record.read_bytes()
    with pytest.raises(UserError, match="checkpoint_final.pth is not there, so nothing can be predicted with it"):
        list(run._prediction(TRAINER, dry_run=False))
    assert record.read_bytes() == before


def test_predictions_of_several_trainers_are_compared_where_there_is_a_truth(folders, tmp_path, capsys):
    small_dataset.copy_into(folders)
    new, out, truth = images(folders, tmp_path / "new"), tmp_path / "out", folders.raw / small_dataset.NAME / "labelsTr"
    trainers = (TRAINER, "nnUNetTrainerNoSSM")
    for trainer in trainers:
        fold = folders.results / small_dataset.NAME / f"{trainer}__nnUNetPlans__2d" / "fold_0"
        (fold / "validation").mkdir(parents=True)
        for name in ("checkpoint_final.pth", "validation/summary.json"):
            (fold / name).write_text("{}")
        (fold / "logvmamba.json").write_text(json.dumps({"format": 1, "parameters": 7}))
    run = first_run.FirstRun(
        first_run.Request("998", "2d", trainers, device="cpu", new=first_run.NewScans(new, out, truth))
    )
    titles = []
    for step in run.steps():
        if step.title.startswith("predict with"):  # what nnU-Net leaves
            target = target_of(step)
            for case in ("ball_0.nii.gz", "ball_1.nii.gz"):
                shutil.copy(truth / case, target)
            shutil.copy(folders.raw / small_dataset.NAME / "dataset.json", target)
            shutil.copy(folders.preprocessed / small_dataset.NAME / "nnUNetPlans.json", target / "plans.json")
        elif "predictions" in step.title and step.finished is None:
            titles.append(step.title)
            assert main(list(step.command[1:])) == 0
    assert titles == [*(f"score the predictions of {trainer}" for trainer in trainers), "compare the predictions"]
    said = capsys.readouterr().out
    assert "2 held-out cases, predicted with fold 0; runs: LoGVMamba 1, NoSSM 1." in said
    # Once they are predicted anew, the scores are those of nothing that is there.
    assert (out / TRAINER / first_run.SCORED_AGAINST).is_file()
    (
        folders.results / small_dataset.NAME / f"{TRAINER}__nnUNetPlans__2d" / "fold_0" / "checkpoint_final.pth"
    ).write_text("x")
    steps = first_run.FirstRun(run.request)._prediction(TRAINER, dry_run=False)
    assert next(steps).command[0] == "nnUNetv2_predict"
    assert (out / TRAINER / first_run.SCORED_AGAINST).is_file()
    assert next(steps).title.startswith("score the predictions")
    assert not (out / TRAINER / first_run.SCORED_AGAINST).exists()


def test_masks_that_were_corrected_by_hand_are_not_predicted_over(predicted, folders):
    new, out = predicted / "new", predicted / "out"
    scans = first_run.NewScans(new, out)

    def steps() -> list[first_run.Step]:
        request = first_run.Request("998", "2d", (TRAINER,), device="cpu", new=scans)
        return list(first_run.FirstRun(request)._prediction(TRAINER, dry_run=False))

    corrected = out / "ball_1.nii.gz"
    sitk.WriteImage(sitk.ReadImage(corrected) * 0, corrected)
    by_hand = corrected.read_bytes()
    (step,) = steps()
    assert step.finished is not None
    shutil.copy(new / "ball_0_0000.nii.gz", new / "ball_9_0000.nii.gz")
    with pytest.raises(UserError, match=f"{corrected} was changed after it had been predicted.*name another folder"):
        steps()
    assert corrected.read_bytes() == by_hand
    # Nor is it scored as the model's.
    (new / "ball_9_0000.nii.gz").unlink()
    labels = folders.raw / small_dataset.NAME / "labelsTr"
    request = first_run.Request("998", "2d", (TRAINER,), device="cpu", new=first_run.NewScans(new, out, labels))
    with pytest.raises(UserError, match=f"would be scored as that of {TRAINER}: name another folder"):
        list(first_run.FirstRun(request)._prediction(TRAINER, dry_run=False))
    shutil.copy(new / "ball_0_0000.nii.gz", new / "ball_9_0000.nii.gz")
    assert json.loads((out / first_run.PREDICTED_BY).read_text())["finished"] is True
    corrected.rename(predicted / "mine.nii.gz")
    (step,) = steps()
    assert step.command[0] == "nnUNetv2_predict"


# Masks by a reader's hand

CASES = ("ball_0.nii.gz", "ball_1.nii.gz")


@dataclass
class Predictions:
    """A folder to predict into, with something else that writes masks in place of ``nnUNetv2_predict``."""

    out: Path
    request: first_run.Request
    weights: Path

    def predict(self, *doings: Callable[[Path], object]) -> None:
        """Predict; in place of the command, do things with the folder that it writes to."""
        self._predict(first_run.FirstRun(self.request), doings)

    def predict_and_be_killed(self, *doings: Callable[[Path], object]) -> None:
        """The same in a process that does not come to its end."""
        run = first_run.FirstRun(self.request)  # which may begin processes
        process = os.fork()
        if process == 0:
            try:
                self._predict(run, doings)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL

    def _predict(self, run: first_run.FirstRun, doings: Sequence[Callable[[Path], object]]) -> None:
        def instead(step: first_run.Step, *_) -> None:
            for do in doings:
                do(target_of(step))

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(first_run, "execute", instead)
            first_run.run_steps(run._prediction(TRAINER, dry_run=False), run.logs)

    def train_anew(self) -> None:
        self.weights.write_text(self.weights.read_text() + ", trained again")

    def masks(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in segmentations(self.out)}

    def record(self) -> dict:
        return json.loads((self.out / first_run.PREDICTED_BY).read_text())

    def refuses(self, message: str, *doings: Callable[[Path], object]) -> None:
        """A prediction is refused and replaces nothing."""
        before = self.masks()
        with pytest.raises(UserError, match=f"{message}.*name another folder, or move it away"):
            self.predict(*doings)
        assert self.masks() == before


def writes(label: int, *cases: str) -> Callable[[Path], None]:
    """Writes masks that have one label everywhere."""

    def write(folder: Path) -> None:
        for case in cases:
            sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkUInt8) + label, folder / case)

    return write


def is_killed(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_interrupted(folder: Path) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def predictions(predicted) -> Predictions:
    new = first_run.NewScans(predicted / "new", predicted / "out")
    request = first_run.Request("998", "2d", (TRAINER,), device="cpu", new=new)
    (weights,) = (predicted / "nnunet").rglob("checkpoint_final.pth")
    return Predictions(new.predictions, request, weights)


CHANGED, NOT_LISTED = "was changed after it had been predicted", "is no mask that predicted_by.json lists as predicted"


def test_a_mask_that_is_corrected_once_another_prediction_was_killed_is_not_replaced(predictions):
    before = predictions.masks()
    predictions.train_anew()
    predictions.predict_and_be_killed(writes(1, *CASES), is_killed)
    assert predictions.masks() == before, "which is as it was"
    writes(2, CASES[1])(predictions.out)
    predictions.refuses(f"{CASES[1]} {CHANGED}, and would be predicted anew", writes(1, *CASES))


def test_a_mask_that_is_drawn_once_the_first_prediction_was_killed_is_not_replaced(predictions):
    shutil.rmtree(predictions.out)
    predictions.predict_and_be_killed(writes(1, CASES[0]), is_killed)
    writes(2, CASES[0])(predictions.out)
    predictions.refuses(f"{CASES[0]} {NOT_LISTED}, and would be predicted anew", writes(1, *CASES))


def test_a_case_that_is_drawn_before_it_is_predicted_is_not_replaced(predictions):
    shutil.rmtree(predictions.out)
    with pytest.raises(KeyboardInterrupt):
        predictions.predict(writes(1, CASES[0]), is_interrupted)
    writes(2, CASES[1])(predictions.out)
    predictions.refuses(f"{CASES[1]} {NOT_LISTED}, and would be predicted anew", writes(1, *CASES))
    (predictions.out / CASES[1]).unlink()
    with pytest.raises(KeyboardInterrupt):
        predictions.predict(writes(1, CASES[1]), is_interrupted)
    predictions.predict(writes(1, CASES[0]))
    assert list(predictions.masks()) == [CASES[0]], "what was left was removed"


def test_a_prediction_that_fails_on_a_full_disk_says_what_it_failed_of(predictions):
    predictions.train_anew()

    def fails(folder: Path) -> None:
        patched.setattr(Path, "write_text", is_full)
        raise first_run.StepFailed("the command failed", folder / "log", 1)

    def is_full(*_, **__) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patched, pytest.raises(UserError, match="the command failed"):
        predictions.predict(writes(1, *CASES), fails)
    writes(2, CASES[0])(predictions.out)
    predictions.refuses(f"{CASES[0]} {CHANGED}", writes(1, *CASES))


@pytest.mark.parametrize("first", [False, True])
def test_a_mask_that_is_corrected_or_drawn_while_a_prediction_runs_is_not_replaced(first, predictions):
    predictions.train_anew()
    if first:
        shutil.rmtree(predictions.out)
    before = predictions.masks() if not first else {}

    def reader(folder: Path) -> None:
        writes(2, CASES[0])(predictions.out)

    with pytest.raises(UserError, match=f"{CASES[0]} {NOT_LISTED if first else CHANGED}, and stays .*move it away"):
        predictions.predict(reader, writes(1, *CASES))
    after = predictions.masks()
    writes(2, CASES[0])(predictions.out)
    assert after == {**before, CASES[0]: predictions.masks()[CASES[0]]}
    whole = predictions.out / first_run.UNFINISHED
    (predictions.out / CASES[0]).unlink()
    predicted_mask = (whole / CASES[1]).read_bytes()
    writes(2, CASES[1])(whole)
    corrected = (whole / CASES[1]).read_bytes()
    predictions.refuses(f"{whole / CASES[1]} {CHANGED}, and would be kept as that of {TRAINER}", is_killed)
    assert (whole / CASES[1]).read_bytes() == corrected
    (whole / CASES[1]).write_bytes(predicted_mask)
    predictions.predict(is_killed)  # it is whole, so nothing is predicted again
    assert predictions.masks()[CASES[1]] == predicted_mask
    assert predictions.record()["finished"]
    assert first_run.PREDICTED_BY not in [path.name for path in whole.glob("*")]


def test_what_is_whole_but_of_other_weights_is_predicted_anew(predictions):
    predictions.train_anew()

    def reader(folder: Path) -> None:
        writes(2, CASES[0])(predictions.out)

    with pytest.raises(UserError, match=CHANGED):
        predictions.predict(reader, writes(1, *CASES))
    (predictions.out / CASES[0]).unlink()
    predictions.train_anew()
    predictions.predict(writes(2, *CASES))
    writes(2, CASES[0])(predictions.out.parent)
    assert set(predictions.masks().values()) == {(predictions.out.parent / CASES[0]).read_bytes()}


def test_a_mask_that_equals_the_predicted_one_is_nobodys(predictions):
    shutil.rmtree(predictions.out)
    predictions.predict(writes(1, *CASES), lambda folder: shutil.copy(folder / CASES[0], predictions.out))
    assert list(predictions.masks()) == list(predictions.record()["masks"]) == [*CASES]
    assert not (predictions.out / first_run.UNFINISHED).exists()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_prediction_that_is_killed_while_it_is_moved_loses_nothing(moved, first, predictions, monkeypatch):
    if first:
        shutil.rmtree(predictions.out)
    predictions.train_anew()
    replace, before = os.replace, predictions.masks() if not first else {}

    def replace_some(source: Path, target: Path) -> None:
        if Path(target) == predictions.out / [*CASES, "plans.json"][moved]:
            is_killed(predictions.out)
        replace(source, target)

    def plans(folder: Path) -> None:
        (folder / "plans.json").write_text("{}")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace_some)
        predictions.predict_and_be_killed(writes(1, *CASES), plans)
    there = predictions.masks()
    assert not predictions.record()["finished"]
    assert [there.get(case) == before.get(case) for case in CASES] == [False] * moved + [True] * (2 - moved)
    for case in CASES:
        writes(2, case)(predictions.out)
        predictions.refuses(f"{case} {CHANGED}", writes(3, *CASES))
        (predictions.out / case).unlink()
        if case in there:
            (predictions.out / case).write_bytes(there[case])
    if moved:
        predictions.predict(is_killed)  # what is whole is not predicted again
        writes(1, CASES[0])(predictions.out.parent)
    else:
        predictions.train_anew()
        with pytest.raises(KeyboardInterrupt):  # nor is what it was forgotten after another
            predictions.predict(writes(3, *CASES), is_interrupted)
        assert predictions.masks() == there
        predictions.predict(writes(3, *CASES))
        writes(3, CASES[0])(predictions.out.parent)
    assert set(predictions.masks().values()) == {(predictions.out.parent / CASES[0]).read_bytes()}
    assert predictions.record()["finished"]
    assert "replaced" not in predictions.record()
    predictions.predict(is_interrupted)  # it is finished
    assert {path.name for path in predictions.out.iterdir()} - {"plans.json"} == {
        *CASES,
        first_run.PREDICTED_BY,
        first_run.PREDICTION_LOCK,
    }


@pytest.mark.parametrize("finished", [False, True])
def test_what_an_earlier_version_left_is_replaced_if_it_is_as_its_record_says(finished, predictions):
    record = predictions.out / first_run.PREDICTED_BY
    content = {**predictions.record(), "finished": finished}
    predictions.train_anew()
    record.write_text(json.dumps({**content, "masks": {CASES[0]: content["masks"][CASES[0]]}}))
    predictions.refuses(f"{CASES[1]} {NOT_LISTED}", writes(1, *CASES))
    (predictions.out / CASES[1]).unlink()
    predictions.predict(writes(1, *CASES))
    assert (predictions.record()["finished"], list(predictions.record()["masks"])) == (True, [*CASES])
    del content["masks"]
    record.write_text(json.dumps(content))
    predictions.weights.write_text("and again")
    predictions.refuses(f"{CASES[0]} {NOT_LISTED}", writes(1, *CASES))


def test_a_data_set_that_changed_since_it_was_preprocessed_is_not_trained_on(folders, capsys):
    small_dataset.copy_into(folders)
    raw, kept = (folder / small_dataset.NAME for folder in (folders.raw, folders.preprocessed))
    words = (998, "2d", "--device", "cpu")
    dry_run(capsys, *words)  # nnU-Net says which reader it takes once in a process
    before = dry_run(capsys, *words)
    label = raw / "labelsTr" / "ball_2.nii.gz"
    as_it_was = label.read_bytes()
    sitk.WriteImage(sitk.ReadImage(label) * 0, label)
    os.utime(label, (1, 1))  # as an archive unpacks it
    said = refused(capsys, *words)
    folders_of_all = ", ".join(
        str(kept / name) for name in ("nnUNetPlans_2d", "nnUNetPlans_3d_fullres", "gt_segmentations")
    )
    assert (
        f"1 label map(s) are not what was preprocessed, the first is {label}: remove {folders_of_all}, and they" in said
    )
    fold = folders.results / small_dataset.NAME / f"{TRAINER}__nnUNetPlans__2d" / "fold_0"
    (fold / "validation").mkdir(parents=True)
    for name in ("checkpoint_final.pth", "validation/summary.json"):
        (fold / name).write_text("{}")
    assert "ATTENTION: 1 label map(s) are not what was preprocessed" in dry_run(capsys, *words)
    shutil.rmtree(fold)
    label.write_bytes(as_it_was)
    assert dry_run(capsys, *words) == before, "a copy may have any time"
    label.write_bytes(gzip.compress(gzip.decompress(as_it_was), 1))
    assert label.read_bytes() != as_it_was
    assert dry_run(capsys, *words) == before, "and be compressed otherwise"
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "CT"}}))
    said = refused(capsys, *words)
    assert f"dataset.json has other channel_names than {kept / 'dataset.json'}" in said
    assert f": remove {kept}, and plan and preprocess anew" in said
    (kept / "splits_final.json").write_text(json.dumps([{"train": ["ball_0", "ball_1"], "val": ["ball_2"]}]))
    said = refused(capsys, *words)
    assert f": remove all but splits_final.json, which holds the folds, from {kept}, and plan" in said
    for path in kept.iterdir():
        if path.name != "splits_final.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "nnUNetv2_plan_and_preprocess" in dry_run(capsys, *words)


def test_models_that_were_trained_otherwise_are_not_taken_for_what_is_asked_for(folders, capsys):
    plans_file = small_dataset.copy_into(folders)
    model = folders.results / small_dataset.NAME / f"{TRAINER}__nnUNetPlans__2d"
    (model / "fold_0").mkdir(parents=True)
    shutil.copy(plans_file, model / "plans.json")
    (model / "fold_0" / "checkpoint_final.pth").touch()
    dry_run(capsys, 998, "2d", "--device", "cpu")
    content = json.loads(plans_file.read_text())
    content["configurations"]["2d"]["batch_size"] += 1
    plans_file.write_text(json.dumps(content))
    said = dry_run(capsys, 998, "2d", "--device", "cpu")
    assert f"ATTENTION: {model} was trained otherwise, its plans differ from nnUNetPlans in batch_size; what is" in said


def test_what_another_process_predicts_into_a_folder_is_waited_for_and_stays(predicted, capfd):
    out = predicted / "out"
    record, lock = out / first_run.PREDICTED_BY, out / first_run.PREDICTION_LOCK
    finished = record.read_text()
    unfinished = finished.replace('"finished": true', '"finished": false')
    new = first_run.NewScans(predicted / "new", out)

    def meanwhile(record_of_the_other: str) -> list[object]:
        found: list[object] = []

        def run() -> None:
            try:
                found.extend(first_run.FirstRun(request)._prediction(TRAINER, dry_run=False))
            except UserError as error:
                found.append(str(error))

        record.write_text(unfinished)
        with held_elsewhere(lock, "predict") as other:
            thread = threading.Thread(target=run)
            begin_to_wait(thread, other.pid, capfd)
            record.write_text(record_of_the_other)
            other.communicate("\n")
            thread.join()
        return found

    request = first_run.Request("998", "2d", (TRAINER,), device="cpu", new=new)
    (step,) = meanwhile(finished)
    assert step.finished is not None
    (step,) = meanwhile(unfinished)
    assert step.command[0] == "nnUNetv2_predict", "the other was ended before its own end"
    (said,) = meanwhile(finished.replace(TRAINER, "nnUNetTrainerNoSSM"))
    assert "holds something else than predictions of this run; model: nnUNetTrainerNoSSM" in said
    # Nor does a claim alone make the folder another's.
    record.unlink()
    for path in out.iterdir():
        if path.name != lock.name:
            path.unlink()
    assert next(first_run.FirstRun(request)._prediction(TRAINER, dry_run=False)).command[0] == "nnUNetv2_predict"


def test_references_that_were_corrected_or_are_anothers_are_scored_anew(predicted, folders):
    def scored(references: Path) -> bool:
        """Whether a run scores; what that would leave is written."""
        new = first_run.NewScans(predicted / "new", predicted / "out", references)
        run = first_run.FirstRun(first_run.Request("998", "2d", (TRAINER,), device="cpu", new=new))
        found = []
        for step in run._prediction(TRAINER, dry_run=False):
            if step.title.startswith("score") and step.finished is None:
                (predicted / "out" / "scores").mkdir(exist_ok=True)
                (predicted / "out" / "scores" / "scores.json").write_text("{}")
                found.append(step.command[3])
        assert found in ([], [str(references)])
        return bool(found)

    readers = [predicted / name for name in ("one reader", "another")]
    for folder in readers:
        folder.mkdir()
        for case in ("ball_0.nii.gz", "ball_1.nii.gz"):
            shutil.copy(folders.raw / small_dataset.NAME / "labelsTr" / case, folder)
            os.utime(folder / case, (1, 1))
    one, other = readers
    assert scored(one)
    assert not scored(one)
    assert not scored(other), "it is a copy"
    corrected = sitk.ReadImage(other / "ball_0.nii.gz") * 0
    sitk.WriteImage(corrected, other / "ball_0.nii.gz")
    os.utime(other / "ball_0.nii.gz", (1, 1))
    assert scored(other)
    assert not scored(other)
    assert scored(one)
    (predicted / "out" / first_run.SCORED_AGAINST).write_text("half a fi")
    assert scored(one)


def test_predictions_of_other_data_are_refused_wherever_they_lie(predicted, folders, monkeypatch, capsys):
    moved = move(predicted, monkeypatch)
    new, out = moved / "new", moved / "out"
    words = (998, "2d", "--device", "cpu", "--predict", new, out)
    assert "; folds: ['0'], not ['1']: name a new or an empty folder" in refused(capsys, *words, "--fold", 1)
    assert f"; model: {TRAINER}__nnUNetPlans__2d, not " in refused(capsys, *words, "--quick")
    shutil.copy(new / "ball_1_0000.nii.gz", new / "ball_0_0000.nii.gz")
    assert f"; scan ball_0_0000.nii.gz is another one in {new}: name a new" in refused(capsys, *words)
    (new / "ball_0_0000.nii.gz").unlink()
    assert f"; scan ball_0_0000.nii.gz is not in {new}: name a new" in refused(capsys, *words)
    assert len(segmentations(out)) == 2


def test_a_record_without_digests_is_told_by_the_folder_of_its_scans(predicted, capsys):
    record = predicted / "out" / first_run.PREDICTED_BY
    content = json.loads(record.read_text())
    record.write_text(json.dumps({k: v for k, v in content.items() if k not in ("scans", "weights")}))
    words = (998, "2d", "--device", "cpu", "--predict")
    assert PREDICTED in dry_run(capsys, *words, predicted / "new", predicted / "out")
    shutil.copytree(predicted / "new", predicted / "other")
    said = refused(capsys, *words, predicted / "other", predicted / "out")
    assert f"; images: {predicted / 'new'}, not {predicted / 'other'}: name a new" in said


def test_a_folder_that_holds_something_else_is_not_predicted_into(folders, tmp_path, capsys):
    new, out = images(folders, tmp_path / "new"), tmp_path / "out"
    out.mkdir()
    (out / "ball_0.nii.gz").write_text("a colleague's")
    assert f"{out} holds something else" in refused(capsys, 998, "2d", "--predict", new, out)
    assert f"{new} holds something else" in refused(capsys, 998, "2d", "--predict", new, new)
    assert (out / "ball_0.nii.gz").read_text() == "a colleague's"
    wanted = {"images": str(tmp_path / "old"), "model": f"{TRAINER}__nnUNetPlans__2d", "finished": True}
    (out / first_run.PREDICTED_BY).write_text(json.dumps(wanted))
    assert f"of this run; images: {tmp_path / 'old'}, not {new}: name a new" in refused(
        capsys, 998, "2d", "--predict", new, out
    )


# How commands end


def test_what_a_command_prints_fits_the_terminal_that_shows_it(tmp_path, monkeypatch, capfdbinary):
    program = "from nnunet_logvmamba.cli import terminal; terminal.show('word ' * 40)"
    widths = []
    for on_terminal in (False, True):
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", "80")
            patch.setattr(sys.stdout, "isatty", lambda shown=on_terminal: shown, raising=False)
            first_run.execute(step(program), tmp_path, terminal.relayed())
        widths.append(max(map(len, capfdbinary.readouterr().out.splitlines())))
    assert widths[0] >= 199
    assert 70 < widths[1] <= 80


def step(code: str) -> first_run.Step:
    return first_run.Step("do it", (Path(sys.executable).name, "-c", code))


def test_a_command_can_be_typed_as_it_is_shown_whatever_its_paths(on_terminal, capsys):
    variables = {"nnUNet_results": "/data/my results", "nnUNet_n_proc_DA": "2"}
    words = ("nnUNetv2_predict", "-i", "/data/New  Scans (2024)/it's here", "-o", "/x/" + "a long name " * 9)
    typed = first_run.Step("predict", words, environment=variables).typed
    for columns in (None, 60):
        on_terminal(columns)
        terminal.show_command(typed)
        shown = capsys.readouterr().out
        program = "import json, os, sys; print(json.dumps([dict(os.environ), sys.argv[1:]]))"
        there = shown.replace("nnUNetv2_predict", f"{sys.executable} -c '{program}' nnUNetv2_predict")
        done = subprocess.run(["sh", "-c", there], capture_output=True, text=True, check=True)
        environment, found = json.loads(done.stdout)
        assert tuple(found) == words
        assert variables.items() <= environment.items()


@pytest.fixture
def on_terminal(monkeypatch):
    """Have output shown on a terminal of so many columns, or on none."""
    return lambda columns: monkeypatch.setattr(terminal, "width", lambda: columns)


def test_what_a_command_prints_is_shown_and_kept(tmp_path, capfdbinary):
    first_run.execute(step("import sys; print('out'); print('err', file=sys.stderr)"), tmp_path / "logs")
    first_run.execute(step("print('again')"), tmp_path / "logs")
    assert sorted(capfdbinary.readouterr().out.split()) == [b"again", b"err", b"out"]
    log = (tmp_path / "logs" / "do_it.log").read_text()
    assert {"out", "err", "again"} <= set(log.splitlines())
    assert log.count("\n$ ") == 2


def test_a_command_that_fails_is_named_with_its_log(tmp_path):
    with pytest.raises(UserError, match="the step 'do it' ended with exit code 3") as caught:
        first_run.execute(step("print('why'); raise SystemExit(3)"), tmp_path)
    assert str(tmp_path / "do_it.log") in str(caught.value)
    assert "why" in (tmp_path / "do_it.log").read_text()


def begin(command: list[str], **options) -> subprocess.Popen:
    """Start a command that heeds Ctrl-C and a closed terminal, also where these tests run in the background."""

    def heed() -> None:
        for which in (signal.SIGINT, signal.SIGHUP):
            signal.signal(which, signal.SIG_DFL)

    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed, **options
    )


WITH_A_WORKER = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print("worker", worker.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_the_command_and_its_workers(tmp_path, which):
    """As ``logvmamba`` itself is interrupted, by main, which is given a step instead of a whole run."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from nnunet_logvmamba import cli\n"
        "from nnunet_logvmamba.plugin import first_run\n"
        "from nnunet_logvmamba.cli import doctor\n"
        f"step = first_run.Step('wait', (Path(sys.executable).name, '-c', {WITH_A_WORKER!r}))\n"
        f"doctor.run = lambda args: first_run.execute(step, Path({str(tmp_path)!r}))\n"
        "sys.exit(cli.main(['doctor']))"
    )
    process = begin([sys.executable, "-c", code])
    words = process.stdout.readline().split()
    assert words[0] == "worker"
    process.send_signal(which)
    assert process.wait(timeout=60) == 130
    deadline = time.monotonic() + 10
    while is_alive(int(words[1])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(words[1]))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# The real commands


def environment(folders: NnunetFolders) -> dict[str, str]:
    return {**os.environ, **folders.environment, "nnUNet_compile": "f"}


def in_training(fold: Path) -> bool:
    return any("Epoch 2" in log.read_text() for log in fold.glob("training_log_*.txt"))


@pytest.mark.slow
def test_a_whole_run_is_interrupted_continued_and_then_has_nothing_left_to_do(folders, tmp_path, run_command):
    new, out = images(folders, tmp_path / "new"), tmp_path / "out"
    truths = folders.raw / small_dataset.NAME / "labelsTr"
    words = ["run", 998, "2d", "--quick", "--device", "cpu", "--predict", new, out, "--references", truths]
    fold = folders.results / small_dataset.NAME / f"{TRAINER}__nnUNetPlans__2d_quick" / "fold_0"
    command = [str(BIN / "logvmamba"), *map(str, words)]
    process = begin(command, env=environment(folders))
    deadline = time.monotonic() + 900
    while not in_training(fold):
        assert process.poll() is None, process.stdout.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert not (fold / "checkpoint_final.pth").exists()

    continued = run_command(["logvmamba", *words], **folders.environment)
    assert "# plan and preprocess: skipped" in continued.stdout
    assert f"$ nnUNetv2_train 998 2d_quick 0 -tr {TRAINER} -device cpu --c\n" in continued.stdout
    assert [path.name for path in segmentations(out)] == ["ball_0.nii.gz", "ball_1.nii.gz"]
    assert not (out / first_run.UNFINISHED).exists()
    for written in (
        fold / "report.html",
        fold / "scores" / "scores.csv",
        out / "scores" / "scores.json",
        folders.results / small_dataset.NAME / "run_logs" / f"train_{TRAINER}_fold_0.log",
    ):
        assert written.is_file(), written
        assert str(written.parent) in continued.stdout
    dice = json.loads((out / "scores" / "scores.json").read_text())["mean"]
    assert dice["shell"]["dice"]["mean"] > 0.5

    again = run_command(["logvmamba", *words], **folders.environment)
    assert commands_in(again.stdout) == []
    assert again.stdout.count("skipped") == 7

    other = run_command(
        ["logvmamba", "run", 998, "3d_fullres", "--predict", new, out], check=False, **folders.environment
    )
    assert other.returncode == 2
    assert "holds something else" in other.stderr


@pytest.mark.slow
def test_every_printed_command_can_be_typed(own_trained: Project, tmp_path):
    """Those of a model that is trained already, in a shell, from another folder."""
    done = own_trained.run("logvmamba", "run", own_trained.number, "3d_tiny", "--dry-run")
    assert f"# train {TRAINER} fold 0: skipped" in done.stdout
    found = commands_in(done.stdout)
    assert [command.split()[:2] for command in found] == [["logvmamba", "evaluate"], ["logvmamba", "report"]]
    env = {**environment(own_trained.folders), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    for command in found:
        subprocess.run(command, shell=True, cwd=tmp_path, env=env, check=True)
    assert commands_in(own_trained.run("logvmamba", "run", own_trained.number, "3d_tiny", "--dry-run").stdout) == []


@pytest.mark.slow
def test_a_step_that_fails_is_named_and_no_other_is_run(folders, run_command):
    import SimpleITK as sitk

    label = folders.raw / small_dataset.NAME / "labelsTr" / "ball_2.nii.gz"
    image = sitk.ReadImage(str(label))
    image[0, 0, 0] = 7
    sitk.WriteImage(image, str(label))
    done = run_command(["logvmamba", "run", 998, "2d", "--device", "cpu"], check=False, **folders.environment)
    assert done.returncode == 2
    assert len(commands_in(done.stdout)) == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("logvmamba: the step 'plan and preprocess' ended with exit code 1")
    log = folders.results / small_dataset.NAME / "run_logs" / "plan_and_preprocess.log"
    assert str(log) in last
    assert "unexpected labels" in log.read_text()
