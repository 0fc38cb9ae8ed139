"""What a training step keeps for its backward pass, counted, beside nnU-Net's own network in the same plan."""

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_logvmamba.layers import nothing_recomputed
from nnunet_logvmamba.networks import LoGVMambaUNet
from nnunet_logvmamba.networks.costs import summarize

MIB = 2**20
BEFORE = {3: 434.0, 2: 2285.3}
"""MiB that the network kept on these plans before it computed anything again."""
PLANS = {3: ((32, 64, 128, 256), (40, 56, 40), 2), 2: ((32, 64, 128, 256, 512, 512, 512), (320, 256), 8)}


def kept(dims: int, network_class: type[nn.Module] = LoGVMambaUNet, **options) -> float:
    """MiB, on a plan as nnU-Net makes it."""
    features, patch, batch = PLANS[dims]
    stages = len(features)
    with torch.device("meta"):
        network = network_class(
            input_channels=1,
            n_stages=stages,
            features_per_stage=features,
            conv_op={2: nn.Conv2d, 3: nn.Conv3d}[dims],
            kernel_sizes=[[3] * dims] * stages,
            strides=[[1] * dims] + [[2] * dims] * (stages - 1),
            num_classes=3,
            conv_bias=True,
            norm_op={2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims],
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=True,
            **options,
        )
    return summarize(network, 1, patch, batch).activation_bytes / MIB


@pytest.mark.parametrize("dims", PLANS)
def test_a_step_keeps_less_than_before_and_than_nnunets_network_and_far_less_with_checkpointing(dims):
    stages = len(PLANS[dims][0])
    plain = kept(dims, PlainConvUNet, n_conv_per_stage=[2] * stages, n_conv_per_stage_decoder=[2] * (stages - 1))
    ours, checkpointed = kept(dims), kept(dims, checkpointing=True)
    assert ours <= 0.65 * BEFORE[dims]
    assert ours < plain
    assert checkpointed <= 0.40 * ours


def test_nothing_is_computed_again_where_all_is_to_be_kept():
    with nothing_recomputed():
        everything = kept(3)
    assert kept(3) < 0.7 * everything < 0.7 * BEFORE[3]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("norm", [nn.InstanceNorm3d, nn.BatchNorm3d])
def test_gradients_and_statistics_are_the_same_to_the_last_bit(norm, checkpointing):
    torch.manual_seed(0)
    options = {"norm_op": norm, "norm_op_kwargs": {"affine": True}, "deep_supervision": True}
    network = LoGVMambaUNet.from_channels(3, 1, 2, (16, 32), checkpointing=checkpointing, **options)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    image, found = torch.randn(2, 1, 8, 12, 8), []
    for keep_all in (True, False):
        network.load_state_dict(start)
        network.zero_grad()
        torch.manual_seed(1)  # of the blocks whose branch is dropped
        if keep_all:
            with nothing_recomputed():
                outputs = network(image)
        else:
            outputs = network(image)
        sum(output.sin().sum() for output in outputs).backward()
        found.append([*outputs, *(p.grad.clone() for p in network.parameters()), *map(torch.clone, network.buffers())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
