"""What somebody else may have made is read as data; a file that is more than that is named and never run."""

import gc
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import small_dataset
import small_model
import torch
from nnunetv2.postprocessing.remove_connected_components import (
    remove_all_but_largest_component_from_segmentation,
)
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.run.run_training import run_training
from small_project import TRAINER

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.errors import Refused, UserError
from nnunet_logvmamba.plugin import trainers, trust
from nnunet_logvmamba.plugin.checkpoints import logging_of_checkpoints, read_checkpoint

NOTHING_BUT = "whole, with finite weights, and nothing in them but weights and settings"


class MakesAFolder:
    """Whoever unpickles it makes a folder, by which a test sees that it was run."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def marker(tmp_path):
    """A folder that nobody may have made by the end of the test."""
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists()


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory) -> Path:
    return small_model.write_model(tmp_path_factory.mktemp("model"), 2, [16, 16])


@pytest.fixture
def model(whole_model, tmp_path) -> Path:
    return shutil.copytree(whole_model, tmp_path / "results" / "Dataset004_Hippocampus" / whole_model.name)


@pytest.fixture
def checkpoint(model) -> Path:
    return model / "fold_0" / "checkpoint_final.pth"


def add(path: Path, **content: object) -> None:
    torch.save({**torch.load(path, weights_only=False), **content}, path)


@pytest.fixture
def said(capsys):
    """Run ``logvmamba check`` on a model and give its exit code and what it said."""

    def said(model: Path) -> tuple[int, str]:
        code = main(["check", str(model)])
        printed = capsys.readouterr()
        return code, " ".join((printed.err if code else printed.out).split())

    return said


# What is allowed


@pytest.mark.parametrize("code", "?bBhHiIlLqQefd")
def test_numbers_of_numpy_are_data_under_the_names_of_old_and_new_numpy(code, tmp_path):
    number = np.dtype(code).type(1)
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"logging": {"train_losses": [number]}}, path)
    other = tmp_path / "of_another_numpy.pth"
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    with zipfile.ZipFile(path) as read, zipfile.ZipFile(other, "w") as written:
        for name in read.namelist():
            content = read.read(name)
            swapped = content.replace(new, old) if new in content else content.replace(old, new)
            assert name.endswith("data.pkl") == (swapped != content)
            written.writestr(name, swapped)
    for file in (path, other):
        assert read_checkpoint(file)["logging"]["train_losses"] == [number]


def test_what_a_training_saves_is_data(model, said):
    assert said(model) == (0, f"{model}: 1 checkpoint(s), {NOTHING_BUT}")
    assert said(model / "fold_0" / "checkpoint_final.pth")[0] == 0


@pytest.mark.parametrize("kind", ["a call", "a network", "an array", "a path"])
def test_anything_else_is_named_and_not_run(kind, checkpoint, marker, said):
    more, name = {
        "a call": (MakesAFolder(marker), "mkdir"),
        "a network": (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        "an array": (np.zeros(3), "numpy.ndarray"),
        "a path": (Path(), "pathlib"),
    }[kind]
    add(checkpoint, more=more)
    for refuse in (lambda: read_checkpoint(checkpoint), lambda: trust.read_as_data(checkpoint)):
        with pytest.raises(UserError, match="holds more than weights and settings") as caught:
            refuse()
        assert name in str(caught.value)
        assert str(checkpoint) in str(caught.value)
        assert "\n" not in str(caught.value)
    code, sentence = said(checkpoint.parents[1])
    assert (code, name in sentence, str(checkpoint) in sentence) == (2, True, True)
    assert logging_of_checkpoints(checkpoint.parent) is None  # what logvmamba report reads


@pytest.mark.parametrize("saved", [{"_use_new_zipfile_serialization": False}, None])
def test_a_pickle_that_is_no_zip_file_is_refused(saved, tmp_path, marker, said):
    path = tmp_path / "checkpoint_final.pth"
    if saved is None:
        path.write_bytes(pickle.dumps(MakesAFolder(marker)))
    else:
        torch.save({"more": MakesAFolder(marker)}, path, **saved)
    code, sentence = said(path)
    assert code == 2
    assert sentence.startswith(f"logvmamba: {path} is damaged (it does not begin as a file of PyTorch does)")


def test_while_data_alone_is_read_no_wish_of_the_caller_changes_that(checkpoint, marker, monkeypatch):
    gc.collect()  # trainers of other tests that were set up and never trained still read so
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    before = dict(os.environ)
    with trust.data_only():
        assert torch.load(checkpoint, weights_only=False)["_best_ema"] == 0.5
        add(checkpoint)
    torch.save({"more": MakesAFolder(marker)}, checkpoint)
    with trust.data_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint, weights_only=False)
    assert dict(os.environ) == before


# Trainings


@pytest.fixture
def fold(nnunet_folders) -> Path:
    """The data set is there, and its configuration so short that a training of it takes seconds."""
    plans_file = small_dataset.copy_into(nnunet_folders)
    content = json.loads(plans_file.read_text())
    configuration = content["configurations"]["3d_fullres"]
    configuration["patch_size"] = [16, 16, 16]
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [8, 8, 8]
    configuration["logvmamba"] = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    plans_file.write_text(json.dumps(content))
    return nnunet_folders.results / small_dataset.NAME / "nnUNetTrainerStockNetwork__nnUNetPlans__3d_fullres" / "fold_0"


def train(**options) -> None:
    words = small_dataset.NUMBER, "3d_fullres", 0, "nnUNetTrainerStockNetwork"
    run_training(*words, device=torch.device("cpu"), **options)


def make_trainer(fold: Path) -> trainers.RecipeTrainer:
    folder = fold.parents[3] / "preprocessed" / small_dataset.NAME
    plans = {**json.loads((folder / "nnUNetPlans.json").read_text()), "continue_training": False}
    dataset = json.loads((folder / "dataset.json").read_text())
    return trainers.nnUNetTrainerStockNetwork(plans, "3d_fullres", 0, dataset, torch.device("cpu"))


@pytest.mark.parametrize("options", [{"continue_training": True}, {"only_run_validation": True}])
@pytest.mark.parametrize("trainer_name", ["nnUNetTrainerStockNetwork", "nnUNetTrainerSomebodyElse"])
def test_a_training_does_not_go_on_from_more_than_data(options, trainer_name, fold, marker):
    fold.mkdir(parents=True)
    torch.save({"trainer_name": trainer_name, "more": MakesAFolder(marker)}, fold / "checkpoint_final.pth")
    with pytest.raises(Refused, match="checkpoint_final.pth holds more than weights and settings .*mkdir"):
        train(**options)


def test_pretrained_weights_that_are_more_than_data_are_refused_before_a_folder_is_made(
    fold, tmp_path, marker, monkeypatch
):
    path = tmp_path / "somebodys.pth"
    torch.save({"network_weights": {}, "more": MakesAFolder(marker)}, path)
    for words in (["-pretrained_weights", str(path)], [f"-pretrained_weights={path}"], ["-pretrained", str(path)]):
        monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "998", "3d_fullres", "0", *words])
        with pytest.raises(Refused, match="somebodys.pth holds more than weights and settings .*mkdir"):
            train(pretrained_weights=str(path))
        assert not fold.parent.exists()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Refused, match=r"somebodys.pth is damaged \(its end is missing\): copy it anew\.$"):
        train(pretrained_weights=str(path))


def test_nor_are_they_run_where_no_command_line_names_them(fold, tmp_path, marker):
    path = tmp_path / "somebodys.pth"
    torch.save({"network_weights": {}, "more": MakesAFolder(marker)}, path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        train(pretrained_weights=str(path))


def test_pretrained_weights_of_nnunet_are_taken_and_the_process_reads_as_before_once_it_trains(fold, tmp_path):
    gc.collect()
    before = dict(os.environ)
    source = make_trainer(fold)
    source.initialize()
    path = tmp_path / "checkpoint_final.pth"
    source._best_ema = np.float32(0.5)
    torch.nn.init.constant_(next(source.network.parameters()), 0.25)
    source.save_checkpoint(str(path))
    tuned = make_trainer(fold)
    tuned.initialize()
    load_pretrained_weights(tuned.network, str(path))
    assert (next(tuned.network.parameters()) == 0.25).all()
    source.run_training()
    tuned.run_training()
    assert dict(os.environ) == before
    torch.save(OrderedDict(more=Path()), path)
    assert torch.load(path, weights_only=False)


# Models that were shared


def zipped(model: Path, target: Path) -> Path:
    """The form of ``nnUNetv2_export_model_to_zip``."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(model.rglob("*")):
            archive.write(path, path.relative_to(model.parents[1]))
    return target


