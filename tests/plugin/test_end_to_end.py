"""Stock nnU-Net, command by command, with our network: what a user does, on phantoms of 24 voxels."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import small_dataset
import torch
from commands import BIN, NnunetFolders
from small_project import PLANS, PREDICT, TRAIN, TRAINER, Project, read_checkpoint, segmentations, voxels

REGIONS = ["(1, 2, 3)", "(2, 3)", "(3,)"]
WHOLE_TUMOUR = REGIONS[0]
NEW_CASES = ["BraTS20_Training_101.nii.gz", "BraTS20_Training_102.nii.gz"]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def log_of(fold: Path) -> str:
    """The newest training log, empty if there is none yet."""
    logs = sorted(fold.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime_ns)
    return logs[-1].read_text() if logs else ""


def epochs_begun(fold: Path) -> list[int]:
    """Epochs that the newest log opens."""
    return [int(number) for number in re.findall(r": Epoch (\d+)", log_of(fold))]


def last_line(done: subprocess.CompletedProcess) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


# Train, predict, evaluate


def test_the_checkpoint_names_our_trainer_and_holds_every_epoch(trained):
    fold = trained.fold("3d_tiny")
    checkpoint = fold.checkpoint
    assert checkpoint["trainer_name"] == TRAINER
    assert checkpoint["init_args"]["configuration"] == "3d_tiny"
    assert (checkpoint["current_epoch"], fold.epochs) == (4, 4)
    assert np.isfinite(checkpoint["logging"]["train_losses"]).all()
    assert any(key.endswith("A_log") for key in checkpoint["network_weights"])
    assert (fold.path / "progress.png").is_file()


def test_regions_are_learned_and_scored_in_validation(trained):
    fold = trained.fold("3d_tiny")
    assert list(fold.dice) == REGIONS
    assert fold.dice[WHOLE_TUMOUR] > 0.5
    assert fold.checkpoint["network_weights"]["decoder.seg_layers.0.weight"].shape[0] == len(REGIONS)


def test_new_cases_are_predicted_and_evaluated_as_regions(trained, new_images, predicted):
    written = segmentations(predicted)
    assert [path.name for path in written] == NEW_CASES
    for path in written:
        assert set(np.unique(voxels(path))) <= {0, 1, 2, 3}
        assert voxels(path).shape == voxels(new_images.with_name("labelsTr") / path.name).shape
    scores = trained.evaluate(new_images.with_name("labelsTr"), predicted)
    assert list(scores) == REGIONS
    assert scores[WHOLE_TUMOUR] > 0.5


def test_two_dimensional_slices_are_trained_and_predicted(trained_2d, new_images, tmp_path):
    fold = trained_2d.fold("2d_tiny")
    assert fold.epochs == 4
    weights = fold.checkpoint["network_weights"]
    assert {value.ndim for key, value in weights.items() if key.endswith("seg_layers.0.weight")} == {4}
    assert fold.dice[WHOLE_TUMOUR] > 0.4
    # Without processes for it; the prediction in 3D has them.
    written = trained_2d.predict(new_images, tmp_path / "predicted", "2d_tiny", "-npp", 0, "-nps", 0)
    assert [path.name for path in written] == NEW_CASES
    assert trained_2d.evaluate(new_images.with_name("labelsTr"), tmp_path / "predicted")[WHOLE_TUMOUR] > 0.4


@pytest.mark.gpu
def test_training_survives_torch_compile_which_is_the_default_on_cuda(own_planned):
    command = (TRAIN, own_planned.number, "3d_tiny", 0, "-tr", TRAINER, "-device", "cuda")
    done = own_planned.run(*command, nnUNet_compile="t", TORCH_LOGS="graph_breaks")
    assert "Using torch.compile" in done.stdout
    assert "nnunet_logvmamba" not in "".join(line for line in done.stderr.splitlines() if "Graph break" in line)
    fold = own_planned.fold("3d_tiny")
    assert np.isfinite(fold.checkpoint["logging"]["train_losses"]).all()
    assert fold.dice[WHOLE_TUMOUR] > 0.5


# Continue, validate, fine-tune


def train_and_kill(project: Project, configuration: str, in_epoch: int) -> Path:
    """Start a training and kill it and its children as soon as its log opens an epoch."""
    fold = project.fold(configuration).path
    command = [BIN / TRAIN, project.number, configuration, "0", "-tr", TRAINER, "-device", "cpu"]
    environment = {**os.environ, **project.folders.environment}
    process = subprocess.Popen(
        list(map(str, command)),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 600
        while in_epoch not in epochs_begun(fold):
            assert process.poll() is None, f"the training ended before epoch {in_epoch}"
            assert time.monotonic() < deadline, f"no epoch {in_epoch} within ten minutes"
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return fold


def test_a_training_killed_in_epoch_3_of_5_continues_there(own_planned):
    own_planned.configure("3d_fullres_narrow", "3d_five", num_epochs=5, num_iterations_per_epoch=3)
    fold = train_and_kill(own_planned, "3d_five", in_epoch=3)
    assert not (fold / "checkpoint_final.pth").exists()
    killed = read_checkpoint(fold / "checkpoint_latest.pth")
    assert killed["current_epoch"] == 3
    before = killed["logging"]["train_losses"]

    continued = own_planned.train("3d_five", 0, "--c")
    assert epochs_begun(fold) == [3, 4]
    assert continued.epochs == 5
    assert continued.checkpoint["current_epoch"] == 5
    assert continued.checkpoint["logging"]["train_losses"][:3] == before[:3]
    assert continued.checkpoint["logging"]["lrs"] == pytest.approx([0.003 * (1 - k / 5) ** 0.9 for k in range(5)])
    assert list(continued.dice) == REGIONS


def test_validation_can_be_repeated_with_probabilities(own_trained):
    fold = own_trained.fold("3d_tiny")
    validation = fold.path / "validation"
    first = {path.name: voxels(path) for path in segmentations(validation)}
    scores = fold.dice
    shutil.rmtree(validation)
    own_trained.train("3d_tiny", 0, "--val", "--npz")
    assert fold.dice == pytest.approx(scores)
    assert {path.name for path in segmentations(validation)} == set(first)
    for name, before in first.items():
        assert np.array_equal(voxels(validation / name), before)
        probabilities = np.load(validation / name.replace(".nii.gz", ".npz"))["probabilities"]
        assert probabilities.shape == (len(REGIONS), *before.shape)
        assert 0 <= probabilities.min() <= probabilities.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("patch_size", [(16, 16, 16), (24, 24, 32)])
def test_weights_are_fine_tuned_on_patches_of_another_size(patch_size, own_trained):
    source = own_trained.fold("3d_tiny").path / "checkpoint_final.pth"
    name = "3d_patch_" + "_".join(map(str, patch_size))
    # A learning rate that moves nothing shows which weights were taken over.
    settings = {"num_epochs": 1, "num_iterations_per_epoch": 2, "initial_lr": 1e-12, "seed": 2}
    own_trained.configure("3d_tiny", name, "--patch-size", *patch_size, **settings)
    tuned = own_trained.train(name, 0, "-pretrained_weights", source).checkpoint
    assert tuned["init_args"]["plans"]["configurations"][name]["patch_size"] == list(patch_size)
    before, after = read_checkpoint(source)["network_weights"], tuned["network_weights"]
    assert before.keys() == after.keys()
    heads = {key for key in before if ".seg_layers." in key}  # nnU-Net never takes these over
    assert [key for key in before.keys() - heads if not torch.allclose(before[key], after[key], atol=1e-8)] == []
    finest = "decoder.seg_layers.1.weight"
    assert finest in heads
    assert not torch.allclose(before[finest], after[finest], atol=1e-3)


# Share, compare, ensemble


@pytest.mark.slow
def test_an_exported_model_predicts_the_same_where_it_is_imported(trained, new_images, predicted, tmp_path):
    archive = tmp_path / "model.zip"
    trained.run("nnUNetv2_export_model_to_zip", "-d", "501", "-o", archive, "-c", "3d_tiny", "-tr", TRAINER, "-f", 0)
    elsewhere = Project(NnunetFolders.below(tmp_path / "elsewhere"), trained.dataset)
    elsewhere.run("nnUNetv2_install_pretrained_model_from_zip", archive)
    written = elsewhere.predict(new_images, tmp_path / "predicted", "3d_tiny")
    assert [path.name for path in written] == NEW_CASES
    for path in written:
        assert np.array_equal(voxels(path), voxels(predicted / path.name))
    for folder in (elsewhere.folders.raw, elsewhere.folders.preprocessed):
        assert files(folder) == set()


@pytest.mark.slow
def test_the_best_of_two_configurations_and_their_ensemble_is_found(trained_2d, tmp_path):
    project = trained_2d.copied_to(tmp_path / "nnunet")
    command = ("nnUNetv2_find_best_configuration", project.number, "-c", "3d_tiny", "2d_tiny", "-tr", TRAINER)
    project.run(*command, "-f", 0, "-np", 1)
    results = project.folders.results / project.dataset
    found = json.loads((results / "inference_information.json").read_text())
    scores = found["all_results"]
    ensemble = [name for name in scores if name.startswith("ensemble")]
    assert len(scores) == 3
    assert len(ensemble) == 1
    for name in ("3d_tiny", "2d_tiny"):
        expected = np.mean(list(project.fold(name).dice.values()))
        assert scores[f"{TRAINER}__{PLANS}__{name}"] == pytest.approx(expected)
    assert found["best_model_or_ensemble"]["result_on_crossval_pre_pp"] == max(scores.values())
    assert len(segmentations(results / "ensembles" / ensemble[0])) == 2
    said = (results / "inference_instructions.txt").read_text()
    assert f"-tr {TRAINER}" in said


@pytest.mark.slow
def test_the_better_of_two_trainers_is_found(own_trained):
    rival = "nnUNetTrainerNoSSM_1epochs"
    assert own_trained.train("3d_tiny", 0, "--npz", trainer=rival).epochs == 1
    command = ("nnUNetv2_find_best_configuration", own_trained.number, "-c", "3d_tiny", "-tr", TRAINER, rival)
    own_trained.run(*command, "-f", 0, "-np", 1, "--disable_ensembling")
    found = json.loads((own_trained.folders.results / own_trained.dataset / "inference_information.json").read_text())
    assert sorted(found["all_results"]) == [f"{trainer}__{PLANS}__3d_tiny" for trainer in sorted([TRAINER, rival])]


# Other plans, other data


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [TRAINER, "nnUNetTrainerUMambaEnc_adam"])
def test_a_cascade_is_trained_and_predicted_stage_by_stage(trainer, own_planned, new_images, tmp_path):
    small = "nnUNetPlansSmallMemory"
    # With so little memory nnU-Net itself plans 3d_lowres and the cascade for these images.
    planner = ("nnUNetv2_plan_experiment", "-d", own_planned.number, "-gpu_memory_target", "0.003")
    own_planned.run(*planner, "-overwrite_plans_name", small, nnUNet_n_proc_DA="1")
    preprocess = ("nnUNetv2_preprocess", "-d", own_planned.number, "-plans_name", small, "-np", 1)
    own_planned.run(*preprocess, "-c", "3d_lowres", "3d_fullres", nnUNet_n_proc_DA="1")
    own_planned.configure("3d_lowres", "3d_lowres_tiny", "-p", small, "--keep-network", num_iterations_per_epoch=30)
    low, high = "3d_lowres_tiny", "3d_cascade_fullres_tiny"

    # The second stage sees what the first one predicts for every case, so the first takes all of them.
    first = own_planned.train(low, "all", plans=small, trainer=trainer)
    assert first.epochs == 4
    assert first.dice[WHOLE_TUMOUR] > 0.5
    handed_on = own_planned.model(low, trainer, plans=small) / "predicted_next_stage" / high
    assert sorted(path.stem for path in handed_on.iterdir()) == [f"BraTS20_Training_00{case}" for case in range(1, 7)]
    second = own_planned.train(high, 0, plans=small, trainer=trainer)
    assert second.epochs == 4
    images, labels = 4, 3
    kernels = [value for value in second.checkpoint["network_weights"].values() if value.ndim == 5]
    assert kernels[0].shape[1] == images + labels

    hidden = handed_on.rename(tmp_path / "handed_on")
    validated = (second.path / "validation" / "summary.json").read_bytes()
    again = ("nnUNetv2_train", own_planned.number, high, 0, "-tr", trainer, "-p", small, "-device", "cpu")
    for options in (["--val"], ["--c"]):
        refused = own_planned.run(*again, *options, check=False)
        assert refused.returncode != 0
        assert "Traceback" not in refused.stderr
        assert "The first stage has left no segmentation of" in refused.stderr
    hidden.rename(handed_on)
    assert (second.path / "validation" / "summary.json").read_bytes() == validated

    previous = tmp_path / "previous"
    assert len(own_planned.predict(new_images, previous, low, fold="all", plans=small, trainer=trainer)) == 2
    options = ("-prev_stage_predictions", previous)
    written = own_planned.predict(new_images, tmp_path / "predicted", high, *options, plans=small, trainer=trainer)
    assert [path.name for path in written] == NEW_CASES
    assert own_planned.evaluate(new_images.with_name("labelsTr"), tmp_path / "predicted")[WHOLE_TUMOUR] > 0.5


@pytest.mark.slow
def test_a_residual_encoder_plan_is_translated_trained_and_predicted(own_planned, new_images, tmp_path):
    plans = "nnUNetResEncUNetMPlans"
    command = ("nnUNetv2_plan_experiment", "-d", own_planned.number, "-pl", "nnUNetPlannerResEncM")
    own_planned.run(*command, nnUNet_n_proc_DA="1")
    own_planned.narrow("3d_fullres", plans=plans)
    # The network stays nnU-Net's in the plans; our trainer translates it.
    own_planned.configure("3d_fullres_narrow", "3d_residual", "-p", plans, "--keep-network")
    fold = own_planned.train("3d_residual", 0, plans=plans)
    planned_for = fold.checkpoint["init_args"]["plans"]["configurations"]["3d_fullres_narrow"]["architecture"]
    assert planned_for["network_class_name"].endswith("ResidualEncoderUNet")
    assert any(key.endswith("A_log") for key in fold.checkpoint["network_weights"])
    assert fold.dice[WHOLE_TUMOUR] > 0.5
    written = own_planned.predict(new_images, tmp_path / "predicted", "3d_residual", plans=plans)
    assert [path.name for path in written] == NEW_CASES


@pytest.mark.slow
def test_voxels_with_the_ignore_label_are_neither_learned_nor_predicted(nnunet_folders):
    ignore = 3
    small_dataset.write_raw(nnunet_folders.raw)
    project = Project(nnunet_folders, small_dataset.NAME)
    raw = nnunet_folders.raw / project.dataset
    description = json.loads((raw / "dataset.json").read_text())
    description["labels"]["ignore"] = ignore
    (raw / "dataset.json").write_text(json.dumps(description))
    for path in segmentations(raw / "labelsTr"):
        image = sitk.ReadImage(str(path))
        scribbled = sitk.GetArrayFromImage(image)
        scribbled[::2] = ignore
        changed = sitk.GetImageFromArray(scribbled)
        changed.CopyInformation(image)
        sitk.WriteImage(changed, str(path))
    project.plan("3d_fullres")
    project.narrow("3d_fullres")
    project.configure("3d_fullres_narrow", "3d_tiny", num_epochs=1)

    fold = project.train("3d_tiny")
    assert fold.epochs == 1
    assert np.isfinite(fold.checkpoint["logging"]["train_losses"]).all()
    assert fold.checkpoint["network_weights"]["decoder.seg_layers.0.weight"].shape[0] == ignore  # one per other label
    assert list(fold.dice) == ["1", "2"]
    for path in segmentations(fold.path / "validation"):
        assert ignore not in voxels(path)


# Trainers of the user and of nnU-Net

USERS_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class nnUNetTrainerOfTheUser(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=None):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
"""


