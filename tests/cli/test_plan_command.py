"""``logvmamba plan``: plans for a card of a given size, and the stock commands that take them."""

from __future__ import annotations

import json
import re

import pytest
import small_dataset
from small_project import PLANS, Project

from nnunet_logvmamba.cli import main

CALL = ["plan", "-d", small_dataset.NUMBER, "--gpu-memory", "4"]
DEFAULT = "nnUNetLoGVMambaPlans_4G"


@pytest.fixture
def project(nnunet_folders) -> Project:
    """A data set of which nnU-Net has taken the fingerprint."""
    small_dataset.write_raw(nnunet_folders.raw)
    small_dataset.copy_into(nnunet_folders)
    return Project(nnunet_folders, small_dataset.NAME)


def test_the_plans_are_written_beside_nnunets_and_the_commands_printed(project, capsys):
    before = project.plans_file.read_bytes()
    assert main(CALL) == 0
    said = capsys.readouterr().out
    file = project.plans_file.with_name(f"{DEFAULT}.json")
    assert f"{file}: wrote 2d, 3d_fullres for LoGVMambaUNet on a card of 4 GiB" in said
    assert project.plans_file.read_bytes() == before
    content = json.loads(file.read_text())
    for name, configuration in content["configurations"].items():
        (row,) = re.findall(rf"^{name} .*$", said, re.M)
        patch, batch, peak, *parts = row.split()[1:]
        assert patch == "x".join(map(str, configuration["patch_size"]))
        assert int(batch) == configuration["batch_size"]
        assert float(peak) == pytest.approx(sum(map(float, parts)), abs=0.03)
        assert f"nnUNetv2_train 998 {name} 0 -tr nnUNetTrainerLoGVMamba -p {DEFAULT}" in said
    assert "nnUNetv2_preprocess" not in said, "nnU-Net's own data are there"
    assert "2.61 GiB" in said


def test_too_few_cases_for_folds_are_trained_all_at_once(project, capsys):
    raw = project.folders.raw / small_dataset.NAME
    for file in raw.glob("*Tr/ball_4*"):
        file.unlink()
    described = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**described, "numTraining": 4}))
    assert main(CALL) == 0
    assert "nnUNetv2_train 998 2d all -tr" in capsys.readouterr().out


def test_a_preprocessing_that_was_interrupted_is_begun_again(project, capsys):
    for file in (project.plans_file.parent / f"{PLANS}_2d").iterdir():
        file.unlink()
    assert main(CALL) == 0
    assert f"nnUNetv2_preprocess -d 998 -plans_name {DEFAULT} -c 2d\n" in capsys.readouterr().out


def test_plans_that_are_there_are_replaced_only_when_told_to(project, capsys):
    assert main(CALL) == 0
    file = project.plans_file.with_name(f"{DEFAULT}.json")
    before = file.read_bytes()
    again = [*CALL, "--set", "family=no_ssm"]
    assert main(again) == 2
    assert "exists already: choose another --name, or replace it with --overwrite" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert main([*again, "--overwrite"]) == 0
    full = json.loads(file.read_text())["configurations"]["3d_fullres"]
    assert full["architecture"]["arch_kwargs"]["family"] == "no_ssm"
    file.write_bytes(before[:500])
    capsys.readouterr()
    assert main([*again, "--overwrite"]) == 2
    assert f"{file} " in capsys.readouterr().err
    assert file.read_bytes() == before[:500]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "famliy=no_ssm"], "unknown knob 'famliy'"),
        (["--set", "family=ssm"], "unknown family 'ssm'"),
        (["--network", "SegMamba", "--gpu-memory", "2"], "SegMamba does not fit a card of 2 GiB"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence_and_writes_nothing(project, capsys, options, said):
    files = set(project.plans_file.parent.rglob("*"))
    assert main([*CALL, *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert set(project.plans_file.parent.rglob("*")) == files


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"spacings": [[1, 1]]}'])
def test_a_damaged_fingerprint_is_named(project, capsys, content):
    file = project.plans_file.with_name("dataset_fingerprint.json")
    file.write_text(content)
    assert main(CALL) == 2
    assert re.fullmatch(rf"logvmamba: {re.escape(str(file))} .*: remove it, .*\n", capsys.readouterr().err)


@pytest.mark.slow
def test_stock_nnunet_preprocesses_and_trains_with_them(nnunet_folders):
    small_dataset.write_raw(nnunet_folders.raw)
    project = Project(nnunet_folders, small_dataset.NAME)
    project.run("logvmamba", *CALL, "--set", "checkpointing=true")
    command = ("nnUNetv2_preprocess", "-d", project.number, "-plans_name", DEFAULT, "-c", "3d_fullres", "-np", 1)
    project.run(*command)
    short = "num_epochs=1", "num_iterations_per_epoch=1", "num_val_iterations_per_epoch=1"
    options = ("-p", DEFAULT, "--name", "short", "--train", *short)
    project.run("logvmamba", "plans", "-d", project.number, "-c", "3d_fullres", *options)
    assert project.train("short", plans=DEFAULT).epochs == 1
    assert not (project.plans_file.parent / f"{PLANS}.json").exists()
