"""The 2D network: one contract over families and image sizes, and the published sizes."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_logvmamba.layers import FAMILIES, LoGVMambaBlock
from nnunet_logvmamba.networks import LoGVMambaSwinUNet

KEYS = Path(__file__).resolve().parents[1] / "data" / "paper2d_keys.json"
PAPER = LoGVMambaSwinUNet.preset["arguments"]
STRIDES = [[1, 1], [4, 4], [2, 2], [2, 2], [2, 2]]
SIZES = [(64, 96), (65, 97), (50, 70), (96, 33), (64, 127)]


def build(in_channels=1, **arguments) -> LoGVMambaSwinUNet:
    settings = {
        "n_stages": 5,
        "features_per_stage": [8, 8, 16, 24, 32],
        "strides": STRIDES,
        "num_classes": 2,
        "n_blocks_per_stage": [1, 1, 2, 1],
        "deep_supervision": True,
    }
    return LoGVMambaSwinUNet(in_channels, **(settings | arguments))


def targets(patch, strides) -> list[tuple[int, ...]]:
    """Sizes of nnU-Net's deep-supervision targets, as its trainer and its transform make them."""
    trainer = SimpleNamespace(
        enable_deep_supervision=True, configuration_manager=SimpleNamespace(pool_op_kernel_sizes=strides)
    )
    transform = DownsampleSegForDSTransform(nnUNetTrainer._get_deep_supervision_scales(trainer))
    return [tuple(target.shape[1:]) for target in transform(segmentation=torch.zeros(1, *patch))["segmentation"]]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_scale_has_the_size_of_its_target_and_every_parameter_gets_a_gradient(size):
    network = build(drop_path=0.0)  # a dropped branch has a gradient of zero, as it should
    outputs = network(torch.randn(2, 1, *size))
    assert [tuple(output.shape[2:]) for output in outputs] == targets(size, STRIDES)
    assert all(output.isfinite().all() for output in outputs)
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("size", [(1, 1), (3, 200)], ids=str)
def test_an_image_smaller_than_a_token_of_the_deepest_stage_still_passes(size):
    outputs = build()(torch.randn(1, 1, *size))
    shares = (1, 4, 8, 16)
    assert [tuple(output.shape[2:]) for output in outputs] == [
        tuple(max(1, round(length / share)) for length in size) for share in shares
    ]
    assert all(output.isfinite().all() for output in outputs)


@pytest.mark.parametrize(
    ("strides", "size"),
    [
        ([1, 2, 2], (10, 14)),
        ([[1, 1], [4, 2], [2, 1], [2, 2]], (40, 12)),
        ([1, 3, 2, 1], (31, 24)),
    ],
    ids=str,
)
def test_other_strides_and_numbers_of_stages_are_built(strides, size):
    mixing = len(strides) - 1
    network = build(
        n_stages=len(strides),
        strides=strides,
        features_per_stage=[6, 8, 16, 16][: mixing + 1],
        n_blocks_per_stage=[1] * mixing,
        n_blocks_per_stage_decoder=1,
    )
    per_axis = [[step] * 2 if isinstance(step, int) else step for step in strides]
    assert [tuple(output.shape[2:]) for output in network(torch.randn(1, 1, *size))] == targets(size, per_axis)


def test_padding_an_image_by_hand_changes_nothing_inside():
    network = build().eval()
    image = torch.randn(1, 1, 50, 70)
    with torch.no_grad():
        ours = network(image)
        padded = network(nn.functional.pad(image, (0, 26, 0, 14)))
    for small, large in zip(ours, padded):
        assert torch.equal(small, large[..., : small.shape[2], : small.shape[3]])


BLOCKS = {"log": "LoG-VMamba", "l": "L-VMamba", "g": "G-VMamba", "vss": "VSS", "no_ssm": "NoSSM"}


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_blocks_in_the_decoder_and_trains_with_any_number_of_channels(family, channels):
    network = build(channels, family=family)
    sum(output.sum() for output in network(torch.randn(1, channels, 64, 64))).backward()
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert [setting.label for setting in network.settings] == [BLOCKS[family]] * 3


