"""The encoder: a full-resolution stem, then residual stages, each with an optional token-mixing block."""

from collections.abc import Iterable, Sequence
from itertools import repeat
from math import prod
from typing import Any

from torch import Tensor, nn

from nnunet_logvmamba.layers import LoGVMambaBlock, recomputed
from nnunet_logvmamba.networks.blocks.residual import residual_stage
from nnunet_logvmamba.networks.log_vmamba.policy import StageSettings

_POOLS = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_STEM_BLOCKS = 2
_LARGE = 32  # one voxel of the image in so many
_STAGE_BLOCKS = (2, 2, 2, 1)  # by mixing stage; deeper stages keep the last


class Encoder(nn.Module):
    """Stem at full resolution, max-pooling by the plan's first stride, mixing stages.

    ``forward`` returns the stem's map and the map of every mixing stage, finest first.
    """

    large: Iterable[bool] = repeat(True)  # of networks that were pickled before there was a choice
    """By stage, whether its map is large; then its mixer is computed again in the backward pass."""

    def __init__(
        self,
        input_channels: int,
        stem_width: int,
        widths: Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        settings: Sequence[StageSettings],
        *,
        mixer_options: dict[str, Any],
        checkpointing: bool,
        **residual_options: Any,
    ):
        super().__init__()
        spatial_dims = len(strides[0])
        self.checkpointing = checkpointing
        self.stem = residual_stage(
            conv_op, input_channels, stem_width, kernel_sizes[0], strides[0], _STEM_BLOCKS, **residual_options
        )
        first = tuple(strides[1])
        self.pool = _POOLS[spatial_dims](first, first)
        self.stages, self.mixers = nn.ModuleList(), nn.ModuleList()
        previous = stem_width
        large: list[bool] = []
        for index, (width, setting) in enumerate(zip(widths, settings)):
            stride = 1 if index == 0 else strides[index + 1]
            large.append(prod(map(prod, strides[: index + 2])) <= _LARGE)
            num_blocks = _STAGE_BLOCKS[min(index, len(_STAGE_BLOCKS) - 1)]
            self.stages.append(
                residual_stage(
                    conv_op,
                    previous,
                    width,
                    kernel_sizes[index + 1],
                    stride,
                    num_blocks,
                    saving=False,
                    **residual_options,
                )
            )
            self.mixers.append(
                LoGVMambaBlock(width, spatial_dims, **setting.block_arguments, **mixer_options)
                if setting.mixes
                else nn.Identity()
            )
            previous = width
        self.large = large

    def forward(self, x: Tensor) -> list[Tensor]:
        saving = self.checkpointing and self.training
        if saving:  # one by one, since at full resolution even two blocks hold much
            for block in self.stem:
                x = recomputed(block, (block,), x, always=True)
        else:
            x = self.stem(x)
        maps = [x]
        x = self.pool(x)
        for stage, mixer, large in zip(self.stages, self.mixers, self.large):
            if saving:
                x = recomputed(lambda x, stage=stage, mixer=mixer: mixer(stage(x)), (stage, mixer), x, always=True)
            elif large:
                x = recomputed(mixer, (mixer,), stage(x))
            else:
                x = mixer(stage(x))
            maps.append(x)
        return maps
