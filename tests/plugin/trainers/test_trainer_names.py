"""What a misspelt name of a trainer is taken for, and what is not taken for one of ours."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_logvmamba.plugin import trainers
from nnunet_logvmamba.plugin.recipes import WORDS
from nnunet_logvmamba.plugin.trainer_names import PREFIX, nearest_name, parts_of

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
        ("nnUNetTrainerSwinUmamba", "SwinUMamba"),
        ("nnUNetTrainerSwinUMamba_D", "SwinUMambaD"),
        ("nnUNetTrainerUMamba_Enc", "UMambaEnc"),
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
        "nnUNetTrainerMedNeXt",
        "nnUNetTrainerTransBTS",
        "nnUNetTrainerNoDA_10epochs_seed1",
        "nnUNetTrainerAdam",
        "nnUNetTrainerOfTheUser",
        "__path__",
        "",
    ],
)
def test_names_of_others_are_left_to_nnunet(typed):
    assert nearest_name(typed, FAMILIES) is None


PIECES = st.sampled_from([PREFIX, *FAMILIES, *WORDS, "epochs", "seed", "swin", "_", "-", " ", "0", "17", "²", "٣", "é"])
TYPED = st.lists(PIECES | st.text(max_size=4), max_size=8).map("".join)


@given(TYPED)
@settings(max_examples=200, deadline=None)
def test_whatever_is_typed_the_nearest_name_is_valid_and_nearest_to_itself(typed):
    nearest = nearest_name(typed, FAMILIES)
    if nearest is not None:
        family, parts = parts_of(nearest)
        assert family in FAMILIES
        assert nearest_name(nearest, FAMILIES) == nearest
        assert getattr(trainers, nearest).named_seed == parts["named_seed"]
    if parts_of(typed) is not None and parts_of(typed)[0] in FAMILIES:
        assert nearest == typed


NAMED = st.builds(
    lambda family, recipe, epochs, seed: "".join([PREFIX, family, recipe, epochs, seed]),
    st.sampled_from(FAMILIES),
    st.sampled_from(["", *(f"_{word}" for word in WORDS)]),
    st.sampled_from([""]) | st.integers(1, 10**6).map("_{}epochs".format),
    st.sampled_from([""]) | st.integers(0, 10**9).map("_seed{}".format),
)


@given(NAMED, st.data())
@settings(max_examples=200, deadline=None)
def test_a_slip_in_a_valid_name_makes_no_other_numbers_of_it(name, data):
    place = data.draw(st.sampled_from([i for i, letter in enumerate(name) if letter.isalpha() and i < len(PREFIX)]))
    slipped = name[:place] + name[place + 1 :]
    assert nearest_name(name, FAMILIES) == name
    assert parts_of(nearest_name(slipped, FAMILIES)) == parts_of(name)