@pytest.mark.slow
def test_a_name_made_on_demand_trains_and_predicts_beside_the_users_trainer(own_planned, new_images, tmp_path):
    folder = tmp_path / "trainers of the user"
    folder.mkdir()
    (folder / "theirs.py").write_text(USERS_TRAINER)
    name = f"{TRAINER}_sgd_1epochs_seed7"
    fold = own_planned.train("3d_tiny", trainer=name, nnUNet_extTrainer=folder)
    assert (fold.checkpoint["trainer_name"], fold.epochs) == (name, 1)
    assert "'optimizer': 'sgd'" in log_of(fold.path)
    assert "seed 7" in log_of(fold.path)
    assert len(own_planned.predict(new_images, tmp_path / "predicted", "3d_tiny", trainer=name)) == 2

    theirs = own_planned.train("3d_tiny", trainer="nnUNetTrainerOfTheUser", nnUNet_extTrainer=folder)
    assert (theirs.checkpoint["trainer_name"], theirs.epochs) == ("nnUNetTrainerOfTheUser", 1)
    assert theirs.checkpoint["network_weights"].keys() == fold.checkpoint["network_weights"].keys()


@pytest.mark.slow
def test_nnunets_own_trainer_trains_a_configuration_of_ours_and_predicts(own_planned, new_images, tmp_path):
    # Its epochs have 250 steps, so the patch is the smallest that the strides allow.
    own_planned.configure("3d_fullres_narrow", "3d_stock", "--patch-size", 8, 8, 8)
    stock = "nnUNetTrainer_1epoch"
    fold = own_planned.train("3d_stock", trainer=stock)
    assert (fold.checkpoint["trainer_name"], fold.epochs) == (stock, 1)
    assert any(key.endswith("A_log") for key in fold.checkpoint["network_weights"])
    assert fold.dice[WHOLE_TUMOUR] > 0.3
    written = own_planned.predict(new_images, tmp_path / "predicted", "3d_stock", trainer=stock)
    assert [path.name for path in written] == NEW_CASES
    assert own_planned.evaluate(new_images.with_name("labelsTr"), tmp_path / "predicted")[WHOLE_TUMOUR] > 0.3


