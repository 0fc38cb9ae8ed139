"""EoFormer: published sizes, edge operators as one convolution, sizes that 16 does not divide, and its arguments."""

import json
from pathlib import Path

import pytest
import torch

from nnunet_logvmamba.networks import EoFormer
from nnunet_logvmamba.networks.costs import summarize
from nnunet_logvmamba.networks.peers.eoformer import EdgeBranch

COUNTS = Path(__file__).resolve().parents[3] / "shared" / "golden" / "peers"
COUNTS = COUNTS / "counts_segmamba_eoformer_nested_monai.json"


@pytest.mark.skipif(not COUNTS.is_file(), reason=f"there is no {COUNTS.name} in the shared folder beside the checkout")
def test_parameters_and_multiply_adds_are_the_published_ones():
    entry = json.loads(COUNTS.read_text())["networks"]["eoformer_brats_4in_3out_128"]
    _, channels, *patch = entry["input"]
    with torch.device("meta"):
        network = EoFormer(channels, entry["output"][1])
    fixed = {name: module for name, module in network.named_modules() if isinstance(module, EdgeBranch)}

    def count(part: str) -> int:
        """Also the original's fixed kernels, one per channel, which are constants here."""
        constants = sum(27 * len(branch.bias) for name, branch in fixed.items() if name.startswith(f"{part}."))
        return constants + sum(p.numel() for p in network.get_submodule(part).parameters())

    parts = {part: count(part) for part in entry["by_module"]}
    assert parts == entry["by_module"]
    assert sum(parts.values()) == entry["parameters"]
    summary = summarize(network, channels, patch, batch_size=1)
    assert summary.parameters == entry["trainable"]
    assert summary.multiply_adds == entry["macs_conv_and_matmul"]


def small(**options) -> EoFormer:
    return EoFormer(2, 3, **{"features": [4, 4, 32, 32], "n_blocks_per_stage": [1, 1, 1, 1], **options})


@pytest.mark.parametrize("size", [(16, 16, 16), (20, 40, 33), (8, 32, 32)])
def test_every_size_comes_back_as_it_was(size):
    with torch.no_grad():
        assert small()(torch.randn(1, 2, *size)).shape == (1, 3, *size)


def test_the_bias_that_cancels_is_frozen_and_has_no_effect():
    network, x = small().eval(), torch.randn(1, 2, 16, 16, 32)
    idle = {name: p for name, p in network.named_parameters() if not p.requires_grad}
    assert idle
    assert all(name.endswith(".b0") for name in idle)
    with torch.no_grad():
        before = network(x)
        for parameter in idle.values():
            parameter.fill_(3.0)
        assert torch.equal(network(x), before)


def test_branches_are_dropped_ever_more_in_the_encoder_and_ever_less_in_the_decoder():
    network = EoFormer(1, 2, features=[4, 4, 32, 32], drop_path=0.7)

    def rates(stages) -> list[float]:
        return [round(block.drop_path.probability, 6) for stage in stages for block in stage]

    assert rates(network.encoder.stages) == [round(0.1 * step, 6) for step in range(8)]
    assert rates(network.decoder.stages) == [round(0.14 * step, 6) for step in range(5, -1, -1)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"features": [4, 4, 16, 32]}, r"features is \[4, 4, 16, 32\]; the last two must be multiples of 32"),
        ({"features": [32, 32, 32]}, "features has 3 entries; 4 are needed"),
        ({"decoder_features": [4, 4, 4, 0]}, r"decoder_features is \[4, 4, 4, 0\]"),
        ({"n_blocks_per_stage": 2}, "n_blocks_per_stage is 2; a list"),
        ({"drop_path": 1}, "drop_path is 1; a number from 0 to below 1"),
        ({"drop_path": 1.5}, "drop_path is 1.5"),
        ({"drop_path": "0.1"}, "drop_path is '0.1'"),
        ({"drop_path": None}, "drop_path is None"),
        ({"drop_path": [0.1]}, r"drop_path is \[0.1\]"),
        ({"deep_supervision": True}, "deep_supervision needs several outputs"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(wrong, words):
    with pytest.raises(ValueError, match=words):
        small(**wrong)
