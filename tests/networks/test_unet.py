"""One contract over all families and kinds of plan, and the published sizes."""

import json
import re
import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_logvmamba.layers import FAMILIES
from nnunet_logvmamba.networks import LoGVMambaUNet

KEYS = Path(__file__).resolve().parents[1] / "data" / "paper3d_keys.json"

# patch, strides of nnU-Net's plans for such patches
PLANS = {
    "isotropic": ((16, 32, 16), [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)]),
    "hippocampus 40x56x40": ((40, 56, 40), [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)]),
    "prostate 20x320x256": (
        (20, 320, 256),
        [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)],
    ),
    "heart 14x256x224": ((14, 256, 224), [(1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 2)]),
    "few slices 3x64x64": ((3, 64, 64), [(1, 1, 1), (1, 2, 2), (1, 2, 2)]),
    "2D 64x96": ((64, 96), [(1, 1), (2, 2), (2, 2), (2, 2), (2, 2)]),
    "two stages": ((16, 16, 16), [(1, 1, 1), (2, 2, 2)]),
}
LARGE = {"prostate 20x320x256", "heart 14x256x224", "hippocampus 40x56x40"}


def build(strides, *, base_width=16, in_channels=1, **arguments) -> LoGVMambaUNet:
    planned = strides if isinstance(strides, list) and isinstance(strides[0], tuple) else PLANS["isotropic"][1]
    spatial_dims = len(planned[0])
    settings = {
        "n_stages": len(planned),
        "features_per_stage": [min(base_width * 2**stage, 64) for stage in range(len(planned))],
        "conv_op": {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims],
        "kernel_sizes": [[1, 3, 3] if spatial_dims == 3 and step[0] == 1 else [3] * spatial_dims for step in planned],
        "strides": strides,
        "num_classes": 2,
        "deep_supervision": True,
    }
    return LoGVMambaUNet(in_channels, **(settings | arguments))


