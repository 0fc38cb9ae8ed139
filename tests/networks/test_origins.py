"""Weights of others: how they are recognised, and which network their names and shapes show."""

import pytest
import torch

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.networks import catalogue, origins
from nnunet_logvmamba.networks.published_names import first_name

ORIGINS = {origin.title: origin for origin in origins.ORIGINS}
SWIN = {
    "n_stages": 4,
    "features_per_stage": [8, 8, 16, 32],
    "strides": [1, 4, 2, 2],
    "n_blocks_per_stage": [1, 2, 1],
    "n_blocks_per_stage_decoder": 2,
}
SMALL = {
    "Swin-UMamba": {"features_per_stage": [6, 8, 16], "strides": [1, 2, 4], "n_blocks_per_stage": [2, 1]},
    "Swin-UMamba†": {**SWIN, "family": "vss"},
    "LoG-VMamba in 2D": {**SWIN, "expand": 1, "squeeze": 4, "canonical_grids": [[8, 8], [4, 4]]},
    "SegMamba": {"features_per_stage": [4, 4, 8, 8], "n_blocks_per_stage": [1, 2, 1, 1], "hidden_size": 8},
    "LoG-VMamba in 3D": {
        "n_stages": 5,
        "features_per_stage": [16, 16, 16, 16, 16],
        "conv_op": torch.nn.Conv3d,
        "kernel_sizes": 3,
        "strides": [1, 2, 2, 2, 2],
        "expand": 2,
        "squeeze": 8,
        "seg_heads": "last",
    },
}
OTHERS = {"LoG-VMamba in 3D": {"conv_op": torch.nn.Conv3d}}  # of the plan


def built(title: str, **arguments) -> torch.nn.Module:
    return catalogue.row(ORIGINS[title].network).load()(input_channels=1, num_classes=2, **arguments).eval()


@pytest.mark.parametrize("title", SMALL)
def test_shapes_show_the_network(title):
    made = built(title, **SMALL[title])
    patch = [64] * (3 if "3D" in title or title == "SegMamba" else 2)
    shown = ORIGINS[title].arguments(made.state_dict(), patch)
    again = built(title, **shown, **OTHERS.get(title, {}))
    again.load_state_dict(made.state_dict(), strict=True)
    x = torch.randn(1, 1, *[32] * len(patch))
    with torch.no_grad():
        if "slices" not in shown:  # else it is for patches as it was trained with
            assert torch.equal(again(x), made(x))


@pytest.mark.parametrize("family", ["log", "l", "g", "vss"])
def test_tokens_and_directions_show_the_family_of_the_2d_network(family):
    directions = 4 if family == "vss" else 2
    made = built("LoG-VMamba in 2D", **SMALL["LoG-VMamba in 2D"], family=family, directions=directions)
    shown = ORIGINS["LoG-VMamba in 2D"].arguments(made.state_dict(), [64, 64])
    assert (shown["family"], shown["directions"], shown["expand"]) == (family, directions, 1)
    assert shown.get("squeeze") == (4 if family in ("log", "l") else None)


@pytest.mark.parametrize(("title", "name"), [("LoG-VMamba in 2D", "paper2d"), ("LoG-VMamba in 3D", "paper3d")])
def test_published_sizes_show_their_preset_whatever_the_patch(title, name):
    network = catalogue.PRESETS[name].load()
    with torch.device("meta"):
        made = network.from_preset(name)
        shown = ORIGINS[title].arguments(made.state_dict(), [32] * len(network.preset["patch_size"]))
        again = network.from_preset(name, **shown)
    shapes = ({key: value.shape for key, value in one.state_dict().items()} for one in (made, again))
    assert next(shapes) == next(shapes)
    for one, other in zip(again.settings, made.settings, strict=True):
        assert one == other if one.global_tokens else one.label == other.label


def test_tokens_of_another_patch_are_those_of_the_configurations_or_are_refused():
    made = built("LoG-VMamba in 2D", **{**SMALL["LoG-VMamba in 2D"], "canonical_grids": [[8, 12], [4, 6]]})
    origin = ORIGINS["LoG-VMamba in 2D"]
    assert origin.arguments(made.state_dict(), [64, 96])["canonical_grids"] == [[8, 12], [4, 6]]
    with pytest.raises(UserError, match=r"made for maps of 96 positions, .*configuration's \(64 x 64\)"):
        origin.arguments(made.state_dict(), [64, 64])


def test_every_origin_is_a_network_of_the_catalogue_and_its_trainer_is_one():
    from nnunet_logvmamba.plugin.trainers import TRAINER_OF_FAMILY

    for origin in origins.ORIGINS:
        assert catalogue.row(origin.network).name == origin.network
        assert origin.trainer in TRAINER_OF_FAMILY
        assert set(origin.trainers) <= TRAINER_OF_FAMILY.keys() | {
            "UMambaEncNoAMP",
            "SwinUMambaScratch",
            "SwinUMambaDScratch",
        }


def test_names_of_something_else_are_not_recognised():
    assert origins.recognised([]) is None
    assert origins.recognised(["encoder.stages.0.0.conv.weight", "decoder.seg_layers.0.weight"]) is None
    assert origins.recognised(["vssm_encoder.layers.0.blocks.0.ln_1.weight"]) is None


@pytest.mark.parametrize(
    ("second", "first"),
    [
        ("decoder.encoder.stem.0.conv1.weight", "encoder.stem.0.conv1.weight"),
        ("encoder.stem.1.conv1.all_modules.0.weight", "encoder.stem.1.conv1.conv.weight"),
        ("decoder.encoder.stages.0.1.conv2.all_modules.1.bias", "encoder.stages.0.1.conv2.norm.bias"),
        ("decoder.stages.0.0.conv1.weight", "decoder.stages.0.0.conv1.weight"),
    ],
)
def test_a_second_name_stands_for_the_first(second, first):
    assert first_name(second) == first


def test_the_fixed_kernel_of_an_unfolding_is_known_by_what_it_holds():
    for window in (9, 27):
        kernel = torch.eye(window)
        assert origins.is_unfolding(kernel.view(window, 1, *[3] * (2 if window == 9 else 3)))
        kernel[0, 0] = 0.5
        assert not origins.is_unfolding(kernel)
    assert not origins.is_unfolding(torch.eye(8))
    assert not origins.is_unfolding(torch.ones(9, 9))
