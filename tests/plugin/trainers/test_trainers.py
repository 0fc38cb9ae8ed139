"""Trainers: their names, settings, optimizers, seeds, and what they refuse."""

import argparse
import gc
import json
import pickle
import re
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import blosc2
import numpy as np
import pytest
import small_dataset
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.run.run_training import run_training
from small_model import of_an_earlier_release
from torch import nn

from nnunet_logvmamba.errors import Refused
from nnunet_logvmamba.layers import SelectiveSSM
from nnunet_logvmamba.networks import LoGVMambaUNet, catalogue
from nnunet_logvmamba.plugin import model_check, plans, recipes, trainers
from nnunet_logvmamba.plugin.checkpoints import read_checkpoint

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}


@pytest.fixture
def plans_file(nnunet_folders) -> Path:
    return small_dataset.copy_into(nnunet_folders)


@pytest.fixture
def make(plans_file):
    """Make a trainer for a small configuration; ``changes`` go into the configuration."""

    def make(
        name: str, base: str = "3d_fullres", *, knobs: dict | None = None, settings: dict | None = None, **changes
    ):
        content = json.loads(plans_file.read_text())
        dataset = json.loads((plans_file.parent / "dataset.json").read_text())
        configuration = content["configurations"]["small"] = deepcopy(content["configurations"][base])
        configuration["patch_size"] = [16] * len(configuration["patch_size"])
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [16, 16, 32]
        if knobs is not None:
            configuration["architecture"] = plans.to_our_architecture(
                configuration["architecture"], configuration["patch_size"], **knobs
            )
        if settings is not None:
            configuration[plans.TRAINING_KEY] = settings
        configuration.update(changes)
        content["continue_training"] = False
        return getattr(trainers, name)(content, "small", 0, dataset, torch.device("cpu"))

    return make


def test_a_fold_that_would_write_other_plans_than_the_trained_folds_need_is_refused(make, plans_file, monkeypatch):
    first = make("nnUNetTrainerLoGVMamba", settings=SHORT)
    model = Path(first.output_folder_base)
    for name, content in (("plans.json", first.plans_manager.plans), ("dataset.json", first.dataset_json)):
        (model / name).write_text(json.dumps(content))
    beside = model / "fold_1"
    beside.mkdir()
    make("nnUNetTrainerLoGVMamba", knobs={"placement": "head"})  # nobody needs the old plans yet
    (beside / "checkpoint_best.pth").touch()
    before = sorted(model.rglob("*"))
    for changes, words in (
        ({"knobs": {"placement": "head"}}, "other plans: architecture"),
        ({"normalization_schemes": ["CTNormalization"]}, "other plans: normalization_schemes"),
    ):
        with pytest.raises(Refused, match=rf"{model} is trained otherwise \(fold_1\), .*{words}"):
            make("nnUNetTrainerLoGVMamba", **changes)
    labels = plans_file.parent / "dataset.json"
    as_it_was = labels.read_text()
    labels.write_text(as_it_was.replace('"labels"', '"regions_class_order": [1], "labels"'))
    with pytest.raises(Refused, match=r"other dataset\.json: regions_class_order"):
        make("nnUNetTrainerLoGVMamba")
    assert sorted(model.rglob("*")) == before, "nothing was begun"
    labels.write_text(as_it_was.replace('"shell"', '"another name"'))
    make("nnUNetTrainerLoGVMamba")
    labels.write_text(as_it_was)
    # Intensities matter where a scheme reads them.
    of_all = json.loads(plans_file.read_text())
    of_all["foreground_intensity_properties_per_channel"]["0"]["mean"] += 1
    plans_file.write_text(json.dumps(of_all))
    make("nnUNetTrainerLoGVMamba")
    there = json.loads((model / "plans.json").read_text())
    there["configurations"]["small"]["normalization_schemes"] = ["CTNormalization"]
    (model / "plans.json").write_text(json.dumps(there))
    with pytest.raises(Refused, match="other plans: foreground_intensity_properties_per_channel"):
        make("nnUNetTrainerLoGVMamba", normalization_schemes=["CTNormalization"])
    (model / "plans.json").write_text(json.dumps(there)[:99])  # another fold is writing it
    make("nnUNetTrainerLoGVMamba")
    (model / "plans.json").write_text(json.dumps(first.plans_manager.plans))
    # What a fold was trained with and needs no more, and what is only looked at, is no reason.
    make("nnUNetTrainerLoGVMamba", settings={"num_epochs": 3}, batch_size=3)
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "--val"])
    make("nnUNetTrainerLoGVMamba", knobs={"placement": "head"})


def families(without: tuple[str, ...] = ()) -> list[str]:
    return [f"nnUNetTrainer{family}" for family in trainers.TRAINER_OF_FAMILY if family not in without]


