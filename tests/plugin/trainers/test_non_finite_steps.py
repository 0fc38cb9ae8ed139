"""Numbers that are not finite: kept out of weights and checkpoints, and traced to case, channel or module."""

import json
import os
import re
from copy import deepcopy
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import nibabel
import numpy as np
import pytest
import small_dataset
import torch
from commands import NnunetFolders
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from small_project import PLANS, Project
from torch import distributed, nn

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.errors import Refused
from nnunet_logvmamba.plugin import preprocessed_cases, trainers
from nnunet_logvmamba.plugin.preprocessed_cases import MEND
from nnunet_logvmamba.plugin.trainers.finite import LOWER

LOG, STOCK = "nnUNetTrainerLoGVMamba", "nnUNetTrainerStockNetwork"
SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 4, "num_val_iterations_per_epoch": 1, "seed": 1}
CASES = [f"ball_{number}" for number in range(5)]


@pytest.fixture
def dataset(nnunet_folders) -> Path:
    """Folder of the preprocessed data set, which the test may change."""
    return small_dataset.copy_into(nnunet_folders).parent


@pytest.fixture
def make(dataset):
    """Make a trainer for patches of 16 voxels; ``settings`` go into the configuration."""

    def make(name: str = STOCK, base: str = "3d_fullres", *, labels: dict | None = None, **settings):
        content = json.loads((dataset / "nnUNetPlans.json").read_text())
        configuration = content["configurations"]["small"] = deepcopy(content["configurations"][base])
        configuration["patch_size"] = [16] * len(configuration["patch_size"])
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [16, 16, 32]
        configuration["batch_size"] = 2
        configuration["logvmamba"] = {**SHORT, **settings}
        content["continue_training"] = False
        about = json.loads((dataset / "dataset.json").read_text())
        about.update(labels or {})
        return getattr(trainers, name)(content, "small", "all", about, torch.device("cpu"))

    return make


@pytest.fixture
def ready(make):
    """Make a trainer that is about to take its first step, and the batches that its loaders give."""

    def ready(*args, **settings):
        trainer = make(*args, **settings)
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        return trainer, trainer.dataloader_train

    return ready


