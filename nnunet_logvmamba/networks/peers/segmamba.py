"""SegMamba: a 3D encoder of Mamba layers that scan forwards, backwards and across slices, with a UNETR-like decoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_logvmamba.layers import MAMBA_DIRECTIONS, MambaLayer, flag, whole, wholes
from nnunet_logvmamba.networks.blocks.arguments import known_arguments
from nnunet_logvmamba.networks.blocks.heads import one_output
from nnunet_logvmamba.networks.blocks.images import check_image, check_padded_size
from nnunet_logvmamba.networks.blocks.padding import crop, pad_to_multiples
from nnunet_logvmamba.networks.contract import PlannedNetwork
from nnunet_logvmamba.networks.costs import Stage

_TOTAL_STRIDE = 16
_STAGES = 4
_STEPS = ("all", "forward")


def _named(**modules: nn.Module) -> nn.Sequential:
    """Modules one after the other under names of their own."""
    return nn.Sequential(OrderedDict(modules))


def _per_stage(name: str, values: Any) -> list[int]:
    values = wholes(name, values, "stage")
    if len(values) != _STAGES:
        raise ValueError(f"{name} has {len(values)} entries; one for each of {_STAGES} stages is needed")
    return values


class GatedConvolution(nn.Module):
    """Two convolutions and a pointwise one side by side, their sum through another pointwise one, plus the input.

    A sum where the paper's formula has a product, and so no gate; this is what was published as code and measured.

    Shape: (batch, channels, *spatial) -> (batch, channels, *spatial)
    """

    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Conv3d(channels, channels, 3, padding=1)
        self.proj2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.proj3 = nn.Conv3d(channels, channels, 1)
        self.proj4 = nn.Conv3d(channels, channels, 1)
        self.norm, self.norm2, self.norm3, self.norm4 = (nn.InstanceNorm3d(channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.norm(self.proj(x)))
        wide = F.relu(self.norm2(self.proj2(wide)))
        pointwise = F.relu(self.norm3(self.proj3(x)))
        return x + F.relu(self.norm4(self.proj4(wide + pointwise)))


class ChannelMlp(nn.Module):
    """Instance norm, then two pointwise convolutions with GELU between them.

    Shape: (batch, channels, *spatial) -> (batch, channels, *spatial)
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.InstanceNorm3d(channels)
        self.fc1 = nn.Conv3d(channels, 2 * channels, 1)
        self.fc2 = nn.Conv3d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class ResBlock(nn.Module):
    """conv, norm, leaky ReLU, conv, norm, plus the input, leaky ReLU; norms and convolutions have no bias.

    The input comes through a 1x1 convolution and a norm where the width changes, else as it is.

    Shape: (batch, in_channels, *spatial) -> (batch, out_channels, *spatial)
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = _named(conv=nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False))
        self.conv2 = _named(conv=nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False))
        self.conv3 = None
        if in_channels != out_channels:
            self.conv3 = _named(conv=nn.Conv3d(in_channels, out_channels, 1, bias=False))
        self.norm = nn.InstanceNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.conv3 is None else self.norm(self.conv3(x))
        x = F.leaky_relu(self.norm(self.conv1(x)))
        return F.leaky_relu(self.norm(self.conv2(x)) + skip)


class UpBlock(nn.Module):
    """Twice the size by a transposed convolution, the skip beside it, a residual block."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.transp_conv = _named(conv=nn.ConvTranspose3d(in_channels, out_channels, 2, 2, bias=False))
        self.conv_block = ResBlock(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv_block(torch.cat((self.transp_conv(x), skip), dim=1))


class MambaEncoder(nn.Module):
    """Four stages; ``forward`` gives what the decoder sees of each, finest first."""

    def __init__(
        self,
        input_channels: int,
        widths: Sequence[int],
        num_blocks: Sequence[int],
        slices: Sequence[int | None],
        checkpointing: bool,
        **mamba_options: Any,
    ):
        super().__init__()
        self.checkpointing = checkpointing
        self.downsample_layers = nn.ModuleList([nn.Sequential(nn.Conv3d(input_channels, widths[0], 7, 2, 3))])
        for before, width in zip(widths, widths[1:]):
            self.downsample_layers.append(nn.Sequential(nn.InstanceNorm3d(before), nn.Conv3d(before, width, 2, 2)))
        self.gscs = nn.ModuleList(map(GatedConvolution, widths))
        self.stages = nn.ModuleList(
            nn.Sequential(*(MambaLayer(width, residual=True, slices=runs, **mamba_options) for _ in range(count)))
            for width, count, runs in zip(widths, num_blocks, slices)
        )
        self.mlps = nn.ModuleList(map(ChannelMlp, widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for down, convolution, stage, mlp in zip(self.downsample_layers, self.gscs, self.stages, self.mlps):
            x = convolution(down(x))
            x = checkpoint(stage, x, use_reentrant=False) if self.checkpointing and self.training else stage(x)
            skips.append(mlp(x))
        return skips


class SegMamba(PlannedNetwork):
    """SegMamba: four stages of Mamba layers in three directions, and a decoder of residual blocks, in 3D.

    Widths, depths and strides are its own, whatever the plan; each axis is halved four times. The third direction jumps
    between slices: it visits the first voxel of every plane of the first axis, then the second of every plane.

    Args:
        input_channels: Image channels.
        num_classes: Output channels.
        features_per_stage: Widths of the four stages, finest first.
        n_blocks_per_stage: Mamba layers of the four stages.
        hidden_size: Width of the deepest skip.
        slices: Slices of the four stages that the third direction jumps between; the published network has 64, 32, 16,
            8 at every size. None means the planes of the first axis, which are as many where it has 128 voxels.
        drawn_steps: Directions whose steps start between 0.001 and 0.1: ``all``, or ``forward`` as published, where
            those of the others start near 0.7.
        deep_supervision: Must be False, since it has one output.
        checkpointing: Recompute the Mamba layers in the backward pass instead of keeping their activations.
        backend: Scan backend.

    Shape: (batch, input_channels, *spatial) -> (batch, num_classes, *spatial). An image whose sides 16 does not divide
        is padded with zeros at the end and its output is cropped

    Raises:
        ValueError: If an argument is unknown, missing or does not fit, or an image has other channels or axes, or no
            side of more than 16 voxels.

    References: SegMamba (arXiv 2401.13560); the authors' repository has no licence, so this is written from its
        mathematics alone. Theirs fails at sizes that 16 or the fixed numbers of slices do not divide (G1, G8) and has a
        head for 48 channels only (G2). That the "gated" convolution is a sum (G3), biases ahead of norms (G4) and the
        single output are as there; the uncertainty module of the paper is in neither (G10).
    """

    dims: ClassVar[tuple[int, ...]] = (3,)
    pads_itself: ClassVar[bool] = True
    deep_supervised: ClassVar[bool] = False
    plan_arguments: ClassVar[tuple[str, ...]] = ()
    preset: ClassVar[dict[str, Any]] = {
        "patch_size": (128, 128, 128),
        "arguments": {"input_channels": 4, "num_classes": 4},
    }

    @known_arguments
    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        features_per_stage: Sequence[int] = (48, 96, 192, 384),
        n_blocks_per_stage: Sequence[int] = (2, 2, 2, 2),
        hidden_size: int = 768,
        slices: Sequence[int] | None = None,
        drawn_steps: str = "all",
        deep_supervision: bool = False,
        checkpointing: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        one_output(flag("deep_supervision", deep_supervision))
        widths = _per_stage("features_per_stage", features_per_stage)
        num_blocks = _per_stage("n_blocks_per_stage", n_blocks_per_stage)
        runs = [None] * _STAGES if slices is None else _per_stage("slices", slices)
        if drawn_steps not in _STEPS:
            raise ValueError(f"unknown drawn_steps {drawn_steps!r}; valid are {', '.join(map(repr, _STEPS))}")
        self.input_channels = whole("input_channels", input_channels)
        hidden = whole("hidden_size", hidden_size)
        self.vit = MambaEncoder(
            self.input_channels,
            widths,
            num_blocks,
            runs,
            flag("checkpointing", checkpointing),
            directions=tuple(MAMBA_DIRECTIONS),
            drawn_steps=None if drawn_steps == "all" else ("forward",),
            backend=backend,
        )
        befores, afters = (self.input_channels, *widths), (*widths, hidden)
        for index, (before, after) in enumerate(zip(befores, afters), 1):
            self.register_module(f"encoder{index}", _named(layer=ResBlock(before, after)))
        for index in range(len(afters), 1, -1):
            self.register_module(f"decoder{index}", UpBlock(afters[index - 1], afters[index - 2]))
        self.decoder1 = _named(layer=ResBlock(widths[0], widths[0]))
        self.out = _named(conv=_named(conv=nn.Conv3d(widths[0], whole("num_classes", num_classes), 1)))

    def costs_by_stage(self) -> list[Stage]:
        """Stages of the encoder with their layers, the blocks on their skips, steps of the decoder, the head."""
        stages = []
        for index in range(_STAGES):
            before = (f"vit.downsample_layers.{index}", f"vit.mlps.{index}", f"vit.gscs.{index}")
            stages.append(Stage(f"stage {index}", before, f"vit.stages.{index}", "Mamba"))
        stages += [Stage(f"skip {index}", (f"encoder{index}",)) for index in range(1, _STAGES + 2)]
        stages += [Stage(f"decoder {index}", (f"decoder{index}",)) for index in range(_STAGES + 1, 0, -1)]
        return [*stages, Stage("head", ("out",))]

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, self.input_channels, 3)
        multiples = [_TOTAL_STRIDE] * 3
        check_padded_size(x, multiples)
        spatial = x.shape[2:]
        x = pad_to_multiples(x, multiples)
        maps = [self.encoder1(x)]
        for index, skip in enumerate(self.vit(x), 2):
            maps.append(self.get_submodule(f"encoder{index}")(skip))
        y = maps[-1]
        for index in range(len(maps), 1, -1):
            y = self.get_submodule(f"decoder{index}")(y, maps[index - 2])
        return crop(self.out(self.decoder1(y)), spatial)
