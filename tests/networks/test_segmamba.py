"""SegMamba: published sizes, slices that follow the image, sizes that 16 does not divide, and its arguments."""

import json
from pathlib import Path

import pytest
import torch

from nnunet_logvmamba.layers import Mamba
from nnunet_logvmamba.networks import SegMamba
from nnunet_logvmamba.networks.costs import summarize

COUNTS = Path(__file__).resolve().parents[3] / "shared" / "golden" / "peers"
COUNTS = COUNTS / "counts_segmamba_eoformer_nested_monai.json"


def published() -> list[tuple[str, dict]]:
    """The published sizes of the file beside the golden ones; none where there is none."""
    networks = json.loads(COUNTS.read_text())["networks"] if COUNTS.is_file() else {}
    return [(name, entry) for name, entry in networks.items() if name.startswith("segmamba_") and "by_module" in entry]


SIZES = published()


@pytest.mark.parametrize(("name", "entry"), SIZES, ids=[name for name, _ in SIZES])
def test_parameters_multiply_adds_and_states_are_the_published_ones(name, entry):
    _, channels, *patch = entry["input"]
    with torch.device("meta"):
        network = SegMamba(channels, entry["output"][1])
    parts = {name: sum(p.numel() for p in network.get_submodule(name).parameters()) for name in entry["by_module"]}
    assert parts == entry["by_module"]
    summary = summarize(network, channels, patch, batch_size=1)
    assert summary.parameters == entry["parameters"] == sum(row.parameters for row in summary.rows)
    scans = [scan["length"] * scan["channels"] * scan["d_state"] for scan in entry["scans"]]
    assert summary.state_updates == sum(scans)
    assert summary.multiply_adds == sum(row.multiply_adds for row in summary.rows)
    assert summary.multiply_adds == pytest.approx(entry["macs_conv_and_matmul"], rel=1e-3)


def small(**options) -> SegMamba:
    return SegMamba(2, 3, [4, 4, 8, 8], [1, 1, 1, 1], 8, **options)


@pytest.mark.parametrize("size", [(16, 16, 17), (20, 40, 33), (48, 16, 16)])
def test_every_size_but_a_single_voxel_at_the_bottom_comes_back_as_it_was(size):
    network = small().eval()
    with torch.no_grad():
        assert network(torch.randn(1, 2, *size)).shape == (1, 3, *size)
        with pytest.raises(ValueError, match="16 x 12 x 16 voxels is too small .* at least 17 x 12 x 16"):
            network(torch.randn(1, 2, 16, 12, 16))


def test_slices_are_the_planes_of_the_first_axis_unless_they_are_named():
    x = torch.randn(1, 2, 32, 32, 32)
    network, named = small().eval(), small(slices=[16, 8, 4, 2]).eval()
    named.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(network(x), named(x))
        assert not torch.equal(network(x.repeat(1, 1, 2, 1, 1)), named(x.repeat(1, 1, 2, 1, 1)))
        with pytest.raises(ValueError, match="4096 voxels cannot be cut into 5 equal slices"):
            small(slices=[5, 4, 2, 1])(x)
    assert Mamba.order("slices", torch.empty(1, 6, 1), 2).tolist() == [0, 3, 1, 4, 2, 5]
    assert Mamba.order("backward", torch.empty(1, 3, 1), 2).tolist() == [2, 1, 0]


def test_steps_of_all_directions_start_small_unless_the_published_ones_are_asked_for():
    def largest(network: SegMamba) -> list[float]:
        biases = [p for name, p in network.named_parameters() if "dt_proj" in name and name.endswith("bias")]
        return [torch.nn.functional.softplus(bias).max().item() for bias in biases[:3]]

    assert max(largest(small())) < 0.11
    forward, *others = largest(small(drawn_steps="forward"))
    assert forward < 0.11
    assert min(others) > 0.3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"features_per_stage": [4, 4]}, "features_per_stage has 2 entries; one for each of 4 stages"),
        ({"slices": [1]}, "slices has 1 entries; one for each of 4 stages"),
        ({"drawn_steps": "some"}, "unknown drawn_steps 'some'; valid are 'all', 'forward'"),
        ({"deep_supervision": True}, "this network has one"),
        ({"backend": "fast"}, "Unknown scan backend 'fast'"),
        ({"strides": [1]}, "'strides'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        SegMamba(**{"input_channels": 1, "num_classes": 2} | wrong)