def test_an_exported_file_is_read_as_a_folder_is(model, checkpoint, tmp_path, marker, said):
    archive = zipped(model, tmp_path / "model.zip")
    assert said(archive) == (0, f"{archive}: 1 checkpoint(s), {NOTHING_BUT}")
    add(checkpoint, more=MakesAFolder(marker))
    code, sentence = said(zipped(model, archive))
    assert code == 2
    assert f"{archive}: {checkpoint.relative_to(model.parents[1])} holds more than weights and settings" in sentence
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    assert said(archive) == (2, f"logvmamba: {archive} is damaged (its end is missing): copy it anew")


def test_the_pickles_of_nnunet_are_told_from_others(model, marker, said):
    folder = model / "crossval_results_folds_0"
    folder.mkdir()
    steps = [remove_all_but_largest_component_from_segmentation], [{"labels_or_regions": [1, 2]}]
    (folder / "postprocessing.pkl").write_bytes(pickle.dumps(steps))
    properties = {"spacing": [1.0, 1.0], "sitk_stuff": {"origin": np.zeros(3)}, "shape": np.int64(3)}
    (model / "fold_0" / "case.pkl").write_bytes(pickle.dumps(properties))
    assert said(model)[0] == 0
    (folder / "postprocessing.pkl").write_bytes(pickle.dumps(([MakesAFolder(marker)], [{}])))
    code, sentence = said(model)
    assert code == 2
    assert f"{folder / 'postprocessing.pkl'} names what is neither a weight nor a setting" in sentence
    assert "mkdir" in sentence
    (folder / "postprocessing.pkl").write_bytes(b"")
    assert said(model) == (
        2,
        f"logvmamba: {folder / 'postprocessing.pkl'} cannot be read (EOFError): copy it anew",
    )