def of_this_lineage() -> list[str]:
    """Families whose network and published recipe are not those of another system."""
    rows = trainers.TRAINER_OF_FAMILY.values()
    peers = {network.path for network in catalogue.NETWORKS if network.home.startswith("peers.")}
    ours = [trainer for trainer in rows if trainer.network_name not in peers]
    return [trainer.__name__ for trainer in ours if trainer.published_recipe in trainers.RECIPES]


def base_of(trainer: str) -> str:
    return "2d" if trainer.endswith("Swin") else "3d_fullres"


def mixer_labels(trainer) -> set[str]:
    return {setting.label for setting in trainer.network.settings}


def results(folders) -> list[Path]:
    return list(folders.results.rglob("*"))


# Names


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize(
    "suffix", ["_adam", "_adamw", "_paper", "_published", "_sgd", "_5epochs", "_seed0", "_sgd_20epochs_seed17"]
)
def test_a_name_says_recipe_length_and_seed(family, suffix):
    trainer = getattr(trainers, family + suffix)
    assert trainer.__name__ == trainer.__qualname__ == family + suffix
    assert issubclass(trainer, getattr(trainers, family))
    assert getattr(trainers, family + suffix) is trainer
    assert pickle.loads(pickle.dumps(trainer)) is trainer
    words = suffix.strip("_").split("_")
    assert trainer.named_recipe == next((word for word in words if word in recipes.WORDS), None)
    assert trainer.named_epochs == next((int(word[:-6]) for word in words if word.endswith("epochs")), None)
    assert trainer.named_seed == next((int(word[4:]) for word in words if word.startswith("seed")), None)


@pytest.mark.parametrize(
    "name",
    [
        "nnUNetTrainerLoGVMamba_0epochs",
        "nnUNetTrainerLoGVMamba_05epochs",
        "nnUNetTrainerLoGVMamba_seed",
        "nnUNetTrainerLoGVMamba_seed1_5epochs",
        "nnUNetTrainerLoGVMamba_5epochs_adam",
        "nnUNetTrainerLoGVMamba_lion",
        "nnUNetTrainerLoGVMamba_5epochs_5epochs",
        "nnUNetTrainerSwinVMamba",
        "nnUNetTrainer_5epochs",
        "LoGVMamba_5epochs",
    ],
)
def test_names_that_mean_nothing_do_not_exist(name):
    with pytest.raises(AttributeError, match=name):
        getattr(trainers, name)


def test_every_name_has_results_of_its_own(make):
    folders = {make(name).output_folder for name in ("nnUNetTrainerLoGVMamba", "nnUNetTrainerLoGVMamba_seed1")}
    assert {Path(folder).parent.name for folder in folders} == {
        "nnUNetTrainerLoGVMamba__nnUNetPlans__small",
        "nnUNetTrainerLoGVMamba_seed1__nnUNetPlans__small",
    }


def test_the_five_arguments_of_the_constructor_are_what_checkpoints_store(make):
    assert list(make("nnUNetTrainerLoGVMamba_2epochs").my_init_kwargs) == [
        "plans",
        "configuration",
        "fold",
        "dataset_json",
        "device",
    ]


# Settings


def test_epochs_of_a_name_have_nnunets_length(make):
    trainer = make("nnUNetTrainerLoGVMamba_5epochs")
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (5, 250, 50)


def test_without_settings_a_training_is_as_long_as_nnunets(make):
    trainer = make("nnUNetTrainerLoGVMamba")
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.seed) == (1000, 250, None)
    assert trainer.recipe == trainers.DEFAULT_RECIPE
    defaults = {name: default for name, (_, default) in plans.SETTINGS.items() if hasattr(trainer, name)}
    own = {"initial_lr", "weight_decay"}  # of the recipe
    assert {name: getattr(trainer, name) for name in defaults.keys() - own} == {
        name: default for name, default in defaults.items() if name not in own
    }


def test_the_configuration_sets_what_the_name_does_not(make):
    settings = {**SHORT, "optimizer": "sgd", "initial_lr": 0.05, "weight_decay": 0.0, "seed": 4}
    trainer = make("nnUNetTrainerLoGVMamba", settings=settings)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (2, 2, 1)
    assert (trainer.recipe, trainer.seed) == (trainers.Recipe("sgd", 0.05, 0.0), 4)


def test_the_name_beats_the_configuration(make):
    settings = {**SHORT, "optimizer": "sgd", "initial_lr": 0.05, "seed": 4}
    trainer = make("nnUNetTrainerLoGVMamba_adam_7epochs_seed9", settings=settings)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.seed) == (7, 2, 9)
    assert trainer.recipe == trainers.RECIPES["adam"], "a learning rate chosen for another optimizer must not follow"


