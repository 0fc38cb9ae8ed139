"""The decoder of the Swin lineage: patch expanding, fused skips, blocks of the LoG-VMamba family, a head per scale."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_logvmamba.networks.blocks.patches import PatchExpansion, SkipFusion
from nnunet_logvmamba.networks.blocks.vmamba_encoder import chain_of_blocks, rising
from nnunet_logvmamba.networks.log_vmamba.policy import StageSettings


class ExpandingDecoder(nn.Module):
    """Up from the deepest map by patch expanding, fusing the skip of each scale; the last step ends at full resolution.

    It takes channel counts, not the encoder, so that nothing is saved twice. ``seg_layers[-1]`` is full resolution, as
    in nnU-Net. With ``deep_supervision`` on, ``forward`` returns all scales, finest first, else the finest alone; the
    flag may be switched at any time, without effect where there is the finest head alone.

    Args:
        full_width: Channels at full resolution.
        widths: Channels of the encoder's maps, finest first.
        strides: Stride that led to each of these maps.
        settings: What the blocks of each scale but the deepest look like, finest first.
        num_blocks: Blocks per scale.
        num_classes: Output channels.
        deep_supervision: Return all scales.
        all_heads: Build a head per scale, not the finest alone.
        drop_path: Probability to drop the branch of the deepest block while training; it falls linearly to 0.
        checkpointing: Recompute the blocks in the backward pass instead of keeping their activations.
        mixer_options: Further arguments of the blocks.
    """

    def __init__(
        self,
        full_width: int,
        widths: Sequence[int],
        strides: Sequence[Sequence[int]],
        settings: Sequence[StageSettings],
        num_blocks: int,
        num_classes: int,
        *,
        deep_supervision: bool,
        all_heads: bool,
        drop_path: float,
        checkpointing: bool,
        mixer_options: dict[str, Any],
    ):
        super().__init__()
        self.deep_supervision, self.checkpointing = deep_supervision, checkpointing
        self.expansions, self.fusions = nn.ModuleList(), nn.ModuleList()
        self.stages, self.seg_layers = nn.ModuleList(), nn.ModuleList()
        rates = iter(rising(drop_path, len(settings) * num_blocks)[::-1])
        for index in reversed(range(len(settings))):
            width = widths[index]
            self.expansions.append(PatchExpansion(widths[index + 1], width, strides[index + 1]))
            self.fusions.append(SkipFusion(width))
            options = {**settings[index].block_arguments, **mixer_options}
            self.stages.append(chain_of_blocks(width, num_blocks, rates, **options))
            if all_heads:
                self.seg_layers.append(nn.Conv2d(width, num_classes, 1))
        self.expansions.append(PatchExpansion(widths[0], full_width, strides[0]))
        self.seg_layers.append(nn.Conv2d(full_width, num_classes, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor | list[Tensor]:
        *skips, x = maps
        every_scale = self.deep_supervision and len(self.seg_layers) > 1
        outputs = []
        for step, (fusion, stage, skip) in enumerate(zip(self.fusions, self.stages, reversed(skips))):
            x = fusion(self.expansions[step](x), skip)
            for block in stage:
                x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
            if every_scale:
                outputs.append(self.seg_layers[step](x))
        outputs.append(self.seg_layers[-1](self.expansions[-1](x)))
        return outputs[::-1] if every_scale else outputs[-1]
