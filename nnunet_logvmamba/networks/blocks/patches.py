"""From pixels to patches and back: embedding, merging and expanding, each a linear layer and a norm.

Maps come and go as (batch, channels, height, width); they are stored with the channels innermost, as the layers between
read them.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """Turn each patch of an image into one token: a convolution whose kernel is its stride, then a layer norm.

    Shape: (batch, in_channels, *spatial) -> (batch, out_channels, *(spatial / stride))
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int]):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, tuple(stride), tuple(stride))
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).movedim(1, -1)).movedim(-1, 1)


class PatchMerging(nn.Module):
    """Join neighbouring tokens: their channels side by side, a layer norm, a linear layer.

    Tokens of one cell are ordered with the column slowest and the row fastest, as published.

    Shape: (batch, in_channels, *spatial) -> (batch, out_channels, *(spatial / stride))
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int]):
        super().__init__()
        self.stride = tuple(stride)
        joined = prod(self.stride) * in_channels
        self.norm = nn.LayerNorm(joined)
        self.reduction = nn.Linear(joined, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        x = x.unflatten(3, (-1, columns)).unflatten(2, (-1, rows))
        # (batch, channels, height, rows, width, columns) -> (batch, height, width, columns * rows * channels)
        x = x.permute(0, 2, 4, 5, 3, 1).flatten(3)
        return self.reduction(self.norm(x)).movedim(-1, 1)


class PatchExpansion(nn.Module):
    """Split each token into a cell of tokens: a linear layer, its outputs laid out as pixels, a layer norm.

    Pixels of one cell are ordered with the row slowest and the channel fastest.

    Shape: (batch, in_channels, *spatial) -> (batch, out_channels, *(spatial * stride))
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int]):
        super().__init__()
        self.stride = tuple(stride)
        self.expand = nn.Linear(in_channels, prod(self.stride) * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x.movedim(1, -1)).unflatten(-1, (*self.stride, -1))
        # (batch, height, width, rows, columns, channels) -> (batch, height * rows, width * columns, channels)
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return self.norm(x).movedim(-1, 1)


class SkipFusion(nn.Module):
    """Join a map with the skip of its scale: channels side by side, the map's first, and a linear layer back.

    Shape: twice (batch, channels, *spatial) -> (batch, channels, *spatial)
    """

    def __init__(self, channels: int):
        super().__init__()
        self.linear = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.linear(torch.cat((x.movedim(1, -1), skip.movedim(1, -1)), dim=-1)).movedim(-1, 1)