@pytest.mark.parametrize("command", ["nnUNetv2_train", "my_script.py"])
def test_what_a_subclass_sets_holds_as_with_nnunets_trainer(command, make, monkeypatch, tmp_path):
    class OfAUser(trainers.nnUNetTrainerLoGVMamba):
        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.initial_lr, self.weight_decay = 5e-4, 0.3

        def initialize(self):
            super().initialize()
            self.pretext = torch.load(tmp_path / "pretext.pt", weights_only=False)

    gc.collect()  # trainers of other tests that were set up and never trained have torch read data alone
    torch.save({"options": argparse.Namespace(depth=3)}, tmp_path / "pretext.pt")
    monkeypatch.setattr(trainers, "OfAUser", OfAUser, raising=False)
    monkeypatch.setattr(sys, "argv", [command, "998", "2d", "0"])
    trainer = make("OfAUser", settings=SHORT)
    trainer.initialize()
    assert torch.load(tmp_path / "pretext.pt", weights_only=False), "nor is the rest of the process told to read less"
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {5e-4}
    assert max(group["weight_decay"] for group in trainer.optimizer.param_groups) == 0.3
    assert (trainer.recipe.initial_lr, trainer.recipe.weight_decay) == (5e-4, 0.3)
    assert trainer.pretext["options"].depth == 3


def test_a_subclass_may_build_its_network_with_the_arguments_of_an_earlier_nnunet(make, monkeypatch):
    earlier = of_an_earlier_release(trainers.nnUNetTrainerStockNetwork)
    monkeypatch.setattr(trainers, "OfAnEarlierRelease", earlier, raising=False)
    trainer = make("OfAnEarlierRelease", settings=SHORT)
    with pytest.warns(DeprecationWarning, match="old build_network_architecture signature"):
        trainer.initialize()
    assert type(trainer.network).__name__ == "PlainConvUNet"


class AsksForValues(nn.Module):
    """A network of somebody's that is fine, but not without values."""

    def __init__(self, channels: int, classes: int, *, where: str):
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)] if where == "as it is built" else [0.1]
        self.where = where
        self.head = nn.Conv3d(channels, classes, 1)
        self.decoder = nn.Module()
        self.decoder.deep_supervision = False
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, x):
        if self.where == "as it runs" and x.mean().item() > 1e9:
            return x
        return self.head(x)


def with_a_network_that_asks(where: str) -> type:
    class OfAUser(trainers.nnUNetTrainerStockNetwork):
        @staticmethod
        def build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        ):
            return AsksForValues(num_input_channels, num_output_channels, where=where)

        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.enable_deep_supervision = False

    return OfAUser


@pytest.mark.parametrize("where", ["as it is built", "as it runs", "nowhere"])
def test_a_network_of_somebody_elses_may_ask_for_values_and_hold_a_mask(where, make, monkeypatch):
    monkeypatch.setattr(trainers, "OfAUser", with_a_network_that_asks(where), raising=False)
    trainer = make("OfAUser", settings={**SHORT, "num_epochs": 1})
    trainer.run_training()
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    assert read_checkpoint(final)["network_weights"]["mask"].isinf().any()
    assert _not_finite_in(final) == []
    trainer.network.head.weight.data[0] = torch.nan
    with pytest.raises(Refused, match="since the weight head.weight is not finite"):
        trainer.save_checkpoint(str(final))
    trainer.network.head.weight.data[:] = -torch.inf
    with pytest.raises(Refused, match="since the weight head.weight is not finite"):
        trainer.save_checkpoint(str(final))


def _not_finite_in(path: Path) -> list[str]:
    return list(model_check._not_finite(read_checkpoint(path)["network_weights"]))


