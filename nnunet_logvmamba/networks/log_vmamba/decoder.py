"""The decoder: trilinear up-sampling, added skips, residual stages, and a head per scale."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from nnunet_logvmamba.layers import recomputed
from nnunet_logvmamba.networks.blocks.innermost import is_watched, pointwise, trains_here
from nnunet_logvmamba.networks.blocks.interpolation import interpolate
from nnunet_logvmamba.networks.blocks.residual import ResidualBlock, residual_stage

_STEP_BLOCKS = (2, 2, 2, 1)  # from the bottom; further steps keep the last


class UpSample(nn.Module):
    """A 1x1 convolution to a given width, then linear interpolation to a given size.

    The two can be exchanged, and the convolution comes first, on the fewer voxels.

    Shape: (batch, in_channels, *spatial) -> (batch, out_channels, *size)
    """

    def __init__(self, conv_op: type[nn.Module], in_channels: int, out_channels: int, conv_bias: bool):
        super().__init__()
        self.conv = conv_op(in_channels, out_channels, 1, bias=conv_bias)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return interpolate(pointwise(x, self.conv), size)


class Decoder(nn.Module):
    """Up from the deepest map, adding the skip of each scale; the last step adds the stem at full resolution.

    It takes channel counts, not the encoder, so that nothing is saved twice. ``seg_layers[-1]`` is full resolution, as
    in nnU-Net. With ``deep_supervision`` on, ``forward`` returns all scales, finest first, else the finest alone; the
    flag may be switched at any time, without effect unless ``all_heads`` were asked for.
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
        checkpointing: bool,
        conv_bias: bool,
        **residual_options: Any,
    ):
        super().__init__()
        self.deep_supervision, self.all_heads, self.checkpointing = deep_supervision, all_heads, checkpointing
        residual_options["conv_bias"] = conv_bias
        self.upsamplers, self.stages, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for step, index in enumerate(reversed(range(len(widths) - 1))):
            width, below = widths[index], widths[index + 1]
            num_blocks = _STEP_BLOCKS[min(step, len(_STEP_BLOCKS) - 1)]
            self.upsamplers.append(UpSample(conv_op, below, width, conv_bias))
            self.stages.append(
                residual_stage(
                    conv_op, width, width, kernel_sizes[index + 1], 1, num_blocks, saving=False, **residual_options
                )
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

    def is_known(self) -> bool:
        """Whether its convolutions of single voxels may be trained in ``quick_training``."""
        known = all(type(each) is UpSample and not is_watched(each) for each in self.upsamplers)
        return known and not any(map(is_watched, (*(each.conv for each in self.upsamplers), *self.seg_layers)))

    def forward(self, maps: Sequence[Tensor]) -> Tensor | list[Tensor]:
        *skips, x = maps
        outputs: list[Tensor] = []
        first_head = len(self.stages) - len(self.seg_layers)
        every_scale = self.deep_supervision and self.all_heads
        saving = self.checkpointing and self.training
        for step, skip in enumerate(reversed(skips)):
            modules: tuple[nn.Module, ...] = (self.upsamplers[step], self.stages[step])
            if every_scale or step == len(self.stages) - 1:
                modules += (self.seg_layers[step - first_head],)
            step_up = partial(_step, modules)
            x, *output = recomputed(step_up, modules, x, skip, always=True) if saving else step_up(x, skip)
            outputs += output
        return outputs[::-1] if every_scale else outputs[-1]


def _step(modules: tuple[nn.Module, ...], x: Tensor, skip: Tensor) -> tuple[Tensor, ...]:
    """Map of the next scale, and what its head gives if there is one."""
    upsample, stage, *heads = modules
    x = upsample(x, skip.shape[2:])
    x = stage(x.add_(skip) if trains_here() else x + skip)
    return (x, *(pointwise(x, head).contiguous() for head in heads))
