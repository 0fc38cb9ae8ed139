"""Named sizes as plain dicts of constructor arguments, with the patch they were published for, and plain words."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from numbers import Number
from typing import Any

from torch import nn

from nnunet_logvmamba.layers import listed, per_axis, whole, wholes
from nnunet_logvmamba.networks.blocks.arguments import PLAIN_WORDS, refuse_unknown

PAPER_3D: dict[str, Any] = {
    "patch_size": (128, 128, 128),
    "arguments": {
        "input_channels": 4,
        "num_classes": 3,
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "conv_op": nn.Conv3d,
        "kernel_sizes": [[3, 3, 3]] * 6,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
        "seg_heads": "last",
    },
}

PAPER_2D: dict[str, Any] = {
    "patch_size": (512, 512),
    "arguments": {
        "input_channels": 3,
        "num_classes": 1,
        "n_stages": 5,
        "features_per_stage": [96, 96, 192, 384, 768],
        "strides": [[1, 1], [4, 4], [2, 2], [2, 2], [2, 2]],
        "n_blocks_per_stage": [2, 2, 9, 2],
        "deep_supervision": True,
    },
}

_DECIDED_BY_PLAIN_WORDS = ("n_stages", "features_per_stage", "conv_op", "kernel_sizes", *PLAIN_WORDS.values())


def channel_arguments(
    network: type[nn.Module],
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    channels: Sequence[int],
    strides: Sequence[Sequence[int] | int] | int,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Arguments of a network out of those of its ``from_channels``, where they are explained.

    Raises:
        ValueError: If an argument is unknown or does not fit.
    """
    own = [name for name in inspect.signature(network).parameters if name not in _DECIDED_BY_PLAIN_WORDS]
    plain = [name for name in inspect.signature(network.from_channels).parameters if name != "options"]
    refuse_unknown(f"{network.__name__}.from_channels", options, [*plain, *own])
    widths = wholes("channels", channels, "stage")
    if not widths:
        raise ValueError("channels is empty; one width per stage is needed, such as (32, 64, 128)")
    steps = [strides] * len(widths) if isinstance(strides, Number) else listed("strides", strides, "of them")
    if len(steps) != len(widths):
        axes = f"; for these steps along the axes of every stage write [{tuple(steps)}] * {len(widths)}"
        raise ValueError(
            f"strides has {len(steps)} entries for {len(widths)} channels; one each is needed, a number or one per axis"
            f"{axes if len(steps) == spatial_dims else ''}"
        )
    return {
        **options,
        "input_channels": whole("in_channels", in_channels),
        "num_classes": whole("out_channels", out_channels),
        "n_stages": len(widths) + 1,
        "features_per_stage": widths,
        "strides": [1, *(per_axis(f"strides[{stage}]", step, spatial_dims) for stage, step in enumerate(steps))],
    }