def test_the_family_does_not_touch_the_encoder():
    shapes = [
        {name: value.shape for name, value in build(family=family, expand=1).encoder.state_dict().items()}
        for family in FAMILIES
    ]
    assert all(shape == shapes[0] for shape in shapes)
    blocks = [module for module in build().encoder.modules() if isinstance(module, LoGVMambaBlock)]
    assert {(block.directions, block.in_proj.out_features // block.in_proj.in_features) for block in blocks} == {(4, 4)}


def test_only_the_decoder_of_swin_umamba_itself_scans_in_four_directions_unless_told():
    directions = {family: build(family=family).decoder.stages[0][0].directions for family in FAMILIES}
    assert directions == {"log": 1, "l": 1, "g": 1, "vss": 4, "no_ssm": 1}
    assert build(family="vss", directions=2).decoder.stages[0][0].directions == 2


# Counted by running the published networks: parameters and multiply-adds without the fixed kernels that they unfold
# with, deep supervision on. The last has the grids of its own patch, as published.
PUBLISHED = {
    "Swin-UMamba": ({"family": "vss"}, (512, 512), 27_490_756, 31_312_183_296),
    "L-VMamba": ({"family": "l"}, (512, 512), 28_580_308, 33_763_885_056),
    "G-VMamba": ({"family": "g"}, (512, 512), 28_405_060, 30_191_616_000),
    "LoG-VMamba": ({}, (512, 512), 30_389_092, 34_546_634_496),
    "LoG-VMamba 384x640": (
        {"canonical_grids": [[24, 40], [24, 40], [12, 20]]},
        (384, 640),
        30_278_500,
        32_393_150_208,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_paper_preset_and_its_siblings_have_the_published_size_and_work(name):
    arguments, patch, parameters, multiply_adds = PUBLISHED[name]
    with torch.device("meta"):
        network = LoGVMambaSwinUNet(**(PAPER | arguments)).eval()
        image = torch.empty(1, 3, *patch)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    assert counter.get_total_flops() == 2 * multiply_adds


def test_paper_preset_has_the_published_tokens():
    with torch.device("meta"):
        network = LoGVMambaSwinUNet(**PAPER)
    assert LoGVMambaSwinUNet.preset["patch_size"] == (512, 512)
    assert [setting.token_width for setting in network.settings] == [216, 432, 864]
    assert [setting.global_stride for setting in network.settings] == [(4, 4), (2, 2), (2, 2)]
    assert [setting.channels_per_token for setting in network.settings] == [1, 1, 2]
    assert [setting.canonical_grid for setting in network.settings] == [(32, 32), (32, 32), (16, 16)]


def test_paper_preset_drops_paths_as_published():
    with torch.device("meta"):
        network = LoGVMambaSwinUNet(**PAPER)
    halves = (network.encoder, network.decoder)
    encoder, decoder = ([block.drop_path.probability for stage in half.stages for block in stage] for half in halves)
    assert encoder == pytest.approx(np.linspace(0, 0.2, 15))
    assert decoder == pytest.approx(np.linspace(0.2, 0, 6))


def test_parameter_keys_and_shapes_are_the_stored_ones():
    with torch.device("meta"):
        state = LoGVMambaSwinUNet(**PAPER).state_dict()
    ours = {name: list(value.shape) for name, value in state.items()}
    stored = json.loads(KEYS.read_text())
    assert ours == stored, "keys are on users' disks: a change needs a key map and a changelog line"


def test_initial_weights_are_spread_as_published():
    network = build(features_per_stage=[32, 32, 64, 96, 128])
    block = network.encoder.stages[2][0]
    assert block.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.encoder.mergers[1].reduction.weight.std().item() == pytest.approx(0.02, rel=0.05)
    expand = network.decoder.expansions[0].expand.weight
    assert expand.abs().max() <= expand.shape[1] ** -0.5  # PyTorch's own for linear layers
    for name, parameter in network.named_parameters():
        if name.endswith(("conv.bias", "proj.bias", "norm.bias")) or "seg_layers" in name and name.endswith("bias"):
            assert not parameter.any(), name


# Observed are 6 roundings in the mean over an output; a stray pixel with hardly any variance ahead of the last norm may
# be off by many more.
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)], ids=str)
def test_half_precision_autocast_follows_single_and_has_finite_gradients(dtype, rounding):
    network = build(drop_path=0.0)
    image = torch.randn(1, 1, 60, 64)
    single = network(image)
    with torch.autocast("cpu", dtype):
        half = network(image)
        sum(output.float().square().mean() for output in half).backward()
    for ours, theirs in zip(half, single):
        assert (ours - theirs).square().mean().sqrt() < 10 * rounding * theirs.square().mean().sqrt()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_nnunet_builds_the_network_from_json():
    arguments = json.loads(json.dumps({name: PAPER[name] for name in PAPER if not name.startswith(("input", "num_"))}))
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(LoGVMambaSwinUNet).parameters.items()
        if parameter.default is not parameter.empty
    }
    arguments = json.loads(json.dumps(defaults)) | arguments
    with torch.device("meta"):
        network = get_network_from_plans(
            "nnunet_logvmamba.networks.LoGVMambaSwinUNet", arguments, [], 3, 1, deep_supervision=True
        )
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED["LoG-VMamba"][2]
    assert network.decoder.deep_supervision is True