@pytest.mark.parametrize("name", ["os.mkdir", "torch.nn.init.constant_", "torch.nn.NoSuchLayer"])
@pytest.mark.parametrize("place", ["class", "argument"])
def test_plans_that_have_something_else_built_than_a_network_are_named(place, name, model, said):
    plans = json.loads((model / "plans.json").read_text())
    architecture = plans["configurations"]["small"]["architecture"]
    if place == "class":
        architecture["network_class_name"] = name
    else:
        architecture["arch_kwargs"]["norm_op"] = name
    (model / "plans.json").write_text(json.dumps(plans))
    code, sentence = said(model)
    assert code == 2
    assert f"{model / 'plans.json'} names what is neither a weight nor a setting ({name})" in sentence


def test_a_folder_without_checkpoints_and_one_that_is_not_there(tmp_path, said):
    code, sentence = said(tmp_path)
    assert (code, f"{tmp_path} holds no checkpoint: name a trained model, its zip file, or a raw" in sentence) == (
        2,
        True,
    )
    code, sentence = said(tmp_path / "nowhere")
    assert (code, f"{tmp_path / 'nowhere'} is not there" in sentence) == (2, True)


# nnU-Net's own commands


@pytest.mark.slow
def test_prediction_with_damaged_or_foreign_files_by_the_stock_command(own_trained, new_images, tmp_path, marker):
    """What of it reaches us, and what ``logvmamba check`` says beforehand."""
    model, target = own_trained.model("3d_tiny"), tmp_path / "predicted"
    path = model / "fold_0" / "checkpoint_final.pth"
    whole = path.read_bytes()
    command = ("nnUNetv2_predict_from_modelfolder", "-i", new_images, "-o", target, "-m", model, "-f", 0)
    command += ("-device", "cpu", "-npp", 1, "-nps", 1, "--disable_tta")

    own_trained.run(*command, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1")  # what we save needs no code to be read
    assert len(list(target.glob("*.nii.gz"))) == 2
    shutil.rmtree(target)

    small_model.flip(path)
    done = own_trained.run(*command, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith(
            "The weights in fold_0/checkpoint_final.pth are not those that its training saved, so the file is damaged: "
        )
    )
    for damaged in (whole[: len(whole) // 2], b""):
        path.write_bytes(damaged)
        done = own_trained.run(*command, check=False)  # nnU-Net's own words, since none of our code is there yet
        assert done.returncode != 0
    assert not list(target.glob("*.nii.gz"))

    torch.save({"more": MakesAFolder(marker)}, path)
    done = own_trained.run(*command, check=False, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1")
    assert done.returncode != 0
    for options in ((new_images,), ()):
        done = own_trained.run("logvmamba", "check", *options, model, check=False)
        assert done.returncode == 2
        assert f"{path} holds more than weights and settings" in " ".join(done.stderr.split())
    done = own_trained.run("nnUNetv2_train", 501, "3d_tiny", 0, "-tr", TRAINER, "-device", "cpu", "--c", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{path} holds more than weights and settings" in done.stderr
    path.write_bytes(whole)
    assert "whole, with finite weights, and nothing in them but weights" in " ".join(
        own_trained.run("logvmamba", "check", model).stdout.split()
    )