# What is refused


def test_a_plan_that_cannot_be_built_is_refused_before_a_folder_is_made(own_planned):
    content = json.loads(own_planned.plans_file.read_text())
    content["configurations"]["3d_tiny"]["architecture"]["arch_kwargs"]["placement"] = "haed"
    own_planned.plans_file.write_text(json.dumps(content))
    before = files(own_planned.folders.preprocessed)
    done = own_planned.run(TRAIN, own_planned.number, "3d_tiny", 0, "-tr", TRAINER, "-device", "cpu", check=False)
    assert done.returncode != 0
    assert "cannot be built from this plan: unknown placement 'haed'; valid are 'head'," in last_line(done)
    assert files(own_planned.folders.results) == set()
    assert files(own_planned.folders.preprocessed) == before


@pytest.mark.slow
def test_the_checkpoint_of_another_trainer_is_not_continued(own_trained):
    other = "nnUNetTrainerNoSSM"
    source = own_trained.fold("3d_tiny").path / "checkpoint_final.pth"
    fold = own_trained.fold("3d_tiny", trainer=other).path
    fold.mkdir(parents=True)
    checkpoint = fold / "checkpoint_latest.pth"
    shutil.copy(source, checkpoint)
    models = files(own_trained.folders.results)
    command = (TRAIN, own_trained.number, "3d_tiny", 0, "-tr", other, "-device", "cpu", "--c")
    done = own_trained.run(*command, check=False)
    assert done.returncode != 0
    assert f"{checkpoint} was written by the trainer {TRAINER}, not by {other}" in last_line(done)
    assert f"continue with -tr {TRAINER}, or remove the file" in last_line(done)
    assert checkpoint.read_bytes() == source.read_bytes()
    new = files(own_trained.folders.results) - models
    assert all("training_log_" in name for name in new), new


