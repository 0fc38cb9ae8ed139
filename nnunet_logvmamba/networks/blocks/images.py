"""What a network says to an image that it was not built for."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunet_logvmamba.errors import OtherPatchError


def check_image(x: Tensor, channels: int, spatial_dims: int) -> None:
    """Raise ValueError, naming what came and what is needed, unless ``x`` is (batch, channels, *spatial)."""
    if not isinstance(x, Tensor):
        raise ValueError(f"the input is a {type(x).__name__}; a torch.Tensor is needed, such as torch.as_tensor(...)")
    if x.ndim != spatial_dims + 2:
        raise ValueError(f"the input has {x.ndim} axes; batch, channels and {spatial_dims} spatial axes are needed")
    if x.shape[1] != channels:
        raise ValueError(
            f"the image has {x.shape[1]} channel(s) and the network was built for {channels}: give every image "
            f"{channels} channel(s) or build the network for {x.shape[1]}; under nnU-Net, dataset.json names "
            "the channels"
        )
    if 0 in x.shape[2:]:
        raise ValueError(f"the image is {times(x.shape[2:])}; every side must have at least one voxel")


def check_patch(x: Tensor, patch_size: Sequence[int]) -> None:
    """Raise ValueError, naming both sizes, unless ``x`` has the voxels that position weights were made for."""
    if tuple(x.shape[2:]) != tuple(patch_size):
        raise ValueError(
            f"the image is {times(x.shape[2:])} and this network has weights for the positions of a patch of "
            f"{times(patch_size)} alone: give it patches of that size, as nnU-Net does"
        )


def check_positions(weights: Mapping[str, Any], own: Mapping[str, Tensor], patch_size: Sequence[int]) -> None:
    """Raise OtherPatchError, naming the first difference, if weights have another number of positions than a network.

    Args:
        weights: That are to be loaded, by name.
        own: Position weights of the network, (1, positions, channels), by the same names.
        patch_size: Voxels per axis that the network was built for.
    """
    for name, positions in own.items():
        stored = weights.get(name)
        if isinstance(stored, Tensor) and stored.shape[1:2] != positions.shape[1:2]:
            raise OtherPatchError(
                f"These weights were trained with another patch: {name} holds {stored.shape[1]} positions, and a patch "
                f"of {times(patch_size)} has {positions.shape[1]}; build the network with the patch size they had."
            )


def check_size(x: Tensor, strides: Sequence[Sequence[int]], norm: nn.Module) -> None:
    """Raise ValueError, naming the least size, where ``norm`` would have a single voxel to normalise.

    Args:
        x: (batch, channels, *spatial).
        strides: Stride per stage and axis; the second is that of the pooling.
        norm: Norm of the deepest stage.
    """
    size, first = tuple(x.shape[2:]), strides[1]
    after = [prod(axis) for axis in zip(*strides[2:])] or [1] * len(first)  # of the strides behind the pooling

    normalises = isinstance(norm, (_InstanceNorm, _BatchNorm)) and (norm.training or not norm.track_running_stats)
    fewest, samples = 2 if normalises else 1, x.shape[0] if isinstance(norm, _BatchNorm) else 1
    left = _left(size, first, after)
    if left * samples >= fewest:
        return
    least = [max(side, pool) for side, pool in zip(size, first)]
    if _left(least, first, after) * samples < fewest:
        enough = [pool * (step + 1) for pool, step in zip(first, after)]  # two voxels are left of such a side
        axis = min(range(len(size)), key=lambda axis: enough[axis] - least[axis])
        least[axis] = enough[axis]
    raise ValueError(
        f"the image of {times(size)} voxels is too small for this network: the strides leave {left} of them "
        f"at the deepest stage and {fewest} {'is' if fewest == 1 else 'are'} needed; give at least {times(least)}"
    )


def _left(sides: Sequence[int], pools: Sequence[int], steps: Sequence[int]) -> int:
    """Voxels that a pooling, which rounds down, and convolutions, which round up, leave of an image."""
    left = 1
    for side, pool, step in zip(sides, pools, steps):  # a loop, since torch.compile takes no generator here
        left *= -(-(side // pool) // step)
    return left


def check_padded_size(x: Tensor, multiples: Sequence[int]) -> None:
    """Raise ValueError, naming the least size, where one voxel would be left for instance norm at the deepest stage.

    Args:
        x: (batch, channels, *spatial).
        multiples: What the network divides each axis by, after padding to a multiple of it.
    """
    size = tuple(x.shape[2:])
    for side, multiple in zip(size, multiples):
        if side > multiple:
            return
    axis = min(range(len(size)), key=lambda axis: multiples[axis] - size[axis])
    least = [multiples[axis] + 1 if index == axis else side for index, side in enumerate(size)]
    raise ValueError(
        f"the image of {times(size)} voxels is too small for this network: one of them would be left at the deepest "
        f"stage and 2 are needed; give at least {times(least)}"
    )


def times(size: Sequence[int]) -> str:
    """Sizes in words, ``8 x 8 x 8``."""
    return " x ".join(map(str, size))
