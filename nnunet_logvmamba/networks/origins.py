"""Networks of others as their code saves them: how their weights are recognised, named, and what their shapes show."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod
from typing import TYPE_CHECKING, Any

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.networks import published_names as names
from nnunet_logvmamba.networks.log_vmamba.policy import UsualTokens, swin_decoder_tokens, unet_tokens

if TYPE_CHECKING:
    from torch import Tensor

    Weights = Mapping[str, Tensor]
    """By our names."""


def _nothing(_weights: Weights, _patch_size: Sequence[int]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Origin:
    """A network as its authors' code saves it.

    Attributes:
        title: What they call it.
        network: Name of ours in the catalogue.
        trainer: Family of our trainers that goes on with it.
        marks: Regular expressions, each of which begins the name of one of its tensors.
        trainers: Families of the authors' own trainers, where these are nnU-Net's; empty where weights are saved bare.
        own_names: Gives our names by theirs.
        arguments: Gives the arguments of our network that weights and patch show, where they are not the plan's to say.
    """

    title: str
    network: str
    trainer: str
    marks: tuple[str, ...]
    trainers: tuple[str, ...] = ()
    own_names: Callable[[Iterable[str]], dict[str, str | None]] = names.same_names
    arguments: Callable[[Weights, Sequence[int]], dict[str, Any]] = _nothing

    def made(self, keys: Iterable[str]) -> bool:
        """Whether tensors of these names are its weights."""
        keys = list(keys)
        return all(any(re.match(mark, key) for key in keys) for mark in self.marks)


def recognised(keys: Iterable[str]) -> Origin | None:
    """Give the network whose tensors have these names, None if it is none of those that we know."""
    keys = [names.first_name(key) for key in keys]
    return next((origin for origin in ORIGINS if origin.made(keys)), None)


def is_unfolding(tensor: Tensor) -> bool:
    """Whether a tensor is the fixed kernel with which LoG-VMamba's authors unfold a neighbourhood; it never changes."""
    size = round(tensor.numel() ** 0.5)
    if size not in (9, 27) or tensor.numel() != size**2:
        return False
    return bool((tensor.reshape(size, size) == tensor.new_ones(size).diag()).all())


def _stages(weights: Weights, pattern: str) -> list[Tensor]:
    """Tensors whose name ends on 0, 1, 2 and so on, as far as there are."""
    found: list[Tensor] = []
    for index in count():
        name = pattern.format(index)
        if name not in weights:
            return found
        found.append(weights[name])
    return found


def _encoder(weights: Weights) -> dict[str, Any]:
    """Widths and blocks of a VMamba encoder."""
    widths = [len(norm) for norm in _stages(weights, "encoder.stages.{}.0.norm.weight")]
    blocks = [len(_stages(weights, f"encoder.stages.{stage}.{{}}.norm.weight")) for stage in range(len(widths))]
    return {"widths": widths, "blocks": blocks}


def _swin_umamba(weights: Weights, _patch_size: Sequence[int]) -> dict[str, Any]:
    encoder = _encoder(weights)
    return {
        "features_per_stage": [len(weights["stem.1.weight"]), *encoder["widths"]],
        "strides": [[1, 1], *[[2, 2]] * (len(encoder["widths"]) - 1), [4, 4]],
        "n_blocks_per_stage": encoder["blocks"],
    }


def _swin(weights: Weights, patch_size: Sequence[int]) -> dict[str, Any]:
    encoder = _encoder(weights)
    widths = encoder["widths"]
    strides = [[1, 1], list(weights["encoder.patch_embed.proj.weight"].shape[2:]), *[[2, 2]] * (len(widths) - 1)]
    block = {
        name.removeprefix("decoder.stages.0.0."): value
        for name, value in weights.items()
        if name.startswith("decoder.stages.0.0.")
    }
    local, globally = "fold.weight" in block, "global_tokens.fc.weight" in block
    arguments = {
        "n_stages": len(widths) + 1,
        "features_per_stage": [len(weights[f"decoder.expansions.{len(widths) - 1}.norm.weight"]), *widths],
        "strides": strides,
        "n_blocks_per_stage": encoder["blocks"],
        "n_blocks_per_stage_decoder": len(_stages(weights, "decoder.stages.0.{}.norm.weight")),
        "family": {(True, True): "log", (True, False): "l", (False, True): "g", (False, False): "vss"}[local, globally],
        "directions": len(block["ssm.x_proj_weight"]),
        "expand": len(block["out_norm.weight"]) // len(block["norm.weight"]),
    }
    if local:
        arguments["squeeze"] = block["local_tokens.conv.weight"].shape[1]
    if globally:
        layers = _stages(weights, "decoder.stages.{}.0.global_tokens.conv.weight")[::-1]
        tokens = _stages(weights, "decoder.stages.{}.0.global_tokens.fc.weight")[::-1]
        arguments["channels_per_token"] = [layer.shape[1] for layer in layers]
        arguments["canonical_grids"] = [
            _grid(fc.shape[1], usual, total, patch_size)
            for fc, usual, total in zip(tokens, swin_decoder_tokens(strides), _totals(strides)[1:])
        ]
    return arguments