def state(trainer) -> list[torch.Tensor]:
    """Copies of the weights and of all that the optimizer keeps of them."""
    kept = [value for values in trainer.optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    return [value.detach().clone() for value in (*trainer.network.state_dict().values(), *kept)]


def same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return len(before) == len(after) and all(map(torch.equal, before, after))


def log(trainer) -> str:
    return Path(trainer.log_file).read_text()


def ends(trainer, batch: dict, steps: int = 3) -> str:
    """Train on a batch until it ends the training, in so many steps, and give what is said."""
    for _ in range(steps - 1):
        trainer.train_step(batch)
    with pytest.raises(Refused) as end:
        trainer.train_step(batch)
    sentence = str(end.value)
    assert isinstance(end.value, SystemExit)  # which ends a command without a traceback
    assert "\n" not in sentence
    assert sentence in log(trainer)
    return sentence


def spoiled(batch: dict, value: float = nan) -> dict:
    """The batch with three voxels of its second sample replaced."""
    data = batch["data"].clone()
    data[1, 0].view(-1)[[0, 7, 8]] = value
    return {**batch, "data": data}


# Steps


@pytest.mark.parametrize("recipe", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_optimizer(recipe, value, ready):
    trainer, batches = ready(f"{STOCK}_{recipe}")
    batch = next(batches)
    trainer.train_step(batch)
    before = state(trainer)
    assert np.isnan(trainer.train_step(spoiled(batch, value))["loss"])
    assert same(before, state(trainer))
    trainer.train_step(batch)
    assert not same(before, state(trainer))


@pytest.mark.parametrize("base", ["2d", "3d_fullres"])
def test_the_third_in_a_row_ends_the_training_and_says_where_the_numbers_came_from(base, ready):
    trainer, batches = ready(LOG, base)
    batch = spoiled(next(batches))
    trainer.train_step(next(batches))
    before = state(trainer)
    sentence = ends(trainer, batch)
    assert same(before, state(trainer))
    cases = ", ".join(dict.fromkeys(batch["keys"]))
    assert sentence.startswith(
        "Training ended in epoch 0, iteration 4 of 4: the loss or its gradients were not finite (NaN or infinite) in 3 "
        f"step(s) in a row, none of which was applied; in the last one, with the cases {cases}, channel 0 (MR) of case "
        f"{batch['keys'][1]} holds 3 voxel(s) that are not finite: {MEND}"
    )
    assert log(trainer).count("the step is skipped; 3 in a row end the training") == 1
    assert f"iteration 2 of 4, with the cases {cases}: the step is skipped" in log(trainer)


def test_only_steps_in_a_row_count_and_the_configuration_says_how_many(ready):
    trainer, batches = ready(non_finite_steps=2)
    good = next(batches)
    for batch in (spoiled(good), good, spoiled(good), good):
        trainer.train_step(batch)
    assert "in 2 step(s) in a row" in ends(trainer, spoiled(good), steps=2)
    trainer, batches = ready(non_finite_steps=1)
    assert "in 1 step(s) in a row" in ends(trainer, spoiled(next(batches)), steps=1)


def test_a_weight_that_is_not_finite_is_named(ready):
    trainer, batches = ready(LOG)
    name, weight = next((name, weight) for name, weight in trainer.network.named_parameters() if weight.ndim > 1)
    weight.data.view(-1)[0] = inf
    assert f"the weight {name} is not finite: {LOWER}" in ends(trainer, next(batches))


def test_the_first_module_whose_output_is_not_finite_is_named(ready):
    trainer, batches = ready(LOG)
    layers = {name: module for name, module in trainer.network.named_modules() if isinstance(module, nn.Conv3d)}
    name = list(layers)[5]
    layers[name].weight.data.fill_(3e38)
    assert f"the first output that is not finite is that of {name} (Conv3d): {LOWER}" in ends(trainer, next(batches))


class Spoiling(nn.Module):
    """A loss with another term."""

    def __init__(self, loss: nn.Module, term):
        super().__init__()
        self.loss, self.term = loss, term

    def forward(self, output, target):
        return self.loss(output, target) + self.term(output[0])


def with_term(trainer, term):
    """The trainer, about to take its first step, with another term in its loss."""
    build = trainer._build_loss
    trainer._build_loss = lambda: Spoiling(build(), term)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer, trainer.dataloader_train


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (lambda output: output.sum() * nan, "all outputs of the network are finite, and Spoiling of them is not"),
        # A constant: without more ado, gradients would be finite and the step taken.
        (lambda output: torch.tensor(nan), "all outputs of the network are finite, and Spoiling of them is not"),
        (
            lambda output: (output * 0).square().sum().sqrt(),
            "the first gradient that is not finite is that of decoder.",
        ),
    ],
    ids=["loss", "constant", "gradients"],
)
def test_a_loss_and_gradients_that_are_not_finite_are_told_apart(term, words, make):
    trainer, batches = with_term(make(), term)
    before = state(trainer)
    assert words in ends(trainer, next(batches))
    assert same(before, state(trainer))


def test_an_overflow_of_the_gradient_scaler_itself_does_not_count(make):
    trainer, batches = with_term(make(), lambda output: 1e4 * output.mean())
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    batch, before = next(batches), state(trainer)
    for _ in range(5):
        assert np.isfinite(trainer.train_step(batch)["loss"])
    assert same(before, state(trainer))
    assert trainer.grad_scaler.get_scale() == 2.0**122
    assert "ATTENTION: the loss" not in log(trainer)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    trainer.train_step(batch)
    assert not same(before, state(trainer))
    before = state(trainer)
    assert "channel 0 (MR)" in ends(trainer, spoiled(batch))
    assert same(before, state(trainer))