def test_a_configuration_that_inherits_from_nowhere_is_its_own_affair(make, plans_file):
    content = json.loads(plans_file.read_text())
    content["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "small"}
    content["configurations"]["broken"] = {"inherits_from": "gone"}
    plans_file.write_text(json.dumps(content))
    make("nnUNetTrainerNoSSM", settings=SHORT, next_stage="3d_cascade_fullres")
    with pytest.raises(Refused, match="gone does not exist in the plans"):
        make("nnUNetTrainerNoSSM", settings=SHORT, inherits_from="gone")


def test_the_papers_recipe_is_the_same_in_every_configuration(make):
    trainer = make("nnUNetTrainerLoGVMamba_paper", settings={**SHORT, "optimizer": "adam", "initial_lr": 0.05})
    assert trainer.recipe == trainers.RECIPES["paper"]


def test_a_learning_rate_follows_the_optimizer_it_was_chosen_for(make):
    settings = {"optimizer": "sgd", "initial_lr": 0.05}
    assert make("nnUNetTrainerLoGVMamba_sgd", settings=settings).recipe.initial_lr == 0.05


def test_a_first_stage_without_the_cases_of_the_second_is_refused_before_it_trains(make, plans_file):
    content = json.loads(plans_file.read_text())
    content["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "small"}
    plans_file.write_text(json.dumps(content))
    data = plans_file.parent / "nnUNetPlans_3d_fullres"
    own = shutil.copytree(data, plans_file.parent / "nnUNetPlans_3d_lowres")
    links = {"data_identifier": own.name, "next_stage": "3d_cascade_fullres"}
    make("nnUNetTrainerNoSSM", settings=SHORT, **links).initialize()
    shutil.rmtree(data)
    with pytest.raises(
        Refused, match="'small' is the first stage of a cascade, .*nnUNetv2_preprocess .* -c 3d_fullres"
    ):
        make("nnUNetTrainerNoSSM", settings=SHORT, **links).initialize()


@pytest.mark.parametrize(("batch", "forced"), [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2)])
def test_the_foreground_that_is_said_is_what_nnunets_loader_forces(batch, forced, make, capsys):
    trainer = make("nnUNetTrainerLoGVMamba", batch_size=batch)
    trainer.initialize()
    loader = trainer.get_dataloaders()[0].data_loader
    assert sum(map(loader.get_do_oversample, range(batch))) == forced
    said = capsys.readouterr().out
    if forced:
        assert f"Foreground: {forced} of {batch} patch(es) of a batch placed on foreground" in said
    else:
        assert "ATTENTION: with a batch size of 1 nnU-Net places no patch on foreground" in said
        assert "set probabilistic_oversampling=true (logvmamba plans --train)" in said


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"probabilistic_oversampling": True}, plans.FOREGROUND_SHARE),
        ({"probabilistic_oversampling": True, "oversample_foreground_percent": 0.75}, 0.75),
        ({"oversample_foreground_percent": 1}, 1),
        ({"oversample_foreground_percent": 0}, 0),
    ],
)
def test_single_patches_are_placed_on_foreground_as_often_as_the_configuration_says(settings, share, make, capsys):
    trainer = make("nnUNetTrainerLoGVMamba", batch_size=1, settings=settings)
    trainer.initialize()
    loader = trainer.get_dataloaders()[0].data_loader
    assert np.mean([loader.get_do_oversample(0) for _ in range(3000)]) == pytest.approx(share, abs=0.04)
    assert "ATTENTION" not in capsys.readouterr().out


def test_the_share_that_is_assumed_is_that_of_nnunets_trainer(make):
    assert make("nnUNetTrainerStockNetwork").oversample_foreground_percent == plans.FOREGROUND_SHARE
    assert not make("nnUNetTrainerStockNetwork").probabilistic_oversampling


@pytest.mark.parametrize(
    ("settings", "base", "axes"),
    [({}, "3d_fullres", (0, 1, 2)), ({}, "2d", (0, 1)), ({"mirroring": False}, "3d_fullres", None)],
)
def test_patches_and_scans_are_mirrored_unless_the_configuration_says_no(settings, base, axes, make, tmp_path):
    trainer = make("nnUNetTrainerLoGVMamba", base, settings=settings)
    trainer.initialize()
    augmentation = trainer.get_dataloaders()[0].data_loader.transforms.transforms
    mirrors = [step for step in augmentation if isinstance(step, MirrorTransform)]
    assert [tuple(step.allowed_axes) for step in mirrors] == ([axes] if axes else [])
    trainer.save_checkpoint(str(tmp_path / "checkpoint_final.pth"))
    stored = torch.load(tmp_path / "checkpoint_final.pth", weights_only=False)
    assert stored["inference_allowed_mirroring_axes"] == axes


@pytest.mark.parametrize(("epochs", "every"), [(1, 1), (5, 1), (20, 2), (300, 30), (1000, 50), (4000, 50)])
def test_checkpoints_are_saved_ten_times_or_every_fifty_epochs(epochs, every, make):
    assert make(f"nnUNetTrainerLoGVMamba_{epochs}epochs").save_every == every


# Networks


@pytest.mark.parametrize(
    ("family", "labels"),
    [
        ("LoGVMamba", {"L-VMamba", "LoG-VMamba"}),
        ("LVMamba", {"L-VMamba"}),
        ("GVMamba", {"VSS", "G-VMamba"}),
        ("VMamba", {"VSS"}),
        ("NoSSM", {"NoSSM"}),
    ],
)
@pytest.mark.parametrize("base", ["2d", "3d_fullres"])
def test_each_family_builds_its_blocks_from_a_stock_plan(base, family, labels, make):
    trainer = make(f"nnUNetTrainer{family}_1epochs", base)
    trainer.initialize()
    assert mixer_labels(trainer) == labels
    assert any(isinstance(module, SelectiveSSM) for module in trainer.network.modules()) == (family != "NoSSM")


def test_an_ablation_changes_nothing_but_the_family_of_a_configuration_of_ours(make):
    trainer = make("nnUNetTrainerVMamba", knobs={"state_size": 5, "directions": 2})
    trainer.initialize()
    mixers = trainer.network.encoder.mixers
    assert mixer_labels(trainer) == {"VSS"}
    assert [(mixer.ssm.state_size, mixer.directions) for mixer in mixers] == [(5, 2)] * 2