def _log_vmamba_3d(weights: Weights, patch_size: Sequence[int]) -> dict[str, Any]:
    stages = _stages(weights, "encoder.stages.{}.0.conv1.weight")
    widths = [len(kernel) for kernel in stages]
    strides = [[1] * 3, *[[2] * 3] * len(widths)]
    usual = unet_tokens(strides)
    mixers = [f"encoder.mixers.{stage}." for stage in range(len(widths))]
    local = [stage for stage, mixer in enumerate(mixers) if f"{mixer}fold.weight" in weights]
    tokens = {
        stage: weights[f"{mixer}global_tokens.fc.weight"].shape[1]
        for stage, mixer in enumerate(mixers)
        if f"{mixer}global_tokens.fc.weight" in weights
    }
    arguments = {
        "n_stages": len(widths) + 1,
        "features_per_stage": [*widths, widths[-1]],
        "kernel_sizes": [list(kernel.shape[2:]) for kernel in (weights["encoder.stem.0.conv1.weight"], *stages)],
        "strides": strides,
        "expand": len(weights[f"{mixers[0]}out_norm.weight"]) // len(weights[f"{mixers[0]}norm.weight"]),
        "local_token_stages": local,
        "global_token_stages": list(tokens),
        "seg_heads": "last",
        "channels_per_token": [
            weights[f"{mixer}global_tokens.conv.weight"].shape[1] if stage in tokens else 1
            for stage, mixer in enumerate(mixers)
        ],
        "canonical_grids": [
            _grid(tokens[stage], usual[stage], total, patch_size) if stage in tokens else [1] * 3
            for stage, total in enumerate(_totals(strides)[1:])
        ],
    }
    if local:
        arguments["squeeze"] = weights[f"{mixers[local[0]]}local_tokens.conv.weight"].shape[1]
    return arguments


_SLICES = [64, 32, 16, 8]  # between which SegMamba's third direction jumps, at every size
_SLICES_FIT = 128  # voxels of the first axis, where these are its planes


def _segmamba(weights: Weights, patch_size: Sequence[int]) -> dict[str, Any]:
    widths = [len(norm) for norm in _stages(weights, "vit.stages.{}.0.norm.weight")]
    arguments: dict[str, Any] = {
        "features_per_stage": widths,
        "n_blocks_per_stage": [
            len(_stages(weights, f"vit.stages.{stage}.{{}}.norm.weight")) for stage in range(len(widths))
        ],
        "hidden_size": len(weights["encoder5.layer.conv1.conv.weight"]),
    }
    if patch_size[0] != _SLICES_FIT:
        arguments["slices"] = _SLICES
    return arguments


def _totals(strides: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[prod(axis) for axis in zip(*strides[: stage + 1])] for stage in range(len(strides))]


def _grid(positions: int, usual: UsualTokens, totals: Sequence[int], patch_size: Sequence[int]) -> list[int]:
    """Grid for which global tokens were stored: that of the published patch, else that of the patch at hand."""
    steps = [total * stride for total, stride in zip(totals, usual.global_stride)]
    for grid in (usual.canonical_grid, [-(-size // step) for size, step in zip(patch_size, steps)]):
        if prod(grid) == positions:
            return list(grid)
    raise UserError(
        f"its global tokens were made for maps of {positions} positions, which neither the published patch nor this "
        f"configuration's ({' x '.join(map(str, patch_size))}) gives: name a configuration with the patch size that it "
        "was trained with"
    )


ORIGINS = (
    Origin(
        title="U-Mamba-Enc",
        network="UMambaEnc",
        trainer="UMambaEnc",
        marks=(r"encoder\.mamba_layers\.\d+\.mamba\.in_proj\.", r"decoder\.upsample_layers\."),
        trainers=("UMambaEnc", "UMambaEncNoAMP"),
    ),
    Origin(
        title="U-Mamba-Bot",
        network="UMambaBot",
        trainer="UMambaBot",
        marks=(r"mamba_layer\.mamba\.in_proj\.", r"decoder\.upsample_layers\."),
        trainers=("UMambaBot",),
    ),
    Origin(
        title="SegMamba",
        network="SegMamba",
        trainer="SegMamba",
        marks=(r"vit\.gscs\.", r"vit\.stages\.", r"encoder5\.layer\.conv1\."),
        arguments=_segmamba,
    ),
    Origin(
        title="Swin-UMamba",
        network="SwinUMamba",
        trainer="SwinUMamba",
        marks=(r"vssm_encoder\.layers\.", r"encoder1\.layer\.", r"out_layers\."),
        trainers=("SwinUMamba", "SwinUMambaScratch"),
        own_names=names.swin_umamba_names,
        arguments=_swin_umamba,
    ),
    Origin(
        title="LoG-VMamba in 2D",
        network="LoGVMambaSwinUNet",
        trainer="LoGVMambaSwin",
        marks=(
            r"vssm_encoder\.layers\.",
            r"decoder\.concat_back_dim\.",
            r"decoder\..+\.self_attention\.(fold|depth_fc)\.",
        ),
        own_names=names.swin_names,
        arguments=_swin,
    ),
    Origin(
        title="Swin-UMamba†",
        network="LoGVMambaSwinUNet",
        trainer="SwinUMambaD",
        marks=(r"vssm_encoder\.layers\.", r"decoder\.concat_back_dim\."),
        trainers=("SwinUMambaD", "SwinUMambaDScratch"),
        own_names=names.swin_names,
        arguments=_swin,
    ),
    Origin(
        title="LoG-VMamba in 3D",
        network="LoGVMambaUNet",
        trainer="LoGVMamba",
        marks=(r"encoder\.mamba_layers\.\d+\.mamba\.self_attention\.", r"seg_layer\."),
        own_names=names.log_vmamba_3d_names,
        arguments=_log_vmamba_3d,
    ),
)
"""Those that we know; what fits several is the first."""
