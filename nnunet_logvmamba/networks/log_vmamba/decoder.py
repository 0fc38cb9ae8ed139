"""The decoder: trilinear up-sampling, added skips, residual stages, and a head per scale."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_logvmamba.networks.blocks.residual import ResidualBlock, residual_stage

_INTERPOLATION = {2: "bilinear", 3: "trilinear"}
_STEP_BLOCKS = (2, 2, 2, 1)  # from the bottom; further steps keep the last


class UpSample(nn.Module):
    """Linear interpolation to a given size, then a 1x1 convolution to a given width.

    Shape: (batch, in_channels, *spatial) -> (batch, out_channels, *size)
    """

    def __init__(self, conv_op: type[nn.Module], in_channels: int, out_channels: int, conv_bias: bool):
        super().__init__()
        self.conv = conv_op(in_channels, out_channels, 1, bias=conv_bias)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode=_INTERPOLATION[x.ndim - 2], align_corners=False))


class Decoder(nn.Module):
    """Up from the deepest map, adding the skip of each scale; the last step adds the stem at full resolution.

    It takes channel counts, not the encoder, so that nothing is saved twice. ``seg_layers[-1]`` is full resolution, as
    in nnU-Net. With ``deep_supervision`` on, ``forward`` returns all scales, finest first, else the finest alone; the
    flag may be switched at any time, without effect where there is the finest head alone.
    """

    def __init__(
        self,
        stem_width: int,
        widths: Sequence[int],
        num_classes: int,
        conv_op: type[nn.Module],
        kernel_sizes: Sequence[Sequence[int]],
        *,
        deep_supervision: bool,
        all_heads: bool,
        conv_bias: bool,
        **residual_options: Any,
    ):
        super().__init__()
        self.deep_supervision = deep_supervision
        residual_options["conv_bias"] = conv_bias
        self.upsamplers, self.stages, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for step, index in enumerate(reversed(range(len(widths) - 1))):
            width, below = widths[index], widths[index + 1]
            num_blocks = _STEP_BLOCKS[min(step, len(_STEP_BLOCKS) - 1)]
            self.upsamplers.append(UpSample(conv_op, below, width, conv_bias))
            self.stages.append(
                residual_stage(conv_op, width, width, kernel_sizes[index + 1], 1, num_blocks, **residual_options)
            )
            if all_heads:
                self.seg_layers.append(conv_op(width, num_classes, 1, bias=True))
        self.upsamplers.append(UpSample(conv_op, widths[0], stem_width, conv_bias))
        self.stages.append(
            nn.Sequential(
                ResidualBlock(conv_op, stem_width, stem_width, kernel_sizes[0], 1, project=False, **residual_options)
            )
        )
        self.seg_layers.append(conv_op(stem_width, num_classes, 1, bias=True))

    def forward(self, maps: Sequence[Tensor]) -> Tensor | list[Tensor]:
        *skips, x = maps
        outputs = []
        first_head = len(self.stages) - len(self.seg_layers)
        every_scale = self.deep_supervision and first_head == 0
        for step, (upsample, stage, skip) in enumerate(zip(self.upsamplers, self.stages, reversed(skips))):
            x = stage(upsample(x, skip.shape[2:]) + skip)
            if every_scale or step == len(self.stages) - 1:
                outputs.append(self.seg_layers[step - first_head](x))
        return outputs[::-1] if every_scale else outputs[-1]
