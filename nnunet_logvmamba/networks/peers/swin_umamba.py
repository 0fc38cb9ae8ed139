"""Swin-UMamba: a VMamba encoder behind a strided stem, and a residual convolutional decoder, in 2D."""

from collections.abc import Sequence
from copy import deepcopy
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnunet_logvmamba.layers import flag, listed, per_axis, whole, wholes
from nnunet_logvmamba.networks.blocks.arguments import known_arguments
from nnunet_logvmamba.networks.blocks.images import check_image
from nnunet_logvmamba.networks.blocks.padding import crop, pad_to_multiples, sizes_of_scales
from nnunet_logvmamba.networks.blocks.residual import ResidualBlock
from nnunet_logvmamba.networks.blocks.vmamba_encoder import VMambaEncoder
from nnunet_logvmamba.networks.contract import PlannedNetwork
from nnunet_logvmamba.networks.costs import Stage, heads

_HALF = (2, 2)
_PUBLISHED: dict[str, list] = {
    "features_per_stage": [48, 96, 192, 384, 768],
    "strides": [[1, 1], [2, 2], [2, 2], [2, 2], [4, 4]],
    "n_blocks_per_stage": [2, 2, 9, 2],
}


class SwinUMamba(PlannedNetwork):
    """A stem at half resolution, four stages of VSS blocks, a skip of convolutions per scale, and a way up.

    A residual block turns the image, the stem's map and those of all stages but the deepest into skips; the deepest map
    goes to the decoder as it is. Its sister Swin-UMamba†, whose decoder has VSS blocks too, is ``LoGVMambaSwinUNet``
    with ``family="vss"``.

    An image that the total stride, 32, does not divide is padded with zeros at the end of each axis, and the outputs
    are cropped; the authors' code fails there. The encoder can start from VMamba-Tiny's ImageNet weights, all but the
    patch embedding, which reads the stem's map here. Convolutions start as PyTorch's do, linear layers of the encoder
    with a standard deviation of 0.02. Whatever nnU-Net planned, the stages are these.

    Args:
        input_channels: Image channels.
        num_classes: Output channels.
        features_per_stage: Widths of the stem and of the encoder's stages.
        strides: Steps between the scales that have a head, 1 and then 2, and the step from the last of these to the
            deepest map, 4: so nnU-Net reads the scales of deep supervision. One entry per width.
        n_blocks_per_stage: Blocks of the encoder, one number per stage.
        deep_supervision: Return all scales, finest first.
        drop_path: Largest probability to drop a block's branch while training; it rises from 0.
        checkpointing: Recompute the blocks in the backward pass instead of keeping their activations.
        backend: Scan backend.

    Shape: (batch, input_channels, *spatial) -> (batch, num_classes, *spatial), or a list of the scales 1, 1/2, 1/4 and
        1/8, rounded as nnU-Net rounds its targets

    Raises:
        ValueError: If an argument is unknown, missing or does not fit (the message names it), or an image has other
            channels or axes.

    References: Swin-UMamba (arXiv 2402.03302); VMamba (arXiv 2401.10166). The authors' code, under Apache-2.0, differs
        in that it fails at sizes that 32 does not divide (S3) and for 3D plans only when it runs (S15), loads ImageNet
        weights whenever it is built, the bias of a norm without its weight (S4, S5), and has its switch of deep
        supervision elsewhere (S13). Fixed stages (S2), initial values (S7) and norms without scale and shift (S8) are
        as there.
    """

    dims: ClassVar = (2,)
    pads_itself: ClassVar = True
    smallest_input: ClassVar = 5  # below, nnU-Net's targets at 1/8 have no pixel
    pretrainable: ClassVar = True
    plan_arguments: ClassVar = ("strides",)
    preset: ClassVar = {
        "patch_size": (512, 512),
        "arguments": {"input_channels": 3, "num_classes": 2, "deep_supervision": True, **_PUBLISHED},
    }

    @known_arguments
    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        features_per_stage: Sequence[int] = (48, 96, 192, 384, 768),
        strides: Sequence[Sequence[int]] | Sequence[int] = (1, 2, 2, 2, 4),
        n_blocks_per_stage: Sequence[int] = (2, 2, 9, 2),
        deep_supervision: bool = False,
        drop_path: float = 0.2,
        checkpointing: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        input_channels, num_classes = whole("input_channels", input_channels), whole("num_classes", num_classes)
        stem_width, *widths = wholes("features_per_stage", features_per_stage, "stage") or [0]
        if len(widths) < 2:
            raise ValueError(f"features_per_stage is {features_per_stage}; a stem and at least two stages are needed")
        blocks = wholes("n_blocks_per_stage", n_blocks_per_stage, "stage of the encoder")
        if len(blocks) != len(widths):
            raise ValueError(f"n_blocks_per_stage has {len(blocks)} entries; one per stage, {len(widths)}, is needed")
        steps = listed("strides", strides, "with one entry per width")
        self.strides = [per_axis(f"strides[{stage}]", step, 2) for stage, step in enumerate(steps)]
        fixed = [(1, 1), *[_HALF] * (len(widths) - 1), (4, 4)]
        if self.strides != fixed:
            raise ValueError(f"strides are {strides}; with {len(widths)} stages they are {[list(s) for s in fixed]}")
        self.input_channels = input_channels

        affine, plain = {"eps": 1e-5, "affine": True}, {"eps": 1e-5, "affine": False}
        self.stem = nn.Sequential(
            nn.Conv2d(input_channels, stem_width, 7, 2, 3), nn.InstanceNorm2d(stem_width, **affine)
        )
        self.encoder = VMambaEncoder(
            stem_width,
            widths,
            [_HALF] * len(widths),
            blocks,
            drop_path=drop_path,
            checkpointing=flag("checkpointing", checkpointing),
            backend=backend,
            reads_image=False,
        )
        options: dict[str, Any] = {
            "conv_bias": False,
            "norm_op": nn.InstanceNorm2d,
            "norm_op_kwargs": plain,
            "nonlin": nn.LeakyReLU,
            "nonlin_kwargs": {"negative_slope": 1e-2},
        }
        self.skips = nn.ModuleList(
            _residual(below, above, **options)
            for below, above in zip([input_channels, stem_width, *widths], [stem_width, *widths])
        )
        self.decoder = ResidualDecoder(
            [stem_width, *widths], num_classes, deep_supervision=flag("deep_supervision", deep_supervision), **options
        )

    @classmethod
    def from_plan(cls, planned: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """Give the published stages, whatever was planned."""
        return deepcopy(_PUBLISHED)

    def costs_by_stage(self) -> list[Stage]:
        """Stem and patches, stages of the encoder with the merging ahead, skips, steps of the decoder, heads."""
        stages = [Stage("stem", ("stem",)), Stage("patches", ("encoder.patch_embed",))]
        for index in range(len(self.encoder.stages)):
            ahead = [f"encoder.mergers.{index - 1}"] if index else []
            stages.append(Stage(f"encoder {index}", ahead, f"encoder.stages.{index}", "VSS"))
        stages += [Stage(f"skip {index}", (f"skips.{index}",)) for index in range(len(self.skips))]
        for step in range(len(self.decoder.stages)):
            stages.append(Stage(f"decoder {step}", (f"decoder.upsamplers.{step}", f"decoder.stages.{step}")))
        return [*stages, Stage("last block", ("decoder.last",)), heads(self)]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_image(x, self.input_channels, 2)
        spatial = x.shape[2:]
        image = pad_to_multiples(x, [prod(axis) for axis in zip(*self.strides)])
        stem = self.stem(image)
        *maps, deepest = self.encoder(stem)
        outputs = self.decoder([skip(source) for skip, source in zip(self.skips, [image, stem, *maps])], deepest)
        if isinstance(outputs, Tensor):
            return crop(outputs, spatial)
        return [crop(output, size) for output, size in zip(outputs, sizes_of_scales(spatial, self.strides))]


class ResidualDecoder(nn.Module):
    """Up from the deepest map by transposed convolutions, joining the skip of each scale; a head per scale.

    The lowest step has none, and a further block stands ahead of the finest head. ``seg_layers[-1]`` is full
    resolution, as in nnU-Net. With ``deep_supervision`` on, ``forward`` returns all scales, finest first, else the
    finest alone; the flag may be switched at any time.

    Args:
        widths: Channels of the skips, finest first; the deepest map has those of the last.
        num_classes: Output channels.
        deep_supervision: Return all scales.
        options: Of the residual blocks.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, *, deep_supervision: bool, **options: Any):
        super().__init__()
        self.deep_supervision = deep_supervision
        upwards = widths[::-1]
        self.upsamplers = nn.ModuleList(
            nn.ConvTranspose2d(below, width, 2, 2, bias=False) for below, width in zip([upwards[0], *upwards], upwards)
        )
        self.stages = nn.ModuleList(_residual(2 * width, width, **options) for width in upwards)
        self.last = _residual(widths[0], widths[0], **options)
        self.seg_layers = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in upwards[1:])

    def forward(self, skips: Sequence[Tensor], x: Tensor) -> Tensor | list[Tensor]:
        maps = []
        for upsample, stage, skip in zip(self.upsamplers, self.stages, reversed(skips)):
            x = stage(torch.cat((upsample(x), skip), dim=1))
            maps.append(x)
        finest = self.seg_layers[-1](self.last(x))
        if not self.deep_supervision:
            return finest
        coarse = [head(x) for head, x in zip(self.seg_layers[:-1], maps[1:])]
        return [finest, *reversed(coarse)]


def _residual(in_channels: int, out_channels: int, **options: Any) -> ResidualBlock:
    """A block of UNETR: its input comes through a convolution and a norm where the channels differ."""
    project = in_channels != out_channels
    return ResidualBlock(
        nn.Conv2d, in_channels, out_channels, (3, 3), 1, project=project, project_norm=project, **options
    )
