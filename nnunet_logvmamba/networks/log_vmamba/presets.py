"""Named sizes as plain dicts of constructor arguments, with the patch they were published for, and plain words."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import deepcopy
from numbers import Number
from typing import Any

from torch import nn

from nnunet_logvmamba.layers import listed, per_axis, whole, wholes
from nnunet_logvmamba.networks.blocks.arguments import refuse_unknown

PAPER_3D: dict[str, Any] = {
    "network": "LoGVMambaUNet",
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
    "network": "LoGVMambaSwinUNet",
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

PRESETS = {"paper3d": PAPER_3D, "paper2d": PAPER_2D}

PLAIN_WORDS = {"in_channels": "input_channels", "out_channels": "num_classes"}
"""What other libraries call two arguments of our networks."""

_DECIDED_BY_PLAIN_WORDS = ("n_stages", "features_per_stage", "conv_op", "kernel_sizes", *PLAIN_WORDS.values())


def preset_arguments(network: type[nn.Module], preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a preset with others on top, which may be called by plain words.

    Args:
        network: Class that is to be built.
        preset: Name of the preset.
        overrides: Arguments of the class, ``in_channels``, ``out_channels``, and ``spatial_dims``, which must be those
            of the preset.

    Raises:
        ValueError: If there is no such preset, it is that of another class or number of axes, or an argument is unknown
            or named twice.
    """
    if preset not in tuple(PRESETS):  # a dict cannot be asked for a list
        raise ValueError(f"there is no preset {preset!r}; there are {', '.join(map(repr, PRESETS))}")
    owner = PRESETS[preset]["network"]
    if owner not in [base.__name__ for base in network.__mro__]:
        raise ValueError(f"the preset {preset!r} is a {owner}: use {owner}.from_preset({preset!r}, ...)")
    axes = len(PRESETS[preset]["patch_size"])
    if overrides.get("spatial_dims", axes) != axes:
        raise ValueError(f"the preset {preset!r} has {axes} spatial axes, not {overrides['spatial_dims']!r}")
    known = [*inspect.signature(network).parameters, *PLAIN_WORDS, "spatial_dims"]
    refuse_unknown(f"{network.__name__}.from_preset", overrides, known)
    others = {name: value for name, value in overrides.items() if name != "spatial_dims"}
    return {**deepcopy(PRESETS[preset]["arguments"]), **in_our_words(others)}


def channel_arguments(
    network: type[nn.Module],
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    channels: Sequence[int],
    strides: Sequence[Sequence[int] | int] | int,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Arguments of a network out of plain words.

    Args:
        network: Class that is to be built.
        spatial_dims: 2 or 3.
        in_channels: Image channels.
        out_channels: Output channels.
        channels: Widths of the mixing stages, finest first.
        strides: Stride ahead of each of them, one for all or one per stage, each a number or one per axis.
        options: Further arguments of the class.

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


def in_our_words(arguments: dict[str, Any]) -> dict[str, Any]:
    """Replace plain words by the names of our arguments.

    Raises:
        ValueError: If an argument is there under both names.
    """
    for plain, own in PLAIN_WORDS.items():
        if plain in arguments and own in arguments:
            raise ValueError(f"{plain} and {own} are the same argument: give one of them")
    return {PLAIN_WORDS.get(name, name): value for name, value in arguments.items()}