def test_the_control_says_how_many_parameters_the_state_space_part_has(make, capsys):
    counts = {}
    for family in ("LoGVMamba", "NoSSM"):
        trainer = make(f"nnUNetTrainer{family}")
        trainer.initialize()
        counts[family] = sum(parameter.numel() for parameter in trainer.network.parameters())
    difference = counts["LoGVMamba"] - counts["NoSSM"]
    assert difference > 0
    sentence = (
        f"NoSSM has {counts['NoSSM']:,} parameters, LoG-VMamba {counts['LoGVMamba']:,}: "
        f"the state-space part accounts for {difference:,}."
    )
    assert sentence in capsys.readouterr().out
    assert sentence in Path(trainer.log_file).read_text()


def test_the_stock_network_is_nnunets_own(make):
    trainer = make("nnUNetTrainerStockNetwork_sgd")
    trainer.initialize()
    assert type(trainer.network) is PlainConvUNet


def test_deep_supervision_is_switched_as_in_nnunet(make):
    trainer = make("nnUNetTrainerLoGVMamba")
    trainer.initialize()
    image = torch.zeros(1, 1, 16, 16, 16)
    trainer.set_deep_supervision_enabled(True)
    assert [tuple(output.shape) for output in trainer.network(image)] == [(1, 3, 16, 16, 16), (1, 3, 8, 8, 8)]
    trainer.set_deep_supervision_enabled(False)
    assert trainer.network(image).shape == (1, 3, 16, 16, 16)


def test_a_single_head_is_trained_without_deep_supervision(make):
    trainer = make("nnUNetTrainerLoGVMamba", knobs={"seg_heads": "last"}, settings=SHORT)
    trainer.run_training()
    assert trainer.enable_deep_supervision is False
    assert len(trainer.network.decoder.seg_layers) == 1


def test_a_plan_of_two_stages_has_one_output_and_a_finite_loss(make):
    conv, norm = "torch.nn.modules.conv.Conv3d", "torch.nn.modules.instancenorm.InstanceNorm3d"
    arguments = {
        "n_stages": 2,
        "features_per_stage": [16, 32],
        "conv_op": conv,
        "kernel_sizes": [[3, 3, 3]] * 2,
        "strides": [[1, 1, 1], [2, 2, 2]],
        "norm_op": norm,
        "nonlin": "torch.nn.LeakyReLU",
    }
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }
    trainer = make("nnUNetTrainerLoGVMamba", architecture=architecture, settings=SHORT)
    trainer.run_training()
    assert np.isfinite(losses(trainer)).all()


def test_weights_are_also_taken_by_a_network_that_is_wrapped():
    network = LoGVMambaUNet(1, 2, [16, 16], torch.nn.Conv2d, 3, [1, 2], 2)
    network.register_load_state_dict_pre_hook(trainers._refuse_other_weights)
    wrapped = torch.nn.Sequential(network)
    wrapped.load_state_dict(wrapped.state_dict())
    weights = wrapped.state_dict()
    weights["0.decoder.seg_layers.0.bias"] = torch.zeros(5)
    with pytest.raises(RuntimeError, match="belong to another network .*'decoder.seg_layers.0.bias' has shape"):
        wrapped.load_state_dict(weights)


# Optimizers


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("paper", torch.optim.Adam),
        ("sgd", torch.optim.SGD),
    ],
)
def test_the_optimizer_is_that_of_the_recipe(recipe, kind, make):
    trainer = make(f"nnUNetTrainerLoGVMamba_{recipe}")
    trainer.initialize()
    assert type(trainer.optimizer) is kind
    expected = trainers.RECIPES[recipe]
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {expected.initial_lr}
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [expected.weight_decay, 0.0]
    if recipe == "sgd":
        assert {(group["momentum"], group["nesterov"]) for group in trainer.optimizer.param_groups} == {(0.99, True)}


@pytest.mark.parametrize("family", of_this_lineage())
def test_matrices_and_kernels_are_decayed_and_nothing_else(family, make):
    trainer = make(family, base_of(family))
    trainer.initialize()
    decayed, kept = ({id(p) for p in group["params"]} for group in trainer.optimizer.param_groups)
    names = {id(p): name for name, p in trainer.network.named_parameters()}
    assert decayed | kept == set(names)
    assert not decayed & kept
    exempt = ("bias", "A_log", ".D", "norm.weight", "norm1.weight", "norm2.weight", "norm3.weight")
    for parameter, name in names.items():
        assert (parameter in kept) == name.endswith(exempt), name


