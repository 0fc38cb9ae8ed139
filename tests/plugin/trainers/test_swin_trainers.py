"""Trainers of the published 2D network: its own stages on any 2D plan, and an encoder that may start from ImageNet."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import small_dataset
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_logvmamba.networks import LoGVMambaSwinUNet, SwinUMamba
from nnunet_logvmamba.plugin import plans, trainers
from nnunet_logvmamba.plugin.recipes import PUBLISHED_RECIPES
from nnunet_logvmamba.plugin.trainers import pretraining

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "seed": 1}
SMALL = {"network": plans.SWIN_CLASS_NAME, "features_per_stage": [8, 8, 16, 24, 32], "n_blocks_per_stage": [1, 1, 2, 1]}
LOG, VSS = "nnUNetTrainerLoGVMambaSwin", "nnUNetTrainerVMambaSwin"


@pytest.fixture(autouse=True)
def _no_weights_of_the_user(monkeypatch):
    monkeypatch.delenv(pretraining.VARIABLE, raising=False)


@pytest.fixture
def plans_file(nnunet_folders) -> Path:
    return small_dataset.copy_into(nnunet_folders)


@pytest.fixture
def make(plans_file):
    """Make a trainer on patches of 16 x 20 pixels; None for ``knobs`` leaves the network as nnU-Net planned it."""

    def make(
        name: str,
        base: str = "2d",
        *,
        knobs: dict | None = SMALL,
        settings: dict = SHORT,
        trainer_class=None,
        continues=False,
    ):
        content = json.loads(plans_file.read_text())
        dataset = json.loads((plans_file.parent / "dataset.json").read_text())
        configuration = content["configurations"]["small"] = deepcopy(content["configurations"][base])
        if base == "2d":
            configuration["patch_size"] = [16, 20]
        if knobs is not None:
            configuration["architecture"] = plans.to_our_architecture(
                configuration["architecture"], configuration["patch_size"], **knobs
            )
        configuration[plans.TRAINING_KEY] = settings
        content["continue_training"] = continues
        trainer_class = trainer_class or getattr(trainers, name)
        return trainer_class(content, "small", 0, dataset, torch.device("cpu"))

    return make


@pytest.fixture
def checkpoint(make, tmp_path) -> Path:
    """Weights for the small encoder under published names, none of which is what an encoder starts with."""
    trainer = make(LOG)
    trainer.initialize()
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for key, value in trainer.network.encoder.state_dict().items():
        theirs = key
        if key.startswith("mergers."):
            index, rest = key.split(".", 2)[1:]
            theirs = f"layers.{index}.downsample.{rest}"
        elif key.startswith("stages."):
            stage, block, rest = key.split(".", 3)[1:]
            for ours, published in (
                ("local_tokens.conv.", "conv2d."),
                ("ssm.dt_proj_weight", "dt_projs_weight"),
                ("ssm.dt_bias", "dt_projs_bias"),
                ("ssm.A_log", "A_logs"),
                ("ssm.x_proj_weight", "x_proj_weight"),
                ("ssm.D", "Ds"),
            ):
                rest = rest.replace(ours, published)
            mixer = "ln_1." + rest.removeprefix("norm.") if rest.startswith("norm.") else f"self_attention.{rest}"
            theirs = f"layers.{stage}.blocks.{block}.{mixer}"
        tensors[theirs] = 0.1 * torch.rand(value.shape, generator=generator)
    tensors["head.weight"] = torch.zeros(7, 32)
    torch.save({"model": tensors}, tmp_path / "vmamba_tiny_e292.pth")
    return tmp_path / "vmamba_tiny_e292.pth"


def encoder_of(trainer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in trainer.network.encoder.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())


def results(folders) -> list[Path]:
    return list(folders.results.rglob("*"))


# The network


@pytest.mark.parametrize(("name", "family", "directions"), [(LOG, "LoG-VMamba", 1), (VSS, "VSS", 4)])
def test_a_stock_2d_plan_gives_the_published_network(name, family, directions, make):
    trainer = make(name, knobs=None)
    trainer.initialize()
    network = trainer.network
    assert type(network) is LoGVMambaSwinUNet
    assert {setting.label for setting in network.settings} == {family}
    assert {block.directions for stage in network.decoder.stages for block in stage} == {directions}
    assert [len(stage) for stage in network.encoder.stages] == [2, 2, 9, 2]
    assert [stage[0].norm.normalized_shape[0] for stage in network.encoder.stages] == [96, 192, 384, 768]
    assert trainer.recipe == trainers.RECIPES["paper"]


def test_targets_are_resampled_to_the_four_scales_of_the_network(make):
    trainer = make(LOG, knobs=None)
    assert trainer._get_deep_supervision_scales() == [[1.0, 1.0], [0.25, 0.25], [0.125, 0.125], [0.0625, 0.0625]]


def test_branches_are_dropped_in_training_and_the_rate_rises_and_falls_as_published(make):
    trainer = make(LOG, knobs=None)
    trainer.initialize()
    network = trainer.network
    rising = [block.drop_path.probability for stage in network.encoder.stages for block in stage]
    falling = [block.drop_path.probability for stage in network.decoder.stages for block in stage]
    assert rising == sorted(rising)
    assert (rising[0], rising[-1], len(rising)) == (0.0, 0.2, 15)
    assert falling == sorted(falling, reverse=True)
    assert (falling[0], falling[-1], len(falling)) == (0.2, 0.0, 6)


@pytest.mark.parametrize("name", [LOG, VSS])
def test_a_training_ends_with_finite_losses_and_plans_that_describe_the_network(name, make):
    trainer = make(name)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", None)).all()
    saved = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
    architecture = saved["configurations"]["small"]["architecture"]
    assert architecture["network_class_name"] == plans.SWIN_CLASS_NAME
    assert architecture["arch_kwargs"].get("family", "log") == ("log" if name == LOG else "vss")


SWIN_UMAMBA = "nnUNetTrainerSwinUMamba"
SMALL_SWIN_UMAMBA = {
    "network": "nnunet_logvmamba.networks.SwinUMamba",
    "features_per_stage": [6, 8, 16],
    "strides": [[1, 1], [2, 2], [4, 4]],
    "n_blocks_per_stage": [1, 1],
}


@pytest.mark.parametrize(
    ("name", "network", "coarsest"), [(SWIN_UMAMBA, SwinUMamba, 0.125), (f"{SWIN_UMAMBA}D", LoGVMambaSwinUNet, 0.0625)]
)
def test_swin_umamba_is_trained_by_its_authors_names_with_its_scales_and_its_recipe(name, network, coarsest, make):
    trainer = make(name, knobs=None)
    assert trainer._get_deep_supervision_scales()[-1] == [coarsest] * 2
    assert trainer.recipe == make(f"{name}_published", knobs=None).recipe == PUBLISHED_RECIPES["swin_umamba"]
    trainer.initialize()
    assert type(trainer.network) is network
    assert type(trainer.optimizer) is torch.optim.AdamW
    assert {group["eps"] for group in trainer.optimizer.param_groups} == {1e-5}
    if name.endswith("D"):
        assert {setting.label for setting in trainer.network.settings} == {"VSS"}


def test_a_training_of_swin_umamba_ends_with_finite_losses(make):
    trainer = make(SWIN_UMAMBA, knobs=SMALL_SWIN_UMAMBA)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", None)).all()


def test_nnunets_own_trainer_builds_and_trains_a_configuration_that_names_the_network(make):
    trainer = make("", trainer_class=nnUNetTrainer)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 1, 1
    trainer.run_training()
    assert type(trainer.network) is LoGVMambaSwinUNet
    assert np.isfinite(trainer.logger.get_value("train_losses", None)).all()


def test_the_trainer_of_the_u_net_lineage_takes_such_a_configuration_as_it_stands(make):
    trainer = make("nnUNetTrainerLoGVMamba")
    trainer.initialize()
    assert type(trainer.network) is LoGVMambaSwinUNet


# A pretrained encoder


def test_swin_umambas_encoder_is_kept_for_ten_epochs_while_its_patch_embedding_learns(make, checkpoint, monkeypatch):
    monkeypatch.setenv(pretraining.VARIABLE, str(checkpoint))
    knobs = {
        **SMALL_SWIN_UMAMBA,
        "features_per_stage": [6, *SMALL["features_per_stage"][1:]],
        "strides": [[1, 1], *[[2, 2]] * 3, [4, 4]],
        "n_blocks_per_stage": SMALL["n_blocks_per_stage"],
    }
    trainer = make(SWIN_UMAMBA, knobs=knobs)
    trainer.initialize()
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    own = {key for key in encoder_of(trainer) if key.startswith("patch_embed.")}
    assert trainer.pretrained_parameters == encoder_of(trainer).keys() - own
    trainer.run_training()
    after = trainer.network.state_dict()
    for key in (key for key in before if key.startswith(("encoder.", "stem."))):
        kept = key.removeprefix("encoder.") in trainer.pretrained_parameters
        assert torch.equal(before[key], after[key]) == kept, key


@pytest.mark.parametrize("asker", ["variable", "configuration"])
def test_an_encoder_starts_from_the_weights_that_were_asked_for(asker, make, checkpoint, monkeypatch, capsys):
    settings = dict(SHORT)
    if asker == "variable":
        monkeypatch.setenv(pretraining.VARIABLE, str(checkpoint))
        settings["pretrained"] = "/nowhere/else.pth"  # the variable beats the configuration
    else:
        settings["pretrained"] = str(checkpoint)
    trainer = make(LOG, settings=settings)
    trainer.initialize()
    assert trainer.pretrained_parameters == set(trainer.network.encoder.state_dict())
    weights = torch.load(checkpoint, weights_only=True)["model"]
    assert torch.equal(trainer.network.encoder.stages[2][1].ssm.D, weights["layers.2.blocks.1.self_attention.Ds"])
    log = Path(trainer.log_file).read_text()
    assert "this training has 2, so the encoder will never learn" in log
    assert "Pretrained encoder vmamba_tiny_e292.pth" in log
    assert "100.0% of its parameters; not used: head.weight; not in the file: none" in log
    report = json.loads((Path(trainer.output_folder) / pretraining.REPORT).read_text())
    assert (report["checkpoint"], report["share"], report["missing"]) == ("vmamba_tiny_e292.pth", 1.0, [])


def random_batch(trainer) -> dict:
    generator = torch.Generator().manual_seed(0)
    channels, classes = trainer.num_input_channels, trainer.label_manager.num_segmentation_heads
    scales = [(16, 20), (4, 5), (2, 2), (1, 1)]
    return {
        "data": torch.randn(2, channels, 16, 20, generator=generator),
        "target": [torch.randint(0, classes, (2, 1, *size), generator=generator) for size in scales],
    }


def test_a_pretrained_encoder_is_kept_for_ten_epochs_while_the_decoder_learns(make, checkpoint, monkeypatch):
    monkeypatch.setenv(pretraining.VARIABLE, str(checkpoint))
    trainer = make(LOG, settings={**SHORT, "num_epochs": 20})
    trainer.initialize()
    trainer.network.train()
    before, decoder = encoder_of(trainer), deepcopy(trainer.network.decoder.state_dict())
    trainer.current_epoch = 9
    trainer.train_step(random_batch(trainer))
    assert equal(before, encoder_of(trainer))
    assert not equal(decoder, trainer.network.decoder.state_dict())
    trainer.current_epoch = 10
    trainer.train_step(random_batch(trainer))
    after = encoder_of(trainer)
    assert not any(torch.equal(after[key], before[key]) for key in before if key.endswith("in_proj.weight"))
    assert all(parameter.requires_grad for parameter in trainer.network.parameters())


@pytest.mark.parametrize("how", ["scaled", "compiled"])
def test_the_encoder_is_kept_under_a_gradient_scaler_and_in_a_compiled_network_too(how, make, checkpoint, monkeypatch):
    monkeypatch.setenv(pretraining.VARIABLE, str(checkpoint))
    trainer = make(LOG)
    trainer.initialize()
    before, decoder = encoder_of(trainer), deepcopy(trainer.network.decoder.state_dict())
    whole = trainer.network
    if how == "scaled":
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    else:
        trainer.network = torch.compile(whole, backend="eager")
    trainer.network.train()
    trainer.train_step(random_batch(trainer))
    assert equal(before, {key: value.clone() for key, value in whole.encoder.state_dict().items()})
    assert not equal(decoder, whole.decoder.state_dict())


def test_what_the_checkpoint_lacked_learns_at_once(make, checkpoint, monkeypatch):
    content = torch.load(checkpoint, weights_only=True)
    del content["model"]["layers.3.blocks.0.self_attention.Ds"]
    torch.save(content, checkpoint)
    monkeypatch.setenv(pretraining.VARIABLE, str(checkpoint))
    trainer = make(LOG)
    trainer.initialize()
    trainer.network.train()
    before = encoder_of(trainer)
    trainer.train_step(random_batch(trainer))
    changed = {key for key, value in encoder_of(trainer).items() if not torch.equal(value, before[key])}
    assert changed == {"stages.3.0.ssm.D"}


def test_naming_the_optimizer_of_the_papers_recipe_changes_nothing(make):
    assert make(LOG, settings={**SHORT, "optimizer": "adam"}).recipe == trainers.RECIPES["paper"]
    assert make(LOG, settings={**SHORT, "optimizer": "sgd"}).recipe == trainers.RECIPES["sgd"]


def test_without_weights_the_log_says_so_aloud_and_the_encoder_learns_at_once(make, checkpoint, monkeypatch, capsys):
    monkeypatch.setenv(pretraining.VARIABLE, str(checkpoint))
    make(LOG).initialize()  # leaves a report that the next training must not inherit
    monkeypatch.delenv(pretraining.VARIABLE)
    trainer = make(LOG)
    trainer.initialize()
    trainer.network.train()
    before = encoder_of(trainer)
    trainer.train_step(random_batch(trainer))
    assert not equal(before, encoder_of(trainer))
    assert "ATTENTION: no pretrained encoder was asked for, so it starts from random weights" in capsys.readouterr().out
    assert not (Path(trainer.output_folder) / pretraining.REPORT).exists()


def test_a_continued_training_keeps_the_encoder_without_the_file(make, checkpoint, monkeypatch):
    monkeypatch.setenv(pretraining.VARIABLE, str(checkpoint))
    writer = make(LOG)
    writer.initialize()
    saved = str(Path(writer.output_folder) / "checkpoint_latest.pth")
    writer.save_checkpoint(saved)
    checkpoint.unlink()
    reader = make(LOG, continues=True)
    reader.load_checkpoint(saved)
    reader.network.train()
    before = encoder_of(reader)
    assert reader.pretrained_parameters == set(before)
    assert equal(before, encoder_of(writer))
    reader.train_step(random_batch(reader))
    assert equal(before, encoder_of(reader))


# What is refused


@pytest.mark.parametrize("asker", ["variable", "configuration"])
def test_weights_that_were_asked_for_and_are_missing_end_the_training_before_a_folder_is_made(
    asker, make, nnunet_folders, monkeypatch
):
    settings = dict(SHORT)
    if asker == "variable":
        monkeypatch.setenv(pretraining.VARIABLE, "/nowhere/vmamba.pth")
    else:
        settings["pretrained"] = "/nowhere/vmamba.pth"
    with pytest.raises(
        RuntimeError, match="asks for the pretrained encoder /nowhere/vmamba.pth, which is not there: "
    ) as e:
        make(LOG, settings=settings)
    assert "\n" not in str(e.value)
    assert results(nnunet_folders) == []


def test_a_checkpoint_of_another_architecture_is_refused_in_one_sentence(make, tmp_path, monkeypatch, nnunet_folders):
    torch.save({"model": {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}}, tmp_path / "resnet50.pth")
    monkeypatch.setenv(pretraining.VARIABLE, str(tmp_path / "resnet50.pth"))
    with pytest.raises(
        RuntimeError, match=r"resnet50.pth does not fit .*names are not those of VMamba; .* 0.0%"
    ) as error:
        make(LOG)
    assert "\n" not in str(error.value)
    assert results(nnunet_folders) == []


def test_a_training_of_the_u_net_lineage_is_not_continued_with_the_other_network(make, tmp_path):
    writer = make("nnUNetTrainerLoGVMamba", knobs={})
    writer.initialize()
    writer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    with pytest.raises(RuntimeError, match="was written by the trainer nnUNetTrainerLoGVMamba, not by"):
        make(LOG).load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))


@pytest.mark.parametrize(
    ("base", "knobs", "settings", "sentence"),
    [
        ("3d_fullres", None, SHORT, "LoGVMambaSwinUNet is a 2D network and this configuration is 3D: take the .* 2d"),
        ("2d", {}, SHORT, "names LoGVMambaUNet and not LoGVMambaSwinUNet: take nnU-Net's own configuration"),
        ("2d", None, {"pretrained": 3}, "'pretrained' under 'logvmamba' must be the path of a checkpoint, not 3"),
    ],
    ids=["3D", "another network of ours", "no path"],
)
def test_what_cannot_be_this_network_is_refused(base, knobs, settings, sentence, make, nnunet_folders):
    with pytest.raises(RuntimeError, match=sentence) as error:
        make(LOG, base, knobs=knobs, settings=settings)
    assert "\n" not in str(error.value)
    assert results(nnunet_folders) == []


def test_a_network_without_such_an_encoder_says_that_it_does_not_use_the_weights(make):
    trainer = make("nnUNetTrainerLoGVMamba", knobs=None, settings={"pretrained": "vmamba.pth"})
    trainer.initialize()
    assert "'pretrained' is for LoGVMambaSwinUNet or SwinUMamba and is not used" in Path(trainer.log_file).read_text()


@pytest.mark.parametrize("name", [LOG, "nnUNetTrainerLoGVMamba"])
def test_an_image_with_another_number_of_channels_is_named(name, make):
    trainer = make(name, knobs=SMALL if name == LOG else {})
    trainer.initialize()
    with pytest.raises(ValueError, match=r"the image has 4 channel\(s\) and the network was built for 1: give every"):
        trainer.network(torch.zeros(1, 4, 32, 32))
