"""EoFormer: a transformer whose decoder looks for edges, in 3D."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_logvmamba.layers import DropPath, listed, share, whole, wholes
from nnunet_logvmamba.networks.blocks.arguments import known_arguments
from nnunet_logvmamba.networks.blocks.heads import one_output
from nnunet_logvmamba.networks.blocks.images import check_image
from nnunet_logvmamba.networks.blocks.padding import crop, pad_to_multiples
from nnunet_logvmamba.networks.contract import PlannedNetwork

_STAGES = 4
_TOTAL_STRIDE = 2**_STAGES
_HEAD_WIDTH = 32
_EPS = 1e-6
_EDGE_STD = 1e-3  # of the first weights and biases of edge operators


class EoFormer(PlannedNetwork):
    """Encoder of separable convolutions and, below, efficient attention; decoder of Sobel and Laplace operators.

    Every stage halves every axis, whatever was planned. An image that 16 does not divide is padded with zeros at the
    end of each axis, and the output is cropped. Its attention and one of its norms look at the whole patch, so that
    what it says of a voxel depends a little on the size of the patch; one checkpoint fits all sizes.

    Args:
        input_channels: Image channels.
        num_classes: Output channels.
        features: Widths of the four stages of the encoder, finest first; the lower two, which have attention with heads
            of 32 channels, are multiples of 32.
        decoder_features: Widths of the three stages of the decoder, deepest first, and of the map ahead of the head;
            None means those of the encoder, half the first of them at last.
        n_blocks_per_stage: Blocks of the stages of the encoder.
        drop_path: Largest probability to drop a block's branch while training: it rises from 0 to this in the encoder
            and falls back to 0 in the decoder.
        deep_supervision: Must be False; there is one output.

    Shape: (batch, input_channels, *spatial) -> (batch, num_classes, *spatial)

    Raises:
        ValueError: If an argument is unknown, missing or does not fit (the message names it), or an image has other
            channels or axes.

    References: EoFormer (MICCAI 2023), whose code has no licence: this was written from a description of its
        mathematics. Other than there, no position embedding is looked for, the fixed kernels
        are constants and no parameters, and an edge operator runs as the one convolution that its branches add up to.
        One bias of each branch cancels, since each fixed kernel sums to zero: it is kept, frozen, so that weights fit.
    """

    dims: ClassVar = (3,)
    pads_itself: ClassVar = True
    deep_supervised: ClassVar = False
    preset: ClassVar = {"patch_size": (128, 128, 128), "arguments": {"input_channels": 4, "num_classes": 3}}
    plan_arguments: ClassVar = ()

    @known_arguments
    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        features: Sequence[int] = (32, 64, 128, 256),
        decoder_features: Sequence[int] | None = None,
        n_blocks_per_stage: Sequence[int] = (2, 2, 2, 2),
        drop_path: float = 0.1,
        deep_supervision: bool = False,
    ):
        super().__init__()
        one_output(deep_supervision)
        self.input_channels, num_classes = whole("input_channels", input_channels), whole("num_classes", num_classes)
        widths = _four("features", features)
        if decoder_features is None:
            decoder_features = [*widths[-2::-1], max(1, widths[0] // 2)]
        up_widths, depths = _four("decoder_features", decoder_features), _four("n_blocks_per_stage", n_blocks_per_stage)
        if any(width % _HEAD_WIDTH for width in widths[2:]):
            raise ValueError(
                f"features is {widths}; the last two must be multiples of {_HEAD_WIDTH}, the width of a head"
            )
        drop_path = share("drop_path", drop_path)
        self.encoder = _Encoder(self.input_channels, widths, depths, drop_path)
        self.decoder = _Decoder(widths, up_widths, drop_path)
        self.out = _conv(_conv(nn.Conv3d(up_widths[-1], num_classes, 1)))

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, self.input_channels, 3)
        y = self.decoder(self.encoder(pad_to_multiples(x, [_TOTAL_STRIDE] * 3)))
        return crop(self.out(y), x.shape[2:])


def _four(name: str, values: Sequence[int]) -> list[int]:
    if len(listed(name, values, "with one entry per stage")) != _STAGES:
        raise ValueError(f"{name} has {len(values)} entries; {_STAGES} are needed")
    return wholes(name, values, "stage")


class _ScaledNorm(nn.LayerNorm):
    """Layer norm over the last axis without a shift."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=_EPS, bias=False)


class _StarReLU(nn.Module):
    """The square of a ReLU with one scale and one shift for all."""

    def __init__(self):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.relu(x) ** 2 + self.bias


