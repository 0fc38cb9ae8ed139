"""Named sizes as plain dicts of constructor arguments, with the patch they were published for, and plain words."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn

PAPER_3D = {
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

PAPER_2D = {
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


def preset_arguments(network: str, preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a preset with others on top, which may be called by plain words.

    Args:
        network: Name of the class that is to be built.
        preset: Name of the preset.
        overrides: Arguments of the class, ``in_channels``, ``out_channels``, and ``spatial_dims``, which must be those
            of the preset.

    Raises:
        ValueError: If there is no such preset, it is that of another class or number of axes, or an argument is named
            twice.
    """
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; there are {', '.join(map(repr, PRESETS))}")
    owner = PRESETS[preset]["network"]
    if owner != network:
        raise ValueError(f"the preset {preset!r} is a {owner}: use {owner}.from_preset({preset!r}, ...)")
    axes = len(PRESETS[preset]["patch_size"])
    if overrides.get("spatial_dims", axes) != axes:
        raise ValueError(f"the preset {preset!r} has {axes} spatial axes, not {overrides['spatial_dims']!r}")
    others = {name: value for name, value in overrides.items() if name != "spatial_dims"}
    return {**deepcopy(PRESETS[preset]["arguments"]), **in_our_words(others)}


def in_our_words(arguments: dict[str, Any]) -> dict[str, Any]:
    """Replace plain words by the names of our arguments.

    Raises:
        ValueError: If an argument is there under both names.
    """
    for plain, own in PLAIN_WORDS.items():
        if plain in arguments and own in arguments:
            raise ValueError(f"{plain} and {own} are the same argument: give one of them")
    return {PLAIN_WORDS.get(name, name): value for name, value in arguments.items()}
