"""What nnU-Net promises us and what we promise nnU-Net; a new release that moves any of it fails here first."""

import inspect
from importlib.metadata import version

import pytest
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities import default_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_logvmamba import networks
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.networks.contract import PlannedNetwork
from nnunet_logvmamba.plugin import plans, trainers

FAMILIES = [getattr(trainers, f"nnUNetTrainer{family}") for family in trainers.TRAINER_OF_FAMILY]


def parameters(function) -> list[tuple]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_nnunet_is_within_the_window_we_declare():
    assert version("nnunetv2").startswith("2.8.")


@pytest.mark.parametrize("trainer", FAMILIES)
def test_networks_are_built_through_nnunets_own_signature(trainer):
    assert parameters(trainer.build_network_architecture) == parameters(nnUNetTrainer.build_network_architecture)
    assert isinstance(inspect.getattr_static(trainer, "build_network_architecture"), staticmethod)


@pytest.mark.parametrize("trainer", FAMILIES)
def test_the_constructor_keeps_nnunets_five_arguments(trainer):
    assert parameters(trainer.__init__) == parameters(nnUNetTrainer.__init__)
    assert [name for name, *_ in parameters(trainer.__init__)] == [
        "self",
        "plans",
        "configuration",
        "fold",
        "dataset_json",
        "device",
    ]


@pytest.mark.parametrize("trainer", [trainers.RecipeTrainer, *FAMILIES])
def test_every_method_we_override_exists_upstream_with_the_same_arguments(trainer):
    ours = {name for name, value in vars(trainer).items() if inspect.isfunction(value) and not name.startswith("__")}
    upstream = ours & set(dir(nnUNetTrainer))
    new = {"_refuse_foreign_checkpoint", "_seed_everything"}
    new |= {"_bare_network", "_start_encoder", "_keep_pretrained_encoder", "_compile_scans"}
    assert ours - upstream <= new, f"{sorted(ours - upstream - new)} would never be called by nnU-Net"
    for name in upstream:
        assert parameters(getattr(trainer, name)) == parameters(getattr(nnUNetTrainer, name)), name


def test_the_number_of_augmentation_workers_follows_its_variable(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert default_n_proc_DA.get_allowed_n_proc_DA() == 0


def test_nnunet_keeps_keys_of_a_configuration_that_it_does_not_know():
    manager = PlansManager(
        {"configurations": {"a": {"architecture": {}, "logvmamba": {"seed": 1}}, "b": {"inherits_from": "a"}}}
    )
    assert manager.get_configuration("b").configuration[plans.TRAINING_KEY] == {"seed": 1}


def test_the_names_written_into_plans_lead_to_our_networks():
    for network in catalogue.NETWORKS:
        module, _, name = network.path.rpartition(".")
        assert module == networks.__name__
        assert getattr(networks, name) is network.load()


@pytest.mark.parametrize("stock", [PlainConvUNet, ResidualEncoderUNet])
def test_every_argument_we_keep_is_one_of_the_stock_network_and_of_ours(stock):
    said = {"input_channels", "num_classes", "deep_supervision"}
    assert {*said, *PlannedNetwork.plan_arguments} <= set(inspect.signature(stock).parameters)
    for network in (entry.load() for entry in catalogue.NETWORKS):
        assert {*said, *network.plan_arguments} <= set(inspect.signature(network).parameters)