def scales(patch, strides) -> list[tuple[int, ...]]:
    """Sizes of nnU-Net's deep-supervision targets: every scale but the lowest."""
    sizes, size = [], tuple(patch)
    for stride in strides[:-1]:
        size = tuple(-(-length // step) for length, step in zip(size, stride))
        sizes.append(size)
    return sizes


@pytest.mark.parametrize("plan", PLANS)
def test_every_scale_has_the_size_of_its_target_and_every_parameter_gets_a_gradient(plan):
    patch, strides = PLANS[plan]
    small = {"base_width": 4, "squeeze": 4} if plan in LARGE else {}
    network = build(strides, drop_path=0.0, **small)  # a dropped branch has a gradient of zero, as it should
    outputs = network(torch.randn(2 if plan not in LARGE else 1, 1, *patch))
    assert [tuple(output.shape[2:]) for output in outputs] == scales(patch, strides)
    assert all(output.isfinite().all() for output in outputs)
    sum(output.sum() for output in outputs).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


BLOCKS = {
    "log": ["L-VMamba", "LoG-VMamba", "LoG-VMamba", "G-VMamba"],
    "l": ["L-VMamba", "L-VMamba", "L-VMamba", "VSS"],
    "g": ["VSS", "G-VMamba", "G-VMamba", "G-VMamba"],
    "vss": ["VSS"] * 4,
    "no_ssm": ["NoSSM"] * 4,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plan", ["isotropic", "2D 64x96"])
def test_every_family_has_its_blocks_and_trains_in_2d_and_3d(family, plan):
    patch, strides = PLANS[plan]
    network = build(strides, family=family)
    sum(output.sum() for output in network(torch.randn(1, 1, *patch))).backward()
    lonely = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not lonely
    assert [setting.label for setting in network.settings] == BLOCKS[family][: len(strides) - 1]


def test_paper_preset_has_the_published_size_and_work():
    preset = LoGVMambaUNet.preset
    with torch.device("meta"):
        network = LoGVMambaUNet(**preset["arguments"])
        image = torch.empty(1, 4, *preset["patch_size"])
    assert sum(parameter.numel() for parameter in network.parameters()) == 20_551_641
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(image)
    # As published, the 1x1 convolutions of the way up come behind the interpolation, on eight times as many voxels.
    ahead = sum(8 ** (2 + step) * up.conv.weight.numel() for step, up in enumerate(network.decoder.upsamplers))
    assert (counter.get_total_flops() / 2 + 7 * ahead) / 1e9 == pytest.approx(394.68, abs=0.05)


def test_paper_preset_has_the_published_tokens():
    with torch.device("meta"):
        settings = LoGVMambaUNet(**LoGVMambaUNet.preset["arguments"]).settings
    assert [setting.label for setting in settings] == ["L-VMamba"] + ["LoG-VMamba"] * 2 + ["G-VMamba"] * 2
    assert [setting.token_width for setting in settings] == [54, 108, 216, 256, 320]
    assert [setting.global_stride for setting in settings[1:]] == [(4, 4, 4), (2, 2, 2), (1, 1, 1), (1, 1, 1)]
    assert [setting.channels_per_token for setting in settings[1:]] == [1, 1, 2, 8]
    assert [setting.canonical_grid for setting in settings[1:]] == [(8, 8, 8)] * 3 + [(4, 4, 4)]


def test_parameter_keys_and_shapes_are_the_stored_ones():
    with torch.device("meta"):
        state = LoGVMambaUNet(**LoGVMambaUNet.preset["arguments"]).state_dict()
    ours = {name: list(value.shape) for name, value in state.items()}
    stored = json.loads(KEYS.read_text())
    assert ours == stored, "keys are on users' disks: a change needs a key map and a changelog line"


# Norm and its arguments
NORMS = {
    "instance": (None, None),
    "instance with running statistics": (nn.InstanceNorm2d, {"track_running_stats": True}),
    "batch": (nn.BatchNorm2d, {}),
    "batch without running statistics": (nn.BatchNorm2d, {"track_running_stats": False}),
    "group": (partial(nn.GroupNorm, 2), {}),
}


def passes(network, size) -> bool:
    """Whether the parts of a network take an image of this size, without what the network says to it beforehand."""
    try:
        network.decoder(network.encoder(torch.randn(1, 1, *size)))
    except (ValueError, RuntimeError):
        return False
    return True


@torch.no_grad()
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("strides", [(2, 2), (3, 1), (1, 2), ((1, 2), (2, 2))], ids=str)
def test_an_image_of_any_size_that_torch_takes_keeps_its_size_and_others_are_told_the_least(strides, norm):
    norm_op, kwargs = NORMS[norm]
    options = {"family": "no_ssm", "norm_op": norm_op, "norm_op_kwargs": kwargs}
    network = LoGVMambaUNet.from_channels(2, 1, 2, (4, 4), strides, **options).eval()
    for size in product((1, 2, 3, 4, 5, 7), repeat=2):
        image = torch.randn(1, 1, *size)
        if passes(network, size):
            assert network(image).shape == (1, 2, *size)
            continue
        with pytest.raises(ValueError, match=f"the image of {size[0]} x {size[1]} voxels is too small") as refusal:
            network(image)
        least = [int(side) for side in re.search(r"at least (\d+) x (\d+)$", str(refusal.value)).groups()]
        assert passes(network, least)
        for axis in (0, 1):
            if least[axis] > size[axis]:  # with one voxel less on an axis that must grow it is too small
                assert not passes(network, [side - (index == axis) for index, side in enumerate(least)])


@pytest.mark.parametrize("training", [True, False])
def test_the_least_volume_is_said_in_training_and_evaluation(training):
    network = LoGVMambaUNet.from_channels(3, 1, 2, (4, 4, 4), family="no_ssm").train(training)
    with pytest.raises(ValueError, match="the image of 8 x 9 x 8 voxels .* leave 1 of them .*at least 8 x 10 x 8$"):
        network(torch.randn(2, 1, 8, 9, 8))
    assert network(torch.randn(2, 1, 8, 10, 8)).shape == (2, 2, 8, 10, 8)


def test_batch_norm_needs_two_voxels_of_the_whole_batch_while_training():
    network = LoGVMambaUNet.from_channels(2, 1, 2, (4, 4), family="no_ssm", norm_op=nn.BatchNorm2d, norm_op_kwargs={})
    with pytest.raises(ValueError, match="the image of 4 x 4 voxels is too small"):
        network(torch.randn(1, 1, 4, 4))
    assert network(torch.randn(2, 1, 4, 4)).shape == (2, 2, 4, 4)


@pytest.mark.parametrize("seg_heads", ["all", "last"])
def test_without_deep_supervision_the_heads_of_coarse_scales_alone_have_no_gradient(seg_heads):
    patch, strides = PLANS["isotropic"]
    network = build(strides, deep_supervision=False, seg_heads=seg_heads, family="no_ssm")
    network(torch.randn(1, 1, *patch)).sum().backward()
    without = {name.rpartition(".")[0] for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == ({"decoder.seg_layers.0", "decoder.seg_layers.1"} if seg_heads == "all" else set())


def test_network_runs_without_nnunet_installed():
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nnunetv2", "torchvision", "timm", "mamba_ssm", "triton"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from nnunet_logvmamba.networks import LoGVMambaUNet
network = LoGVMambaUNet(1, 3, [16, 16, 16], torch.nn.Conv2d, 3, [1, 2, 2], 2)
print(tuple(network(torch.randn(1, 1, 16, 16)).shape))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 2, 16, 16)", done.stderr


def test_indivisible_widths_lose_their_local_tokens_and_say_so():
    _, strides = PLANS["isotropic"]
    network = build(strides, features_per_stage=[24, 48, 64, 64])
    assert [setting.local_tokens for setting in network.settings] == [False, True, True]
    with pytest.raises(ValueError, match="mixing stage 0 has 24 channels, which squeeze 16 does not divide"):
        build(strides, features_per_stage=[24, 48, 64, 64], local_token_stages=[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "mamba"}, "'mamba'.*'log', 'l', 'g', 'vss', 'no_ssm'"),
        ({"placement": "tail"}, "'tail'.*'interleaved'"),
        ({"conv_op": nn.Conv1d}, "torch.nn.Conv2d or torch.nn.Conv3d"),
        ({"seg_heads": "none"}, "'none'.*'all', 'last'"),
        ({"seg_heads": "last"}, "deep_supervision"),
        ({"dropout_op": nn.Dropout}, "dropout_op"),
        ({"mixer_stages": [7]}, "mixer_stages names stage 7"),
        ({"global_strides": [1]}, "global_strides has 1 entries"),
        ({"features_per_stage": [16, 16]}, "features_per_stage has 2 entries for 4 stages"),
        ({"features_per_stage": "16"}, "features_per_stage is '16'; a list with one entry per stage"),
        (
            {"features_per_stage": [16, 16, 0, 16]},
            r"features_per_stage is \[16, 16, 0, 16\]; whole numbers of at least 1",
        ),
        ({"features_per_stage": 16.0}, "features_per_stage is 16.0; a list"),
        ({"n_stages": 1}, "n_stages is 1; a whole number of at least 2"),
        ({"n_stages": 4.0}, "n_stages is 4.0"),
        ({"in_channels": 0}, "input_channels is 0; a whole number of at least 1"),
        ({"num_classes": True}, "num_classes is True"),
        ({"strides": 2}, "strides is 2; a list with one entry per stage"),
        ({"strides": torch.tensor(2)}, r"strides is tensor\(2\); a list with one entry per stage"),
        ({"strides": [2, 2, 2, 2]}, r"the first stride is \(2, 2, 2\); it must be 1.*one entry per stage"),
        ({"strides": [1, 2, -2, 2]}, r"strides\[2\] is -2"),
        ({"strides": [1, 2, (2, 2), 2]}, r"strides\[2\] is \(2, 2\); .* each of 3 axes"),
        ({"kernel_sizes": [3, 2, 3, 3]}, r"kernel_sizes\[1\] is 2; an odd number"),
        ({"kernel_sizes": 3.0}, "kernel_sizes is 3.0; a list"),
        ({"conv_op": "torch.nn.Conv3d"}, "conv_op is 'torch.nn.Conv3d'; the class"),
        (
            {"norm_op": nn.InstanceNorm2d},
            "a norm for 2 spatial axes.* 3: take torch.nn.InstanceNorm3d",
        ),
        ({"norm_op": nn.BatchNorm1d}, "take torch.nn.BatchNorm3d"),
        ({"norm_op": "instance"}, "norm_op is 'instance'; a class such as torch.nn.InstanceNorm3d"),
        ({"norm_op": nn.InstanceNorm3d(16)}, "a class such as torch.nn.InstanceNorm3d"),
        ({"norm_op": nn.GroupNorm}, r"norm_op GroupNorm\(16, .* cannot be built"),
        ({"norm_op_kwargs": {"afine": True}}, "afine.*norm_op_kwargs"),
        ({"norm_op_kwargs": [1]}, r"norm_op_kwargs is \[1\]; a dict"),
        ({"nonlin": "relu"}, "nonlin is 'relu'; a class such as torch.nn.LeakyReLU"),
        ({"nonlin": nn.RReLU}, "nonlin is RReLU, .* take torch.nn.LeakyReLU"),
        ({"nonlin_kwargs": {"slope": 1}}, "slope.*nonlin_kwargs"),
        ({"deep_supervision": "no"}, "deep_supervision is 'no'; True or False"),
        ({"checkpointing": "no"}, "checkpointing is 'no'; True or False"),
        ({"conv_bias": None}, "conv_bias is None; True or False"),
        ({"expand": 0}, "expand is 0"),
        ({"expand": 0.5}, "expand is 0.5"),
        ({"window": 3.0}, "window is 3.0"),
        ({"state_size": 1.5}, "state_size is 1.5"),
        ({"squeeze": True}, "squeeze is True"),
        ({"directions": True}, "directions is True; valid are 1, 2, 4"),
        ({"directions": 2.0}, "directions is 2.0; valid are 1, 2, 4"),
        ({"drop_path": "0.1"}, "drop_path is '0.1'"),
        ({"mixer_stages": 0}, "mixer_stages is 0; a list of mixing stages"),
        ({"local_token_stages": [True]}, "local_token_stages names stage True"),
        ({"global_strides": 2}, "global_strides is 2; a list"),
        ({"global_strides": [1, 2.0, 1]}, r"global_strides\[1\] is 2.0"),
        ({"channels_per_token": [1, 0, 1]}, r"channels_per_token is \[1, 0, 1\]"),
        ({"canonical_grids": [[8, 8]] * 3}, r"canonical_grids\[0\] is \[8, 8\]; .* each of 3 axes"),
        ({"squeeze": 0}, "squeeze is 0"),
        ({"backend": "fast"}, "'fast'.*chunked"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as refusal:
        build(**({"strides": PLANS["isotropic"][1]} | arguments))
    assert "\n" not in str(refusal.value)


def test_single_numbers_may_be_numpys():
    network = build(PLANS["isotropic"][1], features_per_stage=np.int64(16), kernel_sizes=np.int64(3))
    assert network.encoder.stages[0][0].conv1.weight.shape == (16, 16, 3, 3, 3)


@pytest.mark.parametrize(("seg_heads", "kind"), [("all", list), ("last", torch.Tensor)])
@pytest.mark.parametrize("channels", [(4,), (4, 4)])
def test_the_switch_of_deep_supervision_counts_where_heads_were_built_for_it(channels, seg_heads, kind):
    network = LoGVMambaUNet.from_channels(2, 1, 2, channels, family="no_ssm", seg_heads=seg_heads)
    network.decoder.deep_supervision = True
    assert type(network(torch.randn(1, 1, 8, 8))) is kind


def test_stages_without_a_mixer_are_plain_residual_stages():
    network = build(PLANS["isotropic"][1], mixer_stages=[1])
    assert [isinstance(mixer, nn.Identity) for mixer in network.encoder.mixers] == [True, False, True]
    assert [setting.label for setting in network.settings] == ["-", "LoG-VMamba", "-"]