@pytest.mark.slow
def test_the_checkpoint_of_another_network_is_neither_continued_nor_used_to_predict(own_trained, new_images, tmp_path):
    fold = own_trained.fold("3d_tiny").path
    for path in (own_trained.plans_file, own_trained.model("3d_tiny") / "plans.json"):
        content = json.loads(path.read_text())
        content["configurations"]["3d_tiny"]["architecture"]["arch_kwargs"]["state_size"] = 8
        path.write_text(json.dumps(content))
    before = (fold / "checkpoint_final.pth").read_bytes()
    train = (TRAIN, own_trained.number, "3d_tiny", 0, "-tr", TRAINER, "-device", "cpu", "--c")
    done = own_trained.run(*train, check=False)
    assert done.returncode != 0
    assert "holds another network than configuration '3d_tiny' builds" in last_line(done)
    assert (fold / "checkpoint_final.pth").read_bytes() == before

    predict = (PREDICT, "-i", new_images, "-o", tmp_path / "out", "-d", own_trained.number, "-c", "3d_tiny", "-f", 0)
    done = own_trained.run(*predict, "-tr", TRAINER, "-device", "cpu", "-npp", 1, "-nps", 1, check=False)
    assert done.returncode != 0
    assert "These weights belong to another network than the plans describe" in last_line(done)
    assert segmentations(tmp_path / "out") == []
