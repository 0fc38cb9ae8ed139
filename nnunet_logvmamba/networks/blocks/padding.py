"""Padding at the end of each axis, for networks that take whole steps only, and cropping of what comes out."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiples(x: Tensor, multiples: Sequence[int]) -> Tensor:
    """Pad (batch, channels, *spatial) with zeros at the end of each axis to a multiple of a number per axis."""
    padding = [-size % multiple for size, multiple in zip(x.shape[2:], multiples)]
    if not any(padding):
        return x
    return F.pad(x, [pad for end in reversed(padding) for pad in (0, end)])


def crop(x: Tensor, spatial: Sequence[int]) -> Tensor:
    """Give the beginning of each spatial axis; ``spatial`` is the size that stays."""
    for axis, size in enumerate(spatial, 2):
        x = x.narrow(axis, 0, size)
    return x


def sizes_of_scales(spatial: Sequence[int], strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Sizes of nnU-Net's targets for an image of ``spatial``, one per stage of ``strides``, finest first.

    nnU-Net multiplies by ``1 / total`` and rounds, and one voxel is left at least.
    """
    totals = [1] * len(spatial)
    sizes = []
    for stride in strides:
        totals = [total * step for total, step in zip(totals, stride)]
        sizes.append([max(1, round(size * (1 / total))) for size, total in zip(spatial, totals)])
    return sizes