def test_the_paper_recipe_is_coupled_adam_at_one_in_ten_thousand():
    assert trainers.RECIPES["paper"] == trainers.Recipe("adam", 1e-4, 1e-4)
    assert trainers.RECIPES["adam"] == trainers.Recipe("adam", 1e-3, 1e-4)
    assert trainers.RECIPES["adam"] == trainers.DEFAULT_RECIPE
    assert trainers.RECIPES["sgd"] == trainers.Recipe("sgd", 1e-2, 3e-5)


@pytest.mark.parametrize("family", of_this_lineage())
def test_the_published_recipe_is_the_papers_and_that_of_nnunets_network_nnunets(family, make):
    published, paper, sgd = (make(f"{family}_{word}", base_of(family)).recipe for word in ("published", "paper", "sgd"))
    assert published == (sgd if family.endswith("StockNetwork") else paper)


def test_a_published_recipe_is_the_same_in_every_configuration(make):
    trainer = make("nnUNetTrainerStockNetwork_published", settings={**SHORT, "optimizer": "sgd", "initial_lr": 0.05})
    assert trainer.recipe == trainers.RECIPES["sgd"]


def test_an_unknown_optimizer_is_refused_by_whatever_names_it():
    assert recipes.OPTIMIZERS.keys() <= trainers.RECIPES.keys(), "each has a recipe of its name"
    valid = "unknown optimizer 'lion'.*valid are adam, adamw, sgd"
    with pytest.raises(ValueError, match=valid):
        trainers.Recipe("lion", 1e-4, 1e-2)
    with pytest.raises(ValueError, match=valid):
        plans.check_training_settings({"optimizer": "lion"})


def test_the_learning_rate_falls_as_nnunets_does(make):
    trainer = make("nnUNetTrainerLoGVMamba_paper_10epochs")
    trainer.initialize()
    trainer.lr_scheduler.step(5)
    for group in trainer.optimizer.param_groups:
        assert group["lr"] == pytest.approx(1e-4 * 0.5**0.9)


# Seeds


def losses(trainer) -> list[float]:
    return [*trainer.logger.get_value("train_losses", None), *trainer.logger.get_value("val_losses", None)]


def test_one_seed_gives_one_loss_curve_and_another_seed_another(make):
    curves = {}
    for run, seed in enumerate((1, 1, 2)):
        np.random.seed(run)  # noqa: NPY002 - whatever came before must not matter
        torch.manual_seed(run)
        trainer = make(f"nnUNetTrainerLoGVMamba_seed{seed}", settings=SHORT)
        trainer.run_training()
        curves[run] = losses(trainer)
    assert np.isfinite(curves[0]).all()
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


def kill_after_latest(filename: str) -> None:
    if Path(filename).name == "checkpoint_latest.pth":
        raise KeyboardInterrupt


def test_a_seeded_training_that_was_killed_continues_as_if_it_had_not_been(make, monkeypatch):
    unbroken = make("nnUNetTrainerLoGVMamba_seed3", settings=SHORT)
    unbroken.run_training()
    killed = make("nnUNetTrainerLoGVMamba_seed3", settings=SHORT)
    killed.save_checkpoint = lambda filename: (
        type(killed).save_checkpoint(killed, filename),
        kill_after_latest(filename),
    )
    with pytest.raises(KeyboardInterrupt):
        killed.run_training()
    continued = make("nnUNetTrainerLoGVMamba_seed3", settings=SHORT)
    moved = []
    with monkeypatch.context() as patched:  # on a GPU, nnU-Net leaves them there
        patched.setattr(torch.Tensor, "cpu", lambda tensor: moved.append(tensor) or tensor.clone())
        continued.load_checkpoint(str(Path(continued.output_folder) / "checkpoint_latest.pth"))
    steps = [state["step"] for state in continued.optimizer.state.values()]
    assert steps
    assert {id(step) for step in steps}.isdisjoint(map(id, moved))
    assert len(moved) >= len(steps)
    assert continued.current_epoch == 1
    continued.run_training()
    assert losses(continued) == losses(unbroken)