def test_gradients_that_a_scaler_cannot_scale_are_told_and_its_scale_stays(make):
    trainer, batches = with_term(make(), lambda output: (output * 0).square().sum().sqrt())
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    batch, before = next(batches), state(trainer)
    said = ends(trainer, batch, steps=2 + 3)  # down to the least scale, then three in a row
    assert "the first gradient that is not finite is that of decoder." in said
    assert trainer.grad_scaler.get_scale() == 1
    assert same(before, state(trainer))


def test_a_scale_of_another_training_that_would_make_good_gradients_infinite_is_raised(make):
    trainer = make()
    trainer.on_train_start()
    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    trainer.grad_scaler.load_state_dict({**trainer.grad_scaler.state_dict(), "scale": 2.0**-140})
    trainer.on_train_epoch_start()
    before = state(trainer)
    trainer.train_step(next(trainer.dataloader_train))
    assert trainer._applied
    assert not same(before, state(trainer))
    assert all(value.isfinite().all() for value in state(trainer))


@pytest.mark.parametrize("step", ["train_step", "validation_step"])
def test_a_batch_of_which_every_voxel_is_ignored_teaches_nothing_and_ends_nothing(step, make):
    trainer = make("nnUNetTrainerStockNetwork", "3d_fullres", labels=IGNORE)
    trainer.recipe = replace(trainer.recipe, loss="ce")
    trainer.initialize()
    scales = [[16 // 2**stage] * 3 for stage in range(3)]
    target = [torch.full((2, 1, *scale), 3, dtype=torch.int16) for scale in scales]
    batch = {"data": torch.randn(2, 1, 16, 16, 16), "target": target, "keys": ["a", "b"]}
    assert getattr(trainer, step)(batch)["loss"] == 0
    assert all(value.isfinite().all() for value in state(trainer))


def test_without_a_scaler_bfloat16_is_watched_as_float32_is(ready):
    trainer, batches = ready()
    batch = next(batches)
    with torch.autocast("cpu", torch.bfloat16):
        trainer.train_step(batch)
        before = state(trainer)
        assert "channel 0 (MR)" in ends(trainer, spoiled(batch))
    assert same(before, state(trainer))


def test_what_is_watched_leaves_a_finite_training_as_it_was(ready):
    weights = []
    for watched in (True, False):
        trainer, batches = ready()
        if not watched:
            trainer.loss._forward_hooks.clear()
            trainer.optimizer._optimizer_step_pre_hooks.clear()
        trainer.train_step(next(batches))
        weights.append(state(trainer))
    assert same(*weights)


def test_skipped_steps_have_no_part_in_the_mean_loss_of_an_epoch(ready):
    trainer, batches = ready()
    batch = next(batches)
    outputs = [trainer.train_step(each) for each in (batch, spoiled(batch), batch, spoiled(batch))]
    trainer.on_train_epoch_end(outputs)
    kept = np.mean([outputs[0]["loss"], outputs[2]["loss"]])
    assert trainer.logger.get_value("train_losses", -1) == pytest.approx(kept)
    assert "2 steps of this epoch were not finite and were skipped" in log(trainer)


# Validation


def test_an_epoch_whose_validation_loss_is_not_finite_is_no_new_best(make):
    trainer = make(STOCK, num_epochs=3)
    validate, epochs = trainer.validation_step, iter([True, False, True])
    trainer.validation_step = lambda batch: validate(spoiled(batch) if next(epochs) else batch)
    trainer.run_training()
    assert log(trainer).count("the validation loss of this epoch is not finite, with the cases ball_") == 2
    assert log(trainer).count("New best") == 1
    averages, means = (trainer.logger.get_value(name, None) for name in ("ema_fg_dice", "mean_fg_dice"))
    assert np.isnan(averages[0])
    assert averages[1:] == [means[1]] * 2
    best = torch.load(Path(trainer.output_folder) / "checkpoint_best.pth", weights_only=False)
    assert best["current_epoch"] == 2


def test_an_average_that_is_nan_does_not_stay_so(make):
    """Where no label occurred in the patches of an epoch, nnU-Net's mean is NaN, and so were all averages after it."""
    trainer = make(STOCK, num_epochs=2)
    end, epochs = trainer.on_validation_epoch_end, iter([0, 1])

    def without_labels_at_first(outputs):
        if next(epochs) == 0:
            outputs = [{key: value if key == "loss" else value * 0 for key, value in each.items()} for each in outputs]
        end(outputs)

    trainer.on_validation_epoch_end = without_labels_at_first
    trainer.run_training()
    averages = trainer.logger.get_value("ema_fg_dice", None)
    assert np.isnan(averages[0])
    assert averages[1] == trainer.logger.get_value("mean_fg_dice", -1)
    assert trainer._best_ema == averages[1]


# Checkpoints


@pytest.mark.parametrize("name", ["latest", "best", "final"])
def test_a_checkpoint_with_weights_that_are_not_finite_is_not_written(name, make):
    trainer = make(LOG)
    trainer.initialize()
    file = Path(trainer.output_folder) / f"checkpoint_{name}.pth"
    trainer.save_checkpoint(str(file))
    before = file.read_bytes()
    weight, values = list(trainer.network.named_parameters())[-1]
    values.data.view(-1)[-1] = nan
    with pytest.raises(Refused, match="^No checkpoint of epoch 0 was written, since the weight ") as end:
        trainer.save_checkpoint(str(file))
    assert f"the weight {weight} is not finite (NaN or infinite): {LOWER}" in str(end.value)
    assert file.read_bytes() == before
    assert not list(file.parent.glob(".*"))


@pytest.mark.parametrize("name", [LOG, STOCK, "nnUNetTrainerUMambaBot"])
def test_what_is_told_to_do_goes_on_from_the_weights_with_the_lower_rate(name, dataset, tmp_path):
    def made(configuration: str):
        content = {**json.loads((dataset / "nnUNetPlans.json").read_text()), "continue_training": False}
        about = json.loads((dataset / "dataset.json").read_text())
        trainer = getattr(trainers, name)(content, configuration, "all", about, torch.device("cpu"))
        trainer.initialize()
        return trainer

    before = made("3d_fullres")
    before.save_checkpoint(str(tmp_path / "last.pth"))
    told = re.search(r"\(logvmamba (.*?)\)", LOWER)[1].replace("NEW", "lower").replace("_lr=...", "_lr=0.0001")
    told = told.replace("=...", f"={before.recipe.optimizer}")
    assert main([*told.split(), "-d", small_dataset.NUMBER, "-c", "3d_fullres"]) == 0
    after = made("lower")
    assert after.initial_lr == 1e-4
    load_pretrained_weights(after.network, str(tmp_path / "last.pth"))
    weights = before.network.state_dict()
    assert all(torch.equal(after.network.state_dict()[name], weights[name]) for name in weights if "seg_" not in name)


# Labels in a batch


@pytest.mark.parametrize("base", ["2d", "3d_fullres"])
@pytest.mark.parametrize("step", ["train_step", "validation_step"])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_label_out_of_range_in_a_batch_is_named_with_its_case(base, step, ignored, make):
    labels = {"labels": {**small_dataset.LABELS, **({"ignore": 3} if ignored else {})}}
    trainer = make(STOCK, base, labels=labels)
    trainer.initialize()
    size = [16] * (2 if base == "2d" else 3)
    scales = [[edge // 2**stage for edge in size] for stage in range(3)]
    target = [torch.zeros(2, 1, *scale, dtype=torch.int16) for scale in scales]
    target[0].view(-1)[-2:] = 3 if ignored else 2
    batch = {"data": torch.randn(2, 1, *size), "target": target, "keys": ["a", "b"]}
    getattr(trainer, step)(batch)
    target[0].view(-1)[-4:] = 7
    with pytest.raises(Refused) as end:
        getattr(trainer, step)(batch)
    known = "0, 1, 2, 3" if ignored else "0, 1, 2"
    assert f"the label map of case b holds 7 in 4 voxel(s) of a patch, labels are {known}: {MEND}" in str(end.value)


# Preprocessed cases


def plant(folder: Path, case: str, *, image=None, label=None) -> None:
    """Change voxels of a preprocessed case: value by index."""
    data, seg, _, properties = nnUNetDatasetBlosc2(str(folder)).load_case(case)
    data, seg = data[:], seg[:]
    for values, changes in ((data, image or {}), (seg, label or {})):
        for index, value in changes.items():
            values[index] = value
    for file in folder.glob(f"{case}*.b2nd"):
        file.unlink()
    nnUNetDatasetBlosc2.save_case(data, seg, properties, str(folder / case), chunks=data.shape, blocks=data.shape)


REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
IGNORE = {"labels": {**small_dataset.LABELS, "ignore": 3}}


@pytest.mark.parametrize("base", ["2d", "3d_fullres"])
@pytest.mark.parametrize(
    ("change", "labels", "words"),
    [
        ({"image": {(0, 1, 2, 3): nan, (0, 2, 2, 3): inf}}, {}, "channel 0 (MR) holds 2 value(s) that are not finite"),
        ({"image": {(0, 0, 0, 0): -inf}}, REGIONS, "channel 0 (MR) holds 1 value(s) that are not finite"),
        ({"label": {(0, 1, 1, 1): 3, (0, 1, 1, 2): 7}}, {}, "its label map holds 3, 7 in 2 voxel(s)"),
        ({"label": {(0, 1, 1, 1): 3}}, REGIONS, "its label map holds 3 in 1 voxel(s)"),
        ({"label": {(0, 1, 1, 1): 4}}, IGNORE, "its label map holds 4 in 1 voxel(s)"),
        ({"label": {(0, 1, 1, 1): -2}}, IGNORE, "its label map holds -2 in 1 voxel(s)"),
        ({"label": {(0, 1, 1, 1): 3, (0, 1, 1, 2): -1}}, IGNORE, None),
    ],
    ids=["nan", "inf", "label", "regions", "ignore", "negative", "sound"],
)
def test_a_case_that_cannot_be_trained_on_ends_the_training_before_its_first_epoch(
    base, change, labels, words, make, dataset
):
    folder = dataset / f"nnUNetPlans_{base}"
    plant(folder, "ball_3", **change)
    trainer = make(STOCK, base, labels=labels)
    trainer.initialize()
    if words is None:
        trainer.get_tr_and_val_datasets()
        return
    with pytest.raises(Refused) as end:
        trainer.get_tr_and_val_datasets()
    sentence = str(end.value)
    assert sentence.startswith(f"1 preprocessed case(s) in {folder} cannot be trained on (labels are 0, 1, 2")
    assert f"): case ball_3: {words}: {MEND}" in sentence
    assert "nnUNetv2_preprocess -d 998 -plans_name nnUNetPlans -c small" in sentence
    assert sentence in log(trainer)


def test_the_second_stage_of_a_cascade_is_refused_until_the_first_has_left_every_case(make, dataset, nnunet_folders):
    file = dataset / "nnUNetPlans.json"
    content = json.loads(file.read_text())
    configurations = content["configurations"]
    configurations["low"] = {**deepcopy(configurations["3d_fullres"]), "next_stage": "small"}
    configurations["3d_fullres"]["previous_stage"] = "low"
    file.write_text(json.dumps(content))
    trainer = make()
    trainer.initialize()
    left = nnunet_folders.results / dataset.name / f"{STOCK}__{PLANS}__low" / "predicted_next_stage" / "small"
    left.mkdir(parents=True)
    for case in CASES:
        with pytest.raises(Refused, match=rf"no segmentation of \d case\(s\) in {left}, the first is {case}: ") as end:
            trainer.get_tr_and_val_datasets()
        (left / f"{case}.b2nd").touch()
    assert str(end.value).endswith(f"(nnUNetv2_train 998 low all -tr {STOCK} -p {PLANS}).")
    trainer.get_tr_and_val_datasets()


def check(trainer) -> int:
    """Check the cases of a trainer, and give how many were looked at."""
    said = log(trainer).count("preprocessed case(s), once")
    trainer.get_tr_and_val_datasets()
    new = [line.split("Checking ")[1] for line in log(trainer).splitlines() if "preprocessed case(s), once" in line]
    return int(new[-1].split()[0]) if len(new) > said else 0


@pytest.mark.parametrize("number", ["007", "998", "1001"])
def test_the_remedy_names_the_whole_number_of_the_data_set(number, make):
    trainer = make(STOCK, "2d")
    trainer.plans_manager.plans["dataset_name"] = f"Dataset{number}_Balls_2"
    assert f"-d {number} -plans_name nnUNetPlans -c small" in trainer._preprocess()


def test_a_case_is_looked_at_once_until_it_or_the_labels_change(make, dataset):
    folder = dataset / "nnUNetPlans_3d_fullres"
    trainer = make()
    trainer.initialize()
    assert check(trainer) == 5
    assert check(trainer) == check(make()) == 0, "neither --c nor another fold costs anything"
    plant(folder, "ball_1")
    plant(folder, "ball_2", image={(0, 0, 0, 0): nan})
    with pytest.raises(Refused, match="case ball_2"):
        check(trainer)
    with pytest.raises(Refused, match="case ball_2"):
        check(trainer)
    plant(folder, "ball_2", image={(0, 0, 0, 0): 0})
    assert check(trainer) == 1, "the others are known"
    assert check(make(labels=IGNORE)) == 5


def test_what_is_known_of_the_cases_is_nothing_that_nnunet_takes_for_a_case(make, dataset):
    folder = dataset / "nnUNetPlans_3d_fullres"
    before = sorted(folder.iterdir())
    check(make())
    assert sorted(folder.iterdir()) == before
    assert preprocessed_cases.memory_file(folder).is_file()
    assert infer_dataset_class(str(folder)) is nnUNetDatasetBlosc2
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(folder))) == CASES


@pytest.mark.parametrize("content", ["", "[]", '{"labels": [-1, 0, 1, 2]}', '{"labels": [-1, 0, 1, 2], "cases": 3}'])
def test_a_damaged_memory_is_written_anew(content, make, dataset):
    file = preprocessed_cases.memory_file(dataset / "nnUNetPlans_3d_fullres")
    file.write_text(content)
    assert [check(make()), check(make())] == [5, 0]


def test_a_memory_that_cannot_be_written_keeps_no_training_from_starting(make, dataset):
    preprocessed_cases.memory_file(dataset / "nnUNetPlans_3d_fullres").mkdir()
    trainer = make()
    assert check(trainer) == 5
    assert "The next training will check them again" in log(trainer)


def test_cases_in_nnunets_older_format_are_looked_at_too(make, dataset):
    folder = dataset / "nnUNetPlans_3d_fullres"
    cases = {case: nnUNetDatasetBlosc2(str(folder)).load_case(case) for case in CASES}
    cases = {case: (data[:], seg[:], properties) for case, (data, seg, _, properties) in cases.items()}
    for path in folder.iterdir():
        path.unlink()
    cases["ball_4"][0][0, 3, 3, 3] = nan
    for case, (data, seg, properties) in cases.items():
        nnUNetDatasetNumpy.save_case(data, seg, properties, str(folder / case))
    trainer = make()
    with pytest.raises(Refused, match=r"case ball_4: channel 0 \(MR\) holds 1 value"):
        check(trainer)


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
@pytest.mark.parametrize("left", [0, 0.5, None])
def test_a_case_whose_files_are_damaged_is_named(ending, left, make, dataset):
    file = dataset / "nnUNetPlans_3d_fullres" / f"ball_2{ending}"
    content = file.read_bytes()
    file.unlink()
    if left is not None:
        file.write_bytes(content[: int(left * len(content))])
    if (ending, left) == (".b2nd", None):
        return  # nnU-Net knows no such case then
    with pytest.raises(Refused, match="case ball_2: it cannot be read") as end:
        check(make())
    assert "\n" not in str(end.value)


# Stock commands


def raw_voxel(file: Path, value: float) -> None:
    """Replace a voxel of a raw image or label map."""
    image = nibabel.load(file)
    values = np.asanyarray(image.dataobj).copy()
    values[8, 8, 8] = value
    nibabel.save(nibabel.Nifti1Image(values, image.affine), file)


def raw_project(root: Path, channel: str, *spoiled_first: tuple[str, float]) -> Project:
    """A data set that is read by nibabel, since SimpleITK reads NaN as 0, with a short training."""
    folders = NnunetFolders.below(root)
    small_dataset.write_raw(folders.raw)
    file = folders.raw / small_dataset.NAME / "dataset.json"
    about = json.loads(file.read_text())
    file.write_text(
        json.dumps({**about, "channel_names": {"0": channel}, "overwrite_image_reader_writer": "NibabelIO"})
    )
    for name, value in spoiled_first:
        raw_voxel(file.parent / name, value)
    project = Project(folders, small_dataset.NAME)
    project.plan("3d_fullres")
    project.narrow("3d_fullres")
    project.configure("3d_fullres_narrow", "tiny", num_epochs=1, num_iterations_per_epoch=3)
    return project


def refused(project: Project, **env: str) -> str:
    """Train with the stock command, which ends with one sentence; give it."""
    command = ("nnUNetv2_train", project.number, "tiny", "all", "-tr", LOG, "-device", "cpu")
    done = project.run(*command, check=False, **env)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stdout
    assert not list(project.folders.results.rglob("*.pth"))
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("channel", ["MR", "CT"])
def test_raw_data_that_are_not_finite_or_hold_other_labels_end_the_stock_command_until_they_are_mended(
    channel, tmp_path
):
    project = raw_project(tmp_path / "nnunet", channel)
    raw = project.folders.raw / project.dataset
    files = {"imagesTr/ball_1_0000.nii.gz": nan, "imagesTr/ball_2_0000.nii.gz": inf, "labelsTr/ball_3.nii.gz": 5}
    before = {name: (raw / name).read_bytes() for name in files}
    for name, value in files.items():
        raw_voxel(raw / name, value)
    preprocess = ["nnUNetv2_preprocess", "-d", project.number, "-plans_name", PLANS, "-c", "tiny"]
    project.run(*preprocess, "-np", 1)
    sentence = refused(project)
    assert sentence.startswith(f"{3 if channel == 'MR' else 2} preprocessed case(s) in ")
    assert f"case ball_1: channel 0 ({channel}) holds " in sentence
    assert ("; case ball_2: channel 0 (MR) holds " in sentence) == (
        channel == "MR"
    )  # of CT, nnU-Net clips what is infinite
    assert "; case ball_3: its label map holds 5 in 1 voxel(s): mend it" in sentence
    assert f"({' '.join(preprocess)})" in sentence
    for name, content in before.items():
        (raw / name).write_bytes(content)
    project.run(*preprocess, "-np", 1)
    assert project.train("tiny", "all").epochs == 1


@pytest.mark.slow
def test_plans_that_were_made_of_an_infinite_voxel_are_made_anew(tmp_path):
    """nnU-Net normalizes every case of a CT data set with what it planned."""
    name = "imagesTr/ball_1_0000.nii.gz"
    project = raw_project(tmp_path / "nnunet", "CT", (name, inf))
    sentence = refused(project)
    assert sentence.startswith("5 preprocessed case(s) in ")
    assert "; and 2 more: mend it" in sentence
    plan = ["nnUNetv2_plan_and_preprocess", "-d", project.number, "--clean"]
    assert f"({' '.join(plan)}, since the intensities in nnUNetPlans are not finite either)" in sentence
    raw_voxel(project.folders.raw / project.dataset / name, 1)
    project.run(*plan, "-np", 1, "-npfp", 1, "-c", "3d_fullres", nnUNet_n_proc_DA="1")
    assert project.train("tiny", "all").epochs == 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_training_that_diverges_ends_the_stock_command_and_its_workers(workers, own_planned):
    own_planned.configure("3d_fullres_narrow", "tiny", initial_lr=1e30)
    content = json.loads(own_planned.plans_file.read_text())
    content["configurations"]["tiny"]["logvmamba"].pop("seed")  # it would keep the workers away
    own_planned.plans_file.write_text(json.dumps(content))
    sentence = refused(own_planned, nnUNet_n_proc_DA=workers)
    assert sentence.startswith("Training ended in epoch 0, iteration 4 of 10: ")
    assert ", the first output that is not finite is that of encoder." in sentence
    assert "lower the learning rate" in sentence
    (text,) = [path.read_text() for path in own_planned.folders.results.rglob("training_log*.txt")]
    assert text.rstrip().endswith(sentence.rstrip())


# Several processes


def _one_of_two(rank: int, rendezvous: str, root: str, what: str, told) -> None:
    """A process of a training on two: gloo on the CPU, where nnU-Net would take NCCL and GPUs."""
    os.environ.update(NnunetFolders.below(Path(root)).environment, nnUNet_n_proc_DA="0")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    preprocessed = Path(root) / "preprocessed" / small_dataset.NAME
    content = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    configuration = content["configurations"]["small"] = deepcopy(content["configurations"]["3d_fullres"])
    configuration["patch_size"] = [16] * 3
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [16, 16, 32]
    configuration["batch_size"], configuration["batch_dice"] = 2, True
    configuration["logvmamba"] = SHORT
    content["continue_training"] = False
    about = json.loads((preprocessed / "dataset.json").read_text())
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(distributed, "is_initialized", lambda: False)  # nnU-Net would ask for CUDA
        trainer = getattr(trainers, STOCK)(content, "small", "all", about, torch.device("cpu"))
        trainer.initialize()
    trainer.network = nn.parallel.DistributedDataParallel(trainer.network)
    trainer.is_ddp, trainer.local_rank, trainer.batch_size = True, rank, 1
    trainer.loss = trainer._build_loss()
    if what == "constant" and rank == 1:
        trainer.loss = Spoiling(trainer.loss, lambda output: torch.tensor(nan))
    trainer.loss.register_forward_hook(trainer._tell_gradients)
    batch = {
        "data": torch.randn(1, 1, 16, 16, 16),
        "target": [torch.zeros(1, 1, *[size] * 3, dtype=torch.int16) for size in (16, 8, 4)],
        "keys": [f"case_{rank}"],
    }
    said = "nothing"
    try:
        if what == "cases":
            trainer.get_tr_and_val_datasets()
        if what == "scaler":
            trainer.grad_scaler = torch.amp.GradScaler("cpu")
        bad = batch
        if what != "constant":
            trainer.train_step(batch)
            bad = {**batch, "data": torch.full_like(batch["data"], nan)} if rank == 1 else batch
        before = state(trainer)
        for _ in range(3):
            trainer.train_step(bad)
    except (Refused, RuntimeError) as end:
        said = str(end)
    told.put((rank, said, what == "cases" or same(before, state(trainer))))
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("plain", "with the cases case_0, case_1, channel 0 (MR) of case case_1 holds 4096 voxel(s)"),
        ("scaler", "with the cases case_0, case_1, channel 0 (MR) of case case_1 holds 4096 voxel(s)"),
        (
            "constant",
            "with the cases case_0, case_1, all outputs of the network are finite, and Spoiling of them is not",
        ),
        ("cases", "1 preprocessed case(s) in "),
    ],
)
def test_two_processes_end_with_the_same_sentence_though_only_one_saw_the_cause(what, words, dataset, tmp_path):
    if what == "cases":
        plant(dataset / "nnUNetPlans_3d_fullres", "ball_2", image={(0, 0, 0, 0): nan})
    context = torch.multiprocessing.get_context("spawn")
    told = context.Queue()
    arguments = f"file://{tmp_path}/rendezvous", str(dataset.parents[1]), what, told
    processes = [context.Process(target=_one_of_two, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        results = sorted(told.get(timeout=120) for _ in processes)
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    assert results[0][1] == results[1][1]
    assert words in results[0][1]
    assert [unchanged for *_, unchanged in results] == [True, True]
