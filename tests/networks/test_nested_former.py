"""NestedFormer: published sizes, the patch that it is tied to, its windows and pools, and its arguments."""

import json
from pathlib import Path

import pytest
import torch

from nnunet_logvmamba.errors import OtherPatchError
from nnunet_logvmamba.networks import NestedFormer
from nnunet_logvmamba.networks.costs import summarize

COUNTS = Path(__file__).resolve().parents[3] / "shared" / "golden" / "peers"
COUNTS = COUNTS / "counts_segmamba_eoformer_nested_monai.json"
WINDOWS = {"window444": 4, "window244": (2, 4, 4), "window233": (2, 4, 4)}  # that of 96 voxels follows from the others'


def published() -> list[tuple[str, dict]]:
    """The published sizes of the file beside the golden ones; none where there is none."""
    networks = json.loads(COUNTS.read_text())["networks"] if COUNTS.is_file() else {}
    return [(name, entry) for name, entry in networks.items() if name.startswith("nestedformer_")]


SIZES = published()


@pytest.mark.parametrize(("name", "entry"), SIZES, ids=[name for name, _ in SIZES])
def test_parameters_and_multiply_adds_are_the_published_ones(name, entry):
    _, channels, *patch = entry["input"]
    with torch.device("meta"):
        network = NestedFormer(channels, entry["output"][1], patch, window=WINDOWS[name.rpartition("_")[2]])
    parts = {
        part: sum(p.numel() for p in network.get_submodule(part).parameters())
        for part in entry["by_module"]
        if part != "fusion.modality_att.embeddings"
    }
    assert parts == {part: entry["by_module"][part] for part in parts}
    summary = summarize(network, channels, patch, batch_size=1)
    assert summary.parameters == entry["parameters"]
    tokens, width, voxels = 32, 128, (patch[0] // 16) ** 3
    weighing = channels * tokens * width * voxels  # of tokens by their maps, which the file does not count
    assert summary.multiply_adds == entry["macs_conv_and_matmul"] + weighing


def small(patch_size=(16, 16, 32), **options) -> NestedFormer:
    return NestedFormer(2, 3, patch_size, **{"features": [4, 4, 4, 4, 8, 4], "num_tokens": 2, **options})


def test_every_patch_is_padded_to_what_the_pools_divide():
    network = small((16, 20, 33), pools=[(1, 2, 2), 2, 2, 2])
    assert network(torch.randn(1, 2, 16, 20, 33)).shape == (1, 3, 16, 20, 33)
    assert [tuple(block.attn.size) for block in network.encoder["encoders"][0].down_1.block_list] == [(16, 16, 24)] * 2


def test_another_patch_and_weights_of_another_are_refused_in_one_sentence():
    network = small((16, 16, 32))
    with pytest.raises(ValueError, match="the image is 16 x 32 x 32 and this network .* 16 x 16 x 32 alone: give it"):
        network(torch.randn(1, 2, 16, 32, 32))
    weights = network.state_dict()
    # As many voxels, arranged in another way.
    for other in ((16, 32, 32), (32, 16, 16)):
        with pytest.raises(
            OtherPatchError, match=r"trained with another patch: .*position_embeddings holds \d+ positions"
        ):
            small(other).load_state_dict(weights)


def test_windows_are_the_largest_that_divide_the_map():
    def windows(side: int, window) -> tuple[int, ...]:
        with torch.device("meta"):
            network = small([side] * 3, window=window)
        return network.fusion.spatial_att.block_list[0].attn.window_attention.window

    assert windows(128, 4) == (4, 4, 4)
    assert windows(96, 4) == (3, 3, 3)
    assert windows(96, (2, 4, 4)) == (2, 3, 3)
    assert windows(80, 4) == (1, 1, 1)


@pytest.mark.parametrize(
    ("strides", "pools"),
    [
        ([[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 4], [[1, 2, 2], *[[2, 2, 2]] * 3]),
        ([[1, 1, 1], [2, 2, 2], [2, 2, 2]], [[2, 2, 2], [2, 2, 2], [1, 1, 1], [1, 1, 1]]),
    ],
)
def test_the_pools_are_the_first_four_of_the_plan_and_else_one(strides, pools):
    assert NestedFormer.from_plan({"strides": strides}, (16, 16, 16)) == {"patch_size": [16, 16, 16], "pools": pools}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"patch_size": [16, 16, 16]}, r"patch_size is \[16, 16, 16\], of which the pools leave a single voxel"),
        ({"patch_size": 16.5}, "patch_size is 16.5"),
        ({"pools": [2, 2]}, "pools has 2 entries; one for each of 4"),
        ({"pools": [2, 2, 2, 0]}, r"pools\[3\] is 0"),
        ({"features": [4, 4, 4, 4, 12, 4]}, r"features is \[4, 4, 4, 4, 12, 4\]; .* a multiple of 8"),
        ({"features": [4, 5, 4, 4, 8, 4]}, r"features is \[4, 5, 4, 4, 8, 4\]; entries 1 to 4 must be even"),
        ({"features": [4, 4]}, "features has 2 entries"),
        ({"window": (2, 2)}, r"window is \(2, 2\)"),
        ({"num_tokens": 0}, "num_tokens is 0"),
        ({"dropout": 1.5}, "dropout is 1.5; a number from 0 to below 1"),
        ({"deep_supervision": True}, "deep_supervision needs several outputs"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(wrong, words):
    with pytest.raises(ValueError, match=words):
        small(**{"patch_size": [16, 16, 32], **wrong})