class _Scale(nn.Module):
    """A weight per channel. Shape: (..., channels), kept"""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class _FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.fc1, self.fc2 = (
            nn.Linear(channels, 4 * channels, bias=False),
            nn.Linear(4 * channels, channels, bias=False),
        )
        self.act = _StarReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class SeparableConvolution(nn.Module):
    """Twice as many channels, a depthwise convolution, and back. Shape: (batch, *spatial, channels), kept"""

    def __init__(self, channels: int):
        super().__init__()
        inner = 2 * channels
        self.pwconv1, self.pwconv2 = nn.Linear(channels, inner, bias=False), nn.Linear(inner, channels, bias=False)
        self.dwconv = nn.Conv3d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.act1 = _StarReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.pwconv1(x))
        return self.pwconv2(self.dwconv(x.movedim(-1, 1)).movedim(1, -1))


class EfficientAttention(nn.Module):
    """Attention that is linear in the number of voxels: what all voxels hold is gathered once per pair of channels.

    Shape: (batch, *spatial, channels), kept

    References: Efficient Attention (arXiv 1812.01243).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.keys, self.queries, self.values, self.reprojection = (nn.Conv3d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(-1, 1)
        heads = (
            layer(x).flatten(2).unflatten(1, (-1, _HEAD_WIDTH)) for layer in (self.keys, self.queries, self.values)
        )
        keys, queries, values = heads  # (batch, heads, channels of a head, voxels)
        context = keys.softmax(-1) @ values.transpose(-1, -2)
        y = context.transpose(-1, -2) @ queries.softmax(-2)
        return self.reprojection(y.flatten(1, 2).unflatten(2, x.shape[2:])).movedim(1, -1)


_SMOOTH, _SLOPE = (1.0, 2.0, 1.0), (-1.0, 0.0, 1.0)


def _outer(*sides: Sequence[float]) -> Tensor:
    first, second, third = (torch.tensor(side) for side in sides)
    return first[:, None, None] * second[:, None] * third


def _laplacian() -> Tensor:
    kernel = torch.zeros(3, 3, 3)
    kernel[1, 1] += torch.tensor([1.0, -6.0, 1.0])
    kernel[1, [0, 2], 1] = kernel[[0, 2], 1, 1] = 1.0
    return kernel


class EdgeBranch(nn.Module):
    """A mixture of channels and a fixed kernel behind it, one convolution together.

    Args:
        channels: In and out.
        fixed: The kernel, (3, 3, 3), which sums to zero.
    """

    fixed: Tensor

    def __init__(self, channels: int, fixed: Tensor):
        super().__init__()
        mixture = nn.Conv3d(channels, channels, 1)
        self.k0, self.b0 = mixture.weight, mixture.bias
        self.b0.requires_grad_(False)  # without effect, as the kernel sums to zero
        self.scale = nn.Parameter(torch.empty(channels, 1, 1, 1, 1).normal_(std=_EDGE_STD))
        self.bias = nn.Parameter(torch.empty(channels).normal_(std=_EDGE_STD))
        self.register_buffer("fixed", fixed, persistent=False)

    def kernel(self) -> Tensor:
        """Give the whole kernel, (channels, channels, 3, 3, 3)."""
        return self.scale * self.k0 * self.fixed


class EdgeOperator(nn.Module):
    """A residual convolution and edge detectors, norm, nonlinearity. Shape: (batch, *spatial, channels), kept"""

    def __init__(self, channels: int, **kernels: Tensor):
        super().__init__()
        self.conv3x3x3 = nn.Conv3d(channels, channels, 3, padding=1)
        for name, kernel in kernels.items():
            self.add_module(f"conv1x1x1_{name}", EdgeBranch(channels, kernel))
        self.norm = nn.LayerNorm(channels, eps=1e-5, elementwise_affine=False)
        self.act = nn.PReLU(channels)

    @classmethod
    def sobel(cls, channels: int) -> "EdgeOperator":
        """Slopes along the three axes; x is the last."""
        return cls(
            channels,
            sbx=_outer(_SMOOTH, _SMOOTH, _SLOPE),
            sby=_outer(_SMOOTH, _SLOPE, _SMOOTH),
            sbz=_outer(_SLOPE, _SMOOTH, _SMOOTH),
        )

    @classmethod
    def laplace(cls, channels: int) -> "EdgeOperator":
        """Curvature."""
        return cls(channels, lpl=_laplacian())

    def branches(self) -> Iterator[EdgeBranch]:
        return (module for module in self.children() if isinstance(module, EdgeBranch))

    def merged(self) -> tuple[Tensor, Tensor]:
        """Give kernel and bias of the one convolution that all are together, but for the residual."""
        kernel, bias = self.conv3x3x3.weight, self.conv3x3x3.bias
        for branch in self.branches():
            kernel, bias = kernel + branch.kernel(), bias + branch.bias
        return kernel, bias

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(-1, 1)
        x = x + F.conv3d(x, *self.merged(), padding=1)
        return self.act(self.norm(x.movedim(1, -1)).movedim(-1, 1)).movedim(1, -1)


class Block(nn.Module):
    """A token mixer and a feed-forward layer, both residual. Shape: (batch, *spatial, channels), kept

    Args:
        channels: Width.
        token_mixer: Of the same shape.
        drop_path: Probability to drop a branch while training.
        scaled: Whether what goes past the branches has a weight per channel.
    """

    def __init__(self, channels: int, token_mixer: nn.Module, drop_path: float = 0.0, scaled: bool = False):
        super().__init__()
        self.norm1, self.norm2 = _ScaledNorm(channels), _ScaledNorm(channels)
        self.token_mixer, self.mlp = token_mixer, _FeedForward(channels)
        self.drop_path = DropPath(drop_path)
        self.res_scale1, self.res_scale2 = (_Scale(channels) if scaled else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.res_scale1(x) + self.drop_path(self.token_mixer(self.norm1(x)))
        return self.res_scale2(x) + self.drop_path(self.mlp(self.norm2(x)))


class _Down(nn.Module):
    """A strided convolution, the norm behind it or ahead. Shape: (batch, *spatial, channels), halved"""

    def __init__(self, in_channels: int, channels: int, norm_first: bool):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, channels, 3, stride=2, padding=1)
        self.pre_norm = _ScaledNorm(in_channels) if norm_first else nn.Identity()
        self.post_norm = nn.Identity() if norm_first else _ScaledNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.post_norm(self.conv(self.pre_norm(x).movedim(-1, 1)).movedim(1, -1))


class _Encoder(nn.Module):
    """Shape: (batch, channels, *spatial) -> maps of four scales, finest first"""

    def __init__(self, input_channels: int, widths: Sequence[int], depths: Sequence[int], drop_path: float):
        super().__init__()
        self.downsample_layers = nn.ModuleList(
            _Down(above, width, norm_first=stage > 0)
            for stage, (above, width) in enumerate(zip([input_channels, *widths], widths))
        )
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        mixers = [SeparableConvolution, SeparableConvolution, EfficientAttention, EfficientAttention]
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width, mixer(width), next(rates), scaled=stage >= 2) for _ in range(depth)))
            for stage, (width, depth, mixer) in enumerate(zip(widths, depths, mixers))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        x = x.movedim(1, -1)
        for down, stage in zip(self.downsample_layers, self.stages):
            x = stage(down(x))
            maps.append(x.movedim(-1, 1))
        return maps


class _Up(nn.Module):
    """Twice as many voxels along each axis, then the skip of that scale, where there is one."""

    def __init__(self, in_channels: int, channels: int, skip_channels: int | None = None):
        super().__init__()
        self.norm = nn.GroupNorm(1, in_channels)
        self.transp_conv = _conv(nn.ConvTranspose3d(in_channels, channels, 2, stride=2, bias=False))
        if skip_channels is not None:
            self.conv_block = _conv(nn.Conv3d(channels + skip_channels, channels, 3, padding=1, bias=False))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = self.transp_conv(self.norm(x))
        return x if skip is None else self.conv_block(torch.cat((x, skip), 1))


def _conv(layer: nn.Module) -> nn.Sequential:
    sequence = nn.Sequential()
    sequence.add_module("conv", layer)
    return sequence


class _Decoder(nn.Module):
    """Shape: maps of four scales, finest first -> (batch, channels, *spatial) at full resolution"""

    def __init__(self, skip_widths: Sequence[int], widths: Sequence[int], drop_path: float):
        super().__init__()
        skips = [*skip_widths[-2::-1], None]
        self.upsample_layers = nn.ModuleList(map(_Up, [skip_widths[-1], *widths], widths, skips))
        rates = iter(torch.linspace(drop_path, 0, 2 * (_STAGES - 1), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    Block(width, mixer(width), next(rates), scaled=stage == 2)
                    for mixer in (EdgeOperator.sobel, EdgeOperator.laplace)
                )
            )
            for stage, width in enumerate(widths[:-1])
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *skips, x = maps
        for up, stage, skip in zip(self.upsample_layers, self.stages, reversed(skips)):
            x = stage(up(x, skip).movedim(1, -1)).movedim(-1, 1)
        return self.upsample_layers[-1](x)