def test_indivisible_widths_lose_their_local_tokens_and_say_so():
    widths = [6, 6, 16, 24, 32]
    assert [setting.local_tokens for setting in build(features_per_stage=widths).settings] == [False, True, True]
    with pytest.raises(ValueError, match="mixing stage 0 has 12 channels, which squeeze 8 does not divide"):
        build(features_per_stage=widths, local_token_stages=[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "mamba"}, "'mamba'.*'log', 'l', 'g', 'vss', 'no_ssm'"),
        ({"placement": "tail"}, "'tail'.*'interleaved'"),
        ({"directions": 3}, "valid are 1, 2, 4"),
        ({"seg_heads": "none"}, "'none'.*'all', 'last'"),
        ({"seg_heads": "last"}, "deep_supervision"),
        ({"n_stages": 2}, "n_stages is 2; at least 3"),
        ({"features_per_stage": [16, 16]}, "features_per_stage has 2 entries; one per stage, 5"),
        ({"strides": [4, 2, 2, 2]}, "strides has 4 entries; one per stage, 5"),
        ({"strides": [2, 2, 2, 2, 2]}, r"the first stride is \(2, 2\); it must be 1"),
        ({"strides": [[1, 1, 1]] * 5}, "LoGVMambaSwinUNet is 2D"),
        ({"n_blocks_per_stage": [2, 2]}, "n_blocks_per_stage has 2 entries; one per mixing stage, 4"),
        ({"n_blocks_per_stage": [1, 0, 1, 1]}, r"n_blocks_per_stage is \[1, 0, 1, 1\]"),
        ({"n_blocks_per_stage_decoder": 0}, "n_blocks_per_stage_decoder is 0"),
        ({"n_blocks_per_stage_decoder": True}, "n_blocks_per_stage_decoder is True"),
        ({"n_blocks_per_stage": 2}, "n_blocks_per_stage is 2; a list with one entry per mixing stage"),
        ({"n_stages": 5.0}, "n_stages is 5.0; a whole number"),
        ({"in_channels": 0}, "input_channels is 0; a whole number of at least 1"),
        ({"num_classes": 2.0}, "num_classes is 2.0"),
        ({"features_per_stage": 8}, "features_per_stage is 8; a list with one entry per stage"),
        ({"features_per_stage": [8, 8, True, 8, 8]}, r"features_per_stage is \[8, 8, True, 8, 8\]"),
        ({"strides": 2}, "strides is 2; a list with one entry per stage"),
        ({"strides": [1, 4, 0, 2, 2]}, r"strides\[2\] is 0"),
        ({"strides": [1, 4, 2.0, 2, 2]}, r"strides\[2\] is 2.0"),
        ({"deep_supervision": "no"}, "deep_supervision is 'no'; True or False"),
        ({"checkpointing": "no"}, "checkpointing is 'no'; True or False"),
        ({"directions": True}, "directions is True"),
        ({"expand": -1}, "expand is -1"),
        ({"canonical_grids": 8}, "canonical_grids is 8; a list"),
        ({"global_token_stages": [3]}, "global_token_stages names stage 3; this network has mixing stages 0 to 2"),
        ({"global_strides": [1]}, "global_strides has 1 entries"),
        ({"global_strides": [3, 2, 2]}, r"global stride is \(3, 3\)"),
        ({"channels_per_token": [1, 1, 7]}, "54 token channels are not divisible by channels_per_token 7"),
        ({"squeeze": 0}, "squeeze is 0"),
        ({"window": 2}, "window is 2"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"backend": "fast"}, "'fast'.*chunked"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as refusal:
        build(**arguments)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("size", [(0, 8), (8, 0)], ids=str)
def test_an_image_without_voxels_is_refused(size):
    with pytest.raises(ValueError, match=f"the image is {size[0]} x {size[1]}; every side"):
        build()(torch.randn(1, 1, *size))
