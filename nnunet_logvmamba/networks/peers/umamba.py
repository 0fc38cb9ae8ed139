"""U-Mamba: the residual U-Net of nnU-Net's plan with Mamba at the bottom (Bot) or behind its encoder's stages (Enc)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from math import prod
from numbers import Integral
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_logvmamba.errors import OtherPatchError
from nnunet_logvmamba.layers import CONVOLUTIONS, MambaLayer, flag, listed, per_axis, whole, wholes
from nnunet_logvmamba.networks.blocks.arguments import known_arguments
from nnunet_logvmamba.networks.blocks.images import check_image, check_padded_size, times
from nnunet_logvmamba.networks.blocks.norms import INSTANCE_NORMS
from nnunet_logvmamba.networks.blocks.padding import crop, pad_to_multiples, sizes_of_scales
from nnunet_logvmamba.networks.blocks.residual import ResidualBlock
from nnunet_logvmamba.networks.contract import PlannedNetwork
from nnunet_logvmamba.networks.costs import Stage, heads, names_in
from nnunet_logvmamba.networks.log_vmamba.policy import check_first_stride

_PRESET: dict[str, Any] = {
    "patch_size": (128, 128, 128),
    "arguments": {
        "input_channels": 4,
        "num_classes": 3,
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "conv_op": nn.Conv3d,
        "kernel_sizes": [[3, 3, 3]] * 6,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
        "n_conv_per_stage": [2] * 6,
        "n_conv_per_stage_decoder": [2] * 5,
        "deep_supervision": True,
    },
}
"""U-Mamba has no sizes of its own; this is what it makes of the plan that nnU-Net has for patches of this size."""


def _norm(conv_op: type[nn.Module], width: int) -> nn.Module:
    return INSTANCE_NORMS[convert_conv_op_to_dim(conv_op)](width, eps=1e-5, affine=True)


class ConvNorm(nn.Module):
    """A convolution and its norm, under the published names."""

    def __init__(self, conv_op: type[nn.Module], width: int, kernel: Sequence[int]):
        super().__init__()
        self.conv = conv_op(width, width, kernel, padding=[size // 2 for size in kernel])
        self.norm = _norm(conv_op, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class PlainBlock(nn.Module):
    """conv, norm, leaky ReLU, conv, norm, plus the input as it is, leaky ReLU."""

    def __init__(self, conv_op: type[nn.Module], width: int, kernel: Sequence[int]):
        super().__init__()
        self.conv1 = ConvNorm(conv_op, width, kernel)
        self.conv2 = ConvNorm(conv_op, width, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x))) + x)


def _stage(
    conv_op: type[nn.Module],
    in_channels: int,
    width: int,
    kernel: Sequence[int],
    stride: Sequence[int] | int,
    num_blocks: int,
) -> nn.Sequential:
    """A block that projects its input, then ``num_blocks - 1`` that do not."""
    first = ResidualBlock(
        conv_op,
        in_channels,
        width,
        kernel,
        stride,
        project=True,
        conv_bias=True,
        norm_op=INSTANCE_NORMS[convert_conv_op_to_dim(conv_op)],
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={},
    )
    return nn.Sequential(first, *(PlainBlock(conv_op, width, kernel) for _ in range(num_blocks - 1)))


class Encoder(nn.Module):
    """A stem and stages; ``forward`` returns the map of every stage, finest first.

    ``mamba_layers`` has a layer, or an identity, for every stage, or is empty. What a layer makes of a map replaces it,
    for the next stage and for the decoder.
    """

    def __init__(
        self,
        input_channels: int,
        widths: Sequence[int],
        conv_op: type[nn.Module],
        kernels: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        num_blocks: Sequence[int],
        mamba_layers: Sequence[nn.Module],
        checkpointing: bool,
    ):
        super().__init__()
        self.checkpointing = checkpointing
        self.stem = _stage(conv_op, input_channels, widths[0], kernels[0], 1, num_blocks[0])
        befores = (widths[0], *widths)
        self.stages = nn.ModuleList(
            _stage(conv_op, *options) for options in zip(befores, widths, kernels, strides, num_blocks)
        )
        self.mamba_layers = nn.ModuleList(mamba_layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if len(self.mamba_layers):
                x = called(self.mamba_layers[index], x, self.checkpointing)
            maps.append(x)
        return maps


def called(layer: nn.Module, x: Tensor, checkpointing: bool) -> Tensor:
    """Call a layer; with ``checkpointing`` what it computes while training is computed once more for its gradient."""
    return checkpoint(layer, x, use_reentrant=False) if checkpointing and layer.training else layer(x)


class Upsample(nn.Module):
    """Repeat each voxel by a stride, then a 1x1 convolution.

    The two can be exchanged, and the convolution comes first here, on the fewer voxels.
    """

    def __init__(self, conv_op: type[nn.Module], in_channels: int, width: int, stride: Sequence[int]):
        super().__init__()
        self.conv = conv_op(in_channels, width, 1)
        self.stride = [float(step) for step in stride]

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), scale_factor=self.stride, mode="nearest")


class Decoder(nn.Module):
    """Up from the deepest map, each step joined with the skip of its scale, and a head per scale.

    With ``deep_supervision`` on, ``forward`` returns all scales, finest first, else the finest alone. Without
    ``joins_finest`` the last step has no skip.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        conv_op: type[nn.Module],
        kernels: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        num_blocks: Sequence[int],
        joins_finest: bool,
        deep_supervision: bool,
    ):
        super().__init__()
        self.joins_finest, self.deep_supervision = joins_finest, deep_supervision
        self.upsample_layers, self.stages, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for step, blocks in enumerate(num_blocks):
            index = len(widths) - 2 - step
            width = widths[index]
            joined = 2 * width if index or joins_finest else width
            self.upsample_layers.append(Upsample(conv_op, widths[index + 1], width, strides[index + 1]))
            self.stages.append(_stage(conv_op, joined, width, kernels[index], 1, blocks))
            self.seg_layers.append(conv_op(width, num_classes, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor | list[Tensor]:
        *skips, x = maps
        outputs = []
        last = len(self.stages) - 1
        for step, (upsample, stage, skip) in enumerate(zip(self.upsample_layers, self.stages, reversed(skips))):
            x = upsample(x)
            x = stage(torch.cat((x, skip), 1) if step < last or self.joins_finest else x)
            if self.deep_supervision or step == last:
                outputs.append(self.seg_layers[step](x))
        return outputs[::-1] if self.deep_supervision else outputs[-1]


class UMamba(PlannedNetwork):
    """What both have in common: a residual U-Net with concatenated skips, and where its Mamba layers go.

    Stages have as many blocks as the plan says in the first half of the encoder, counted from the top, and in the first
    half of the decoder, counted from the bottom, and one block elsewhere, as published. In 2D the last step up has no
    skip, as published. Convolutions have a bias, norms are instance norms with epsilon 1e-5, the nonlinearity is a
    leaky ReLU of slope 0.01, and there is no dropout, whatever the plan says of them.
    """

    pads_itself: ClassVar[bool] = True
    plan_arguments: ClassVar[tuple[str, ...]] = (
        "n_stages",
        "features_per_stage",
        "conv_op",
        "kernel_sizes",
        "strides",
        "n_conv_per_stage",
        "n_conv_per_stage_decoder",
    )

    def _build(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: Sequence[Sequence[int]] | int,
        strides: Sequence[Sequence[int]] | Sequence[int],
        num_classes: int,
        n_conv_per_stage: Sequence[int] | int,
        n_conv_per_stage_decoder: Sequence[int] | int,
        deep_supervision: bool,
        checkpointing: bool,
        **layer_options: Any,
    ) -> None:
        if conv_op not in CONVOLUTIONS.values():
            raise ValueError(f"conv_op is {conv_op!r}; the class torch.nn.Conv2d or torch.nn.Conv3d is needed")
        dims = convert_conv_op_to_dim(conv_op)
        n_stages = whole("n_stages", n_stages, least=2)

        def per_stage(name: str, values: Any, count: int = n_stages) -> list:
            values = [values] * count if isinstance(values, Integral) else values
            values = listed(name, values, "with one entry per stage")
            if len(values) != count:
                raise ValueError(f"{name} has {len(values)} entries for {n_stages} stages; {count} are needed")
            return values

        widths = wholes("features_per_stage", per_stage("features_per_stage", features_per_stage), "stage")
        planned = wholes("n_conv_per_stage", per_stage("n_conv_per_stage", n_conv_per_stage), "stage")
        name = "n_conv_per_stage_decoder"
        planned_up = wholes(name, per_stage(name, n_conv_per_stage_decoder, n_stages - 1), "stage")
        sizes, steps = per_stage("kernel_sizes", kernel_sizes), per_stage("strides", strides)
        kernels = [per_axis(f"kernel_sizes[{stage}]", size, dims, odd=True) for stage, size in enumerate(sizes)]
        self.strides = [per_axis(f"strides[{stage}]", step, dims) for stage, step in enumerate(steps)]
        check_first_stride(self.strides)
        half = math.ceil(n_stages / 2)
        self.blocks = [count if stage < half else 1 for stage, count in enumerate(planned)]
        self.blocks_up = [count if step < half else 1 for step, count in enumerate(planned_up)]
        self.input_channels, self.spatial_dims = whole("input_channels", input_channels), dims
        self.multiples = [prod(axis) for axis in zip(*self.strides)]
        self.checkpointing = flag("checkpointing", checkpointing)
        self.encoder = Encoder(
            self.input_channels,
            widths,
            conv_op,
            kernels,
            self.strides,
            self.blocks,
            self.layers_of_stages(widths, **layer_options),
            self.checkpointing,
        )
        self.decoder = Decoder(
            widths,
            whole("num_classes", num_classes),
            conv_op,
            kernels,
            self.strides,
            self.blocks_up,
            joins_finest=dims == 3,
            deep_supervision=flag("deep_supervision", deep_supervision),
        )
        self.apply(InitWeights_He(1e-2))

    def layers_of_stages(self, widths: Sequence[int], **options: Any) -> list[nn.Module]:
        """The encoder's Mamba layers, one per stage; none at all where they are elsewhere."""
        return []

    @classmethod
    def from_plan(cls, planned: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """Take the plan's stages; blocks of a residual encoder stand for its convolutions."""
        arguments = super().from_plan(planned, patch_size)
        if "n_blocks_per_stage" in planned:
            arguments["n_conv_per_stage"] = deepcopy(planned["n_blocks_per_stage"])
        return arguments

    def costs_by_stage(self) -> list[Stage]:
        """Stem, stages of the encoder with their layers, steps of the decoder, heads; with the blocks that each has."""
        stages = [Stage(f"stem, {_blocks(self.blocks[0])}", ("encoder.stem",))]
        for index, (name, count) in enumerate(zip(names_in("encoder.stages", self.encoder.stages), self.blocks)):
            stages.append(Stage(f"encoder {index}, {_blocks(count)}", (name,), *self.layer_of_stage(index)))
        for step, name in enumerate(names_in("decoder.stages", self.decoder.stages)):
            parts = (f"decoder.upsample_layers.{step}", name)
            stages.append(Stage(f"decoder {step}, {_blocks(self.blocks_up[step])}", parts))
        return [*stages, heads(self)]

    def layer_of_stage(self, index: int) -> tuple[str, str] | tuple[()]:
        """Dotted name and label of the Mamba layer behind a stage of the encoder, if it has one."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_image(x, self.input_channels, self.spatial_dims)
        check_padded_size(x, self.multiples)
        spatial = x.shape[2:]
        outputs = self.segment(pad_to_multiples(x, self.multiples))
        if isinstance(outputs, Tensor):
            return crop(outputs, spatial)
        return [crop(output, size) for output, size in zip(outputs, sizes_of_scales(spatial, self.strides))]

    def segment(self, x: Tensor) -> Tensor | list[Tensor]:
        """What ``forward`` gives for an image that the strides divide."""
        return self.decoder(self.encoder(x))


def _blocks(count: int) -> str:
    return f"{count} block{'s' if count > 1 else ''}"


class UMambaBot(UMamba):
    """U-Mamba-Bot: the residual U-Net with one Mamba layer, behind its last encoder stage.

    Args:
        input_channels: Image channels.
        n_stages: Stages of the plan, at least 2.
        features_per_stage: Widths of the stages, finest first.
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
        kernel_sizes: Odd kernel per stage, each a number or one per axis; a single number is for all.
        strides: Stride per stage, each a number or one per axis; the first is 1.
        num_classes: Output channels.
        n_conv_per_stage: Blocks of the encoder's stages; those of the second half are not used, see :class:`UMamba`.
        n_conv_per_stage_decoder: Blocks of the decoder's steps from the bottom; likewise.
        deep_supervision: Return all scales but the lowest, finest first.
        checkpointing: Recompute the Mamba layer in the backward pass instead of keeping its activations.
        backend: Scan backend.

    Shape: (batch, input_channels, *spatial) -> (batch, num_classes, *spatial), or a list. An image that the strides do
        not divide is padded with zeros at the end and its outputs are cropped

    Raises:
        ValueError: If an argument is unknown, missing or does not fit, or an image has other channels or axes, or so
            few voxels that instance norm has a single one of them at the deepest stage.

    References: U-Mamba (arXiv 2401.04722); the authors' code, under Apache-2.0, differs in that it fails at sizes that
        the strides do not divide or returns others, and in bfloat16 (U3, U9), changes the plan that it is given (U5),
        and stores weights several times (U12). No residual around the layer (U1), no skip in the last step of 2D (U2)
        and one block in half of the stages (U4) are as there.
    """

    preset: ClassVar[dict[str, Any]] = _PRESET

    @known_arguments
    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: Sequence[Sequence[int]] | int,
        strides: Sequence[Sequence[int]] | Sequence[int],
        num_classes: int,
        n_conv_per_stage: Sequence[int] | int = 2,
        n_conv_per_stage_decoder: Sequence[int] | int = 2,
        deep_supervision: bool = False,
        checkpointing: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        self._build(
            input_channels,
            n_stages,
            features_per_stage,
            conv_op,
            kernel_sizes,
            strides,
            num_classes,
            n_conv_per_stage,
            n_conv_per_stage_decoder,
            deep_supervision,
            checkpointing,
        )
        self.mamba_layer = MambaLayer(self.encoder.stages[-1][0].conv1.out_channels, backend=backend)

    def layer_of_stage(self, index: int) -> tuple[str, str] | tuple[()]:
        """The one layer, behind the last stage."""
        return ("mamba_layer", "Mamba") if index == len(self.blocks) - 1 else ()

    def segment(self, x: Tensor) -> Tensor | list[Tensor]:
        """What ``forward`` gives for an image that the strides divide."""
        *skips, deepest = self.encoder(x)
        return self.decoder([*skips, called(self.mamba_layer, deepest, self.checkpointing)])


class UMambaEnc(UMamba):
    """U-Mamba-Enc: the residual U-Net with a Mamba layer behind each encoder stage, in 2D behind every other one.

    Where a stage has no more voxels than channels, the layer's tokens are the channels, and its weights those of a map
    of that size: such a network takes one patch size only and says so to others. ``channel_tokens=False`` makes voxels
    the tokens everywhere, which is another network, for every size.

    Args:
        input_channels: Image channels.
        n_stages: Stages of the plan, at least 2.
        features_per_stage: Widths of the stages, finest first.
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
        kernel_sizes: Odd kernel per stage, each a number or one per axis; a single number is for all.
        strides: Stride per stage, each a number or one per axis; the first is 1.
        num_classes: Output channels.
        patch_size: Voxels per axis of the patches it is trained with; needed for channel tokens.
        n_conv_per_stage: Blocks of the encoder's stages; those of the second half are not used, see :class:`UMamba`.
        n_conv_per_stage_decoder: Blocks of the decoder's steps from the bottom; likewise.
        deep_supervision: Return all scales but the lowest, finest first.
        channel_tokens: Whether small maps have their channels as tokens, as published.
        checkpointing: Recompute the Mamba layers in the backward pass instead of keeping their activations.
        backend: Scan backend.

    Shape: (batch, input_channels, *spatial) -> (batch, num_classes, *spatial), or a list. An image that the strides do
        not divide is padded with zeros at the end and its outputs are cropped

    Raises:
        ValueError: If an argument is unknown, missing or does not fit, or an image has other channels or axes, is too
            small, or is not of the patch size that channel tokens need; or if weights for another patch are loaded.

    References: U-Mamba (arXiv 2401.04722); as :class:`UMambaBot`, and channel tokens are decided by the true sizes of
        the maps, equality included (U7, U8), which are checked (U6).
    """

    any_patch: ClassVar[bool] = False
    preset: ClassVar[dict[str, Any]] = {
        "patch_size": _PRESET["patch_size"],
        "arguments": {**_PRESET["arguments"], "patch_size": list(_PRESET["patch_size"])},
    }

    @known_arguments
    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: Sequence[Sequence[int]] | int,
        strides: Sequence[Sequence[int]] | Sequence[int],
        num_classes: int,
        patch_size: Sequence[int] | None = None,
        n_conv_per_stage: Sequence[int] | int = 2,
        n_conv_per_stage_decoder: Sequence[int] | int = 2,
        deep_supervision: bool = False,
        channel_tokens: bool = True,
        checkpointing: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        self.channel_tokens = flag("channel_tokens", channel_tokens)
        if self.channel_tokens and patch_size is None:
            raise ValueError("patch_size is None; channel tokens need it: give the patch, or set channel_tokens=False")
        self.patch_size = [] if patch_size is None else wholes("patch_size", patch_size, "axis")
        self._build(
            input_channels,
            n_stages,
            features_per_stage,
            conv_op,
            kernel_sizes,
            strides,
            num_classes,
            n_conv_per_stage,
            n_conv_per_stage_decoder,
            deep_supervision,
            checkpointing,
            backend=backend,
        )

    @classmethod
    def from_plan(cls, planned: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """Take the plan's stages and its patch."""
        return {**super().from_plan(planned, patch_size), "patch_size": list(patch_size)}

    def layers_of_stages(self, widths: Sequence[int], **options: Any) -> list[nn.Module]:
        """A layer for every stage in 3D, in 2D for the last and every other one before."""
        count, dims = len(widths), self.spatial_dims
        if self.channel_tokens and len(self.patch_size) != dims:
            raise ValueError(f"patch_size is {self.patch_size}; one whole number for each of {dims} axes is needed")
        self.tied: list[int] = []
        layers: list[nn.Module] = []
        for stage, width in enumerate(widths):
            if dims == 2 and (count - 1 - stage) % 2:
                layers.append(nn.Identity())
                continue
            voxels = self.voxels(stage) if self.channel_tokens else width + 1
            if voxels <= width:
                self.tied.append(stage)
                layers.append(MambaLayer(voxels, tokens="channel", **options))
            else:
                layers.append(MambaLayer(width, **options))
        return layers

    @property
    def padded_patch(self) -> list[int]:
        """The patch as the strides divide it."""
        return [size + -size % multiple for size, multiple in zip(self.patch_size, self.multiples)]

    @property
    def is_of_one_patch(self) -> bool:
        """Whether tokens of a layer are channels."""
        return bool(self.tied)

    def voxels(self, stage: int) -> int:
        """Voxels of a stage's map for the patch."""
        return prod(self.padded_patch) // prod(prod(step) for step in self.strides[: stage + 1])

    def layer_of_stage(self, index: int) -> tuple[str, str] | tuple[()]:
        """The layer of a stage."""
        layer = self.encoder.mamba_layers[index]
        if isinstance(layer, nn.Identity):
            return ()
        return f"encoder.mamba_layers.{index}", "Mamba" if layer.tokens == "patch" else "Mamba over channels"

    def segment(self, x: Tensor) -> Tensor | list[Tensor]:
        """What ``forward`` gives for an image that the strides divide."""
        if self.tied and list(x.shape[2:]) != self.padded_patch:
            raise ValueError(
                f"this U-Mamba-Enc was made for patches of {times(self.patch_size)}, since the tokens of its "
                f"{_stages(self.tied)} are channels of maps of that size: give it patches of that size, as nnU-Net does"
            )
        return super().segment(x)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for stage, layer in enumerate(self.encoder.mamba_layers):
            stored = state_dict.get(f"{prefix}encoder.mamba_layers.{stage}.norm.weight")
            if stored is not None and hasattr(layer, "width") and stored.numel() != layer.width:
                patch = f"the patch {times(self.patch_size)}" if self.channel_tokens else "patches of every size"
                raise OtherPatchError(
                    f"These weights are those of a U-Mamba-Enc for another patch: the Mamba layer of its stage {stage} "
                    f"has tokens of {stored.numel()}, and this one, for {patch}, of {layer.width}; build it with the "
                    "patch size that the weights were trained with."
                )
        super()._load_from_state_dict(state_dict, prefix, *others)


def _stages(indices: Sequence[int]) -> str:
    return f"stage{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"
