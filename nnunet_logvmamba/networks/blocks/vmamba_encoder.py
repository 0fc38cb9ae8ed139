"""The VMamba encoder: patch embedding, stages of four-direction blocks, patch merging between them."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_logvmamba.layers import DropPath, LoGVMambaBlock
from nnunet_logvmamba.networks.blocks.patches import PatchEmbedding, PatchMerging

_DIRECTIONS = 4
_EXPAND = 2
_LINEAR_STD = 0.02  # of the initial weights of linear layers


class VMambaEncoder(nn.Module):
    """Stages of VSS blocks that scan in four directions; no knob of the decoder's blocks touches it.

    ``forward`` returns the map of every stage, finest first. Each linear layer starts with truncated normal weights.

    Args:
        input_channels: Image channels.
        widths: Channels of the stages.
        strides: Stride ahead of each stage: that of the patch embedding, then those of the mergings.
        n_blocks_per_stage: Blocks of the stages.
        drop_path: Probability to drop the branch of the last block while training; it grows linearly from 0.
        checkpointing: Recompute the blocks in the backward pass instead of keeping their activations.
        backend: Scan backend.
        reads_image: Whether it is fed images, as the encoder whose weights were published; else its patch embedding is
            its own, whatever is loaded.

    References: VMamba (arXiv 2401.10166), the first version of its blocks, with a gate.
    """

    def __init__(
        self,
        input_channels: int,
        widths: Sequence[int],
        strides: Sequence[Sequence[int]],
        n_blocks_per_stage: Sequence[int],
        *,
        drop_path: float,
        checkpointing: bool,
        backend: str,
        reads_image: bool = True,
    ):
        super().__init__()
        self.checkpointing, self.reads_image = checkpointing, reads_image
        self.patch_embed = PatchEmbedding(input_channels, widths[0], strides[0])
        self.mergers = nn.ModuleList(map(PatchMerging, widths[:-1], widths[1:], strides[1:]))
        DropPath(drop_path)  # refuses what is none by the value that was given, and not by that of a block
        rates = iter(rising(drop_path, sum(n_blocks_per_stage)))
        options = {"local_tokens": False, "global_tokens": False, "expand": _EXPAND, "directions": _DIRECTIONS}
        self.stages = nn.ModuleList(
            chain_of_blocks(width, num_blocks, rates, backend=backend, **options)
            for width, num_blocks in zip(widths, n_blocks_per_stage)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_LINEAR_STD)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed(x)
        maps = []
        for index, stage in enumerate(self.stages):
            if index:
                x = self.mergers[index - 1](x)
            for block in stage:
                x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
            maps.append(x)
        return maps


def chain_of_blocks(width: int, num_blocks: int, rates: Iterator[float], **options: Any) -> nn.Sequential:
    """Blocks in 2D, one after the other, each with the next of the rates for ``drop_path``."""
    return nn.Sequential(*(LoGVMambaBlock(width, 2, drop_path=next(rates), **options) for _ in range(num_blocks)))


def rising(last: float, count: int) -> list[float]:
    """``count`` values that rise linearly from 0 to ``last``; a single one is 0."""
    return [last * index / max(1, count - 1) for index in range(count)]
