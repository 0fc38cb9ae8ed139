"""What a misspelt name of a trainer is taken for, and what is not taken for one of ours."""

import pytest

from nnunet_logvmamba.plugin import trainers
from nnunet_logvmamba.plugin.trainer_names import nearest_name

FAMILIES = tuple(trainers.TRAINER_OF_FAMILY)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("nnUNetTrainerLogVMamba", "LoGVMamba"),
        ("nnUnetTrainerLoGVMamba", "LoGVMamba"),
        ("nnunettrainerlogvmamba", "LoGVMamba"),
        ("nnUNetTraienrLoGVMamba", "LoGVMamba"),
        ("nnUNetLoGVMamba", "LoGVMamba"),
        ("TrainerVMamba", "VMamba"),
        ("LoGVMamba", "LoGVMamba"),
        ("LoG-VMamba", "LoGVMamba"),
        ("nnUNetTrainer_LoG_VMamba", "LoGVMamba"),
        ("nnUNetTrainerLoGMamba", "LoGVMamba"),
        ("nnUNetTrainerNoSSm", "NoSSM"),
        ("nnUNetTrainerStockNet", "StockNetwork"),
        ("nnUNetTrainerSwinVMamba", "VMambaSwin"),
        ("nnUNetTrainerLogVMambaSwim", "LoGVMambaSwin"),
        ("nnUNetTrainerLoGVMamba_sdg", "LoGVMamba_sgd"),
        ("nnUNetTrainerLoGVMambaSGD", "LoGVMamba_sgd"),
        ("nnUNetTrainerLoGVMamba-adam", "LoGVMamba_adam"),
        ("nnUNetTrainerLoGVMamba-AdamW", "LoGVMamba_adamw"),
        ("nnUNetTrainerLoGVMambaadamw5epoch", "LoGVMamba_adamw_5epochs"),
        ("nnUNetTrainerLoGVMamba_Papr", "LoGVMamba_paper"),
        ("nnUNetTrainerLoGVMamba_publishd", "LoGVMamba_published"),
        ("nnUNetTrainerLoGVMamba_lion", "LoGVMamba"),
        ("nnUNetTrainerLoGVMamba_5epoch", "LoGVMamba_5epochs"),
        ("nnUNetTrainerLoGVMamba_5_epochs", "LoGVMamba_5epochs"),
        ("nnUNetTrainerLoGVMamba_epochs5", "LoGVMamba_5epochs"),
        ("nnUNetTrainerLoGVMamba5epochs", "LoGVMamba_5epochs"),
        ("nnUNetTrainerLoGVMamba_05epcohs", "LoGVMamba_5epochs"),
        ("nnUNetTrainerLoGVMamba_0epochs", "LoGVMamba"),
        ("nnUNetTrainerLoGVMamba_seed_1", "LoGVMamba_seed1"),
        ("nnUNetTrainerLoGVMamba_1seed", "LoGVMamba_seed1"),
        ("nnUNetTrainerLoGVMamba_sede01", "LoGVMamba_seed1"),
        ("nnUNetTrainerLoGVMamba_seed", "LoGVMamba"),
        ("nnUNetTrainerLoGVMamba_seed1_sgd", "LoGVMamba_sgd_seed1"),
        ("nnUNetTrainerLoGVMamba_seed1_5epochs", "LoGVMamba_5epochs_seed1"),
        ("nnUNetTrainerLoGVMamba_epochs5_1seed", "LoGVMamba_5epochs_seed1"),
        ("logvmambaswin_seed3_20epoch_SGD", "LoGVMambaSwin_sgd_20epochs_seed3"),
    ],
)
def test_the_nearest_name_is_a_valid_one_with_the_parts_that_were_typed(typed, meant):
    nearest = nearest_name(typed, FAMILIES)
    assert nearest == f"nnUNetTrainer{meant}"
    assert getattr(trainers, nearest).__name__ == nearest


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_nearest_to_itself(family):
    name = f"nnUNetTrainer{family}_sgd_20epochs_seed17"
    for typed in (name, name.lower(), name.upper(), name.removeprefix("nnUNetTrainer"), name.replace("_", "-")):
        assert nearest_name(typed, FAMILIES) == name


@pytest.mark.parametrize(
    "typed",
    [
        "nnUNetTrainer",
        "nnUNetTrainer_5epoch",
        "nnUNetTrainerUMambaEnc",
        "nnUNetTrainerSwinUNETR",
        "nnUNetTrainerNoDA_10epochs_seed1",
        "nnUNetTrainerAdam",
        "nnUNetTrainerOfTheUser",
        "__path__",
        "",
    ],
)
def test_names_of_others_are_left_to_nnunet(typed):
    assert nearest_name(typed, FAMILIES) is None