def test_a_seed_augments_in_the_main_process_whatever_the_variable_says(make, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = make("nnUNetTrainerStockNetwork_seed1")
    trainer.initialize()
    assert all(isinstance(loader, SingleThreadedAugmenter) for loader in trainer.get_dataloaders())
    monkeypatch.delenv("nnUNet_n_proc_DA")
    assert all(isinstance(loader, SingleThreadedAugmenter) for loader in trainer.get_dataloaders())


# What is refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"settings": {"lr": 1}}, "unknown setting 'lr' under 'logvmamba'; valid are num_epochs, .*, seed"),
        ({"settings": {"optimizer": "lion"}}, "unknown optimizer 'lion'.*valid are adam, adamw, sgd"),
        ({"settings": {"num_epochs": 0}}, "'num_epochs' under 'logvmamba' must be a whole number of at least 1, not 0"),
        ({"settings": {"initial_lr": "1e-3"}}, "'initial_lr' under 'logvmamba' must be a number above 0, not '1e-3'"),
        ({"settings": ["seed"]}, "'logvmamba' in a configuration must be a table"),
        ({"knobs": {"placement": "haed"}}, "unknown placement 'haed'; valid are .*'interleaved'"),
        ({"knobs": {"backend": "fast"}}, "Unknown scan backend 'fast'; choose one of: auto, "),
        ({"knobs": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"knobs": {"squeeze": 5, "local_token_stages": [0]}}, "16 channels, which squeeze 5 does not divide"),
        (
            {"architecture": {"network_class_name": "some.Transformer", "arch_kwargs": {}, "_kw_requires_import": []}},
            "cannot translate the network 'some.Transformer' of this plan: our trainers take PlainConvUNet and",
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(changes, sentence, make, nnunet_folders):
    with pytest.raises(RuntimeError, match=sentence) as error:
        make("nnUNetTrainerLoGVMamba", **changes)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, SystemExit)  # nnU-Net's commands end with the sentence, without a traceback
    assert results(nnunet_folders) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": {"background": 0, "shell": 1, "core": 4}}, "no label has the number 2 although there is 4"),
        ({"channel_names": {"MR": "0"}}, "'channel_names' must have the numbers of the channels before their names"),
        ({"modality": {"MR": "1"}}, "'modality' must have the numbers of the channels before their names"),
    ],
)
def test_a_dataset_json_that_cannot_be_trained_with_is_refused_before_a_folder_is_made(
    changes, sentence, make, plans_file, nnunet_folders, monkeypatch
):
    file = plans_file.with_name("dataset.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(Refused, match=f"{file}: {sentence}"):
        make("nnUNetTrainerLoGVMamba")
    assert results(nnunet_folders) == []
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "--val"])
    make("nnUNetTrainerLoGVMamba")  # a model that was made with it is validated all the same


def test_regions_whose_numbers_have_a_gap_are_trained_as_nnunet_does(make, plans_file):
    for file in (plans_file.parent / "nnUNetPlans_3d_fullres").glob("*.pkl"):
        properties = pickle.loads(file.read_bytes())
        properties["class_locations"] = {
            (1, 4): np.concatenate([properties["class_locations"][label] for label in (1, 2)]),
            (4,): properties["class_locations"][2],
        }
        file.write_bytes(pickle.dumps(properties))
    for file in (plans_file.parent / "nnUNetPlans_3d_fullres").glob("*_seg.b2nd"):
        values = blosc2.open(str(file), mode="r")[:]
        file.unlink()
        blosc2.asarray(np.where(values == 2, 4, values), urlpath=str(file))
    file = plans_file.with_name("dataset.json")
    regions = {"labels": {"background": 0, "ball": [1, 4], "core": [4]}, "regions_class_order": [1, 4]}
    file.write_text(json.dumps({**json.loads(file.read_text()), **regions}))
    trainer = make("nnUNetTrainerLoGVMamba", settings=SHORT)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", None)).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a computer without CUDA")
def test_a_forgotten_device_ends_the_stock_command_with_one_sentence_before_anything_is_written(
    plans_file, nnunet_folders, run_command
):
    before = {path: path.stat().st_mtime_ns for path in plans_file.parent.rglob("*")}
    command = ["nnUNetv2_train", small_dataset.NUMBER, "3d_fullres", 0, "-tr", "nnUNetTrainerLoGVMamba"]
    quiet = {"PYTHONWARNINGS": "ignore::FutureWarning"}  # of torch 2.15, at torchvision
    done = run_command(command, check=False, **nnunet_folders.environment, **quiet)
    assert done.returncode == 1
    said, *rest = done.stderr.splitlines()
    assert re.match("CUDA is nnU-Net's default, .* finds no CUDA device here: run the command with -device ", said)
    assert not rest, "neither a traceback nor what torchvision has to say"
    assert results(nnunet_folders) == []
    assert {path: path.stat().st_mtime_ns for path in plans_file.parent.rglob("*")} == before


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_before_a_folder_is_made(device, plans_file, nnunet_folders):
    if {"cuda": torch.cuda, "mps": torch.backends.mps}[device].is_available():
        pytest.skip(f"needs a computer without {device}")
    with pytest.raises(RuntimeError, match="-device cpu") as end:
        run_training(small_dataset.NUMBER, "2d", 0, "nnUNetTrainerStockNetwork", device=torch.device(device))
    assert isinstance(end.value, SystemExit)  # which ends a command without a traceback
    assert results(nnunet_folders) == []


def test_a_configuration_that_is_not_in_the_plans_is_refused_before_a_folder_is_made(plans_file, nnunet_folders):
    with pytest.raises(
        RuntimeError, match="3d_fulres not found in plans. Available configurations: .*3d_fullres"
    ) as end:
        run_training(small_dataset.NUMBER, "3d_fulres", 0, "nnUNetTrainerLoGVMambaSwin", device=torch.device("cpu"))
    assert isinstance(end.value, SystemExit)
    assert results(nnunet_folders) == []


