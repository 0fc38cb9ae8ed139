"""Swin-UMamba: its published sizes, its patches, its encoder's weights, and what it refuses."""

import pytest
import torch

from nnunet_logvmamba.networks import LoGVMambaSwinUNet, SwinUMamba
from nnunet_logvmamba.networks.counting import count_multiply_adds

SMALL = {"features_per_stage": [6, 8, 16], "strides": [1, 2, 4], "n_blocks_per_stage": [1, 1], "drop_path": 0.0}


@pytest.mark.parametrize(
    ("classes", "patch", "parameters", "multiply_adds", "sisters_parameters"),
    [
        (1, (512, 512), 59_885_620, 163_439_443_968, 27_490_756),
        (2, (512, 512), 59_886_344, 163_463_036_928, 27_491_528),
        (8, (384, 640), 59_890_688, 153_379_307_520, 27_496_160),
    ],
)
def test_the_published_sizes_are_met_to_the_unit(classes, patch, parameters, multiply_adds, sisters_parameters):
    arguments = {"input_channels": 3, "num_classes": classes, "deep_supervision": True}
    with torch.device("meta"):
        network = SwinUMamba(**arguments)
        sister = LoGVMambaSwinUNet(**{**LoGVMambaSwinUNet.preset["arguments"], **arguments, "family": "vss"})
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert sum(parameter.numel() for parameter in sister.parameters()) == sisters_parameters
    assert count_multiply_adds(network, 3, patch)[""] == multiply_adds


def test_a_patch_that_32_does_not_divide_is_padded_at_its_end_and_cropped():
    network = SwinUMamba(2, 3, deep_supervision=True, **SMALL).eval()
    x = torch.randn(1, 2, 20, 33)
    whole = torch.nn.functional.pad(x, (0, 7, 0, 4))
    with torch.no_grad():
        outputs, wholes = network(x), network(whole)
    assert [tuple(y.shape[2:]) for y in outputs] == [(20, 33), (10, 16)]
    for y, z in zip(outputs, wholes, strict=True):
        assert torch.equal(y, z[..., : y.shape[2], : y.shape[3]])


def test_only_its_patch_embedding_is_its_own_where_imagenets_weights_are_loaded():
    encoder = SwinUMamba(2, 3, **SMALL).encoder
    assert encoder.reads_image is False
    assert encoder.patch_embed.proj.weight.shape == (8, 6, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"features_per_stage": [48, 96]}, r"features_per_stage is \[48, 96\]; a stem and at least two stages"),
        ({"n_blocks_per_stage": [2, 2]}, "n_blocks_per_stage has 2 entries; one per stage, 4, is needed"),
        ({"strides": [1, 2, 2, 2, 2]}, r"strides are \[1, 2, 2, 2, 2\]; with 4 stages they are .*\[4, 4\]"),
        ({"drop_path": 1.5}, "drop_path is 1.5"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"checkpointing": "no"}, "checkpointing is 'no'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, sentence):
    with torch.device("meta"), pytest.raises(ValueError, match=sentence):
        SwinUMamba(**{"input_channels": 1, "num_classes": 2, **arguments})