@pytest.mark.parametrize("leave", [shutil.rmtree, lambda folder: [file.unlink() for file in folder.iterdir()]])
def test_data_that_are_not_preprocessed_are_refused_before_a_folder_is_made(leave, plans_file, nnunet_folders):
    leave(plans_file.parent / "nnUNetPlans_2d")  # or an interrupted preprocessing has left it empty
    words = (small_dataset.NUMBER, "2d", 0, "nnUNetTrainerLoGVMamba")
    command = "run nnUNetv2_preprocess -d 998 -plans_name nnUNetPlans -c 2d first"
    for continues in (False, True):
        with pytest.raises(RuntimeError, match=f"/nnUNetPlans_2d holds no preprocessed case of .*: {command}") as end:
            run_training(*words, continue_training=continues, device=torch.device("cpu"))
        assert isinstance(end.value, SystemExit)
        if not continues:
            assert results(nnunet_folders) == []


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("nnUNet_results", None, "nnUNet_results is not set: export nnUNet_results="),
        ("nnUNet_results", "", "nnUNet_results is not set: export nnUNet_results="),
        ("nnUNet_results", "~/results", "nnUNet_results is ~/results, in which nnU-Net does not replace ~"),
        ("nnUNet_preprocessed", None, "nnUNet_preprocessed is not set: export nnUNet_preprocessed="),
    ],
)
def test_a_folder_of_nnunets_that_is_not_set_is_named_before_a_folder_is_made(
    variable, value, said, make, nnunet_folders, monkeypatch
):
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(nnunet_folders.raw)
    with pytest.raises(RuntimeError, match=said) as end:
        make("nnUNetTrainerLoGVMamba")
    assert isinstance(end.value, SystemExit)
    assert [*nnunet_folders.raw.iterdir(), *results(nnunet_folders)] == []


def test_the_stock_network_is_not_taken_from_a_configuration_of_ours(make, nnunet_folders):
    with pytest.raises(RuntimeError, match="this configuration names LoG-VMamba: use nnU-Net's own configuration"):
        make("nnUNetTrainerStockNetwork", knobs={})
    assert results(nnunet_folders) == []


def save(trainer, path: Path) -> str:
    trainer.initialize()
    trainer.save_checkpoint(str(path))
    return str(path)


@pytest.mark.parametrize("writer", ["nnUNetTrainerNoSSM", "nnUNetTrainerStockNetwork", "nnUNetTrainerLoGVMamba_seed1"])
def test_the_checkpoint_of_another_trainer_is_refused_and_nothing_changes(writer, make, tmp_path):
    checkpoint = save(make(writer, settings=SHORT), tmp_path / "checkpoint_latest.pth")
    trainer = make("nnUNetTrainerLoGVMamba", settings=SHORT)
    trainer.initialize()
    before = deepcopy(trainer.network.state_dict())
    with pytest.raises(RuntimeError, match=f"checkpoint_latest.pth was written by the trainer {writer}, not by"):
        trainer.load_checkpoint(checkpoint)
    assert all(torch.equal(value, before[key]) for key, value in trainer.network.state_dict().items())


def test_the_checkpoint_of_another_network_is_refused_and_nothing_changes(make, tmp_path):
    checkpoint = save(make("nnUNetTrainerLoGVMamba", knobs={"state_size": 4}), tmp_path / "checkpoint_latest.pth")
    trainer = make("nnUNetTrainerLoGVMamba", knobs={"state_size": 8})
    trainer.initialize()
    init_arguments = trainer.my_init_kwargs
    with pytest.raises(RuntimeError, match=r"another network than configuration 'small' builds \('.*A_log' has shape"):
        trainer.load_checkpoint(checkpoint)
    assert trainer.my_init_kwargs is init_arguments


def test_weights_of_another_network_are_refused_in_one_sentence_by_whoever_loads_them(make):
    small, large = (make("nnUNetTrainerLoGVMamba", knobs={"state_size": size}) for size in (4, 8))
    small.initialize()
    large.initialize()
    with pytest.raises(RuntimeError, match="belong to another network than the plans describe") as error:
        small.network.load_state_dict(large.network.state_dict())
    assert "\n" not in str(error.value)
    small.network.load_state_dict(deepcopy(small.network.state_dict()))


def test_a_checkpoint_of_the_same_trainer_and_network_is_loaded(make, tmp_path):
    writer = make("nnUNetTrainerGVMamba_sgd", settings=SHORT)
    checkpoint = save(writer, tmp_path / "checkpoint_latest.pth")
    reader = make("nnUNetTrainerGVMamba_sgd", settings=SHORT)
    reader.load_checkpoint(checkpoint)
    expected = writer.network.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in reader.network.state_dict().items())
