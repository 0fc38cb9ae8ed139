"""What the authors of published networks call the parameters, and what they are called here.

Functions that end in ``_names`` take the names of a whole checkpoint of theirs and give ours by theirs, None where ours
has no counterpart. Networks that keep the authors' names need none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

_IN_MIXER = {
    "conv2d": "local_tokens.conv",
    "conv3d": "local_tokens.conv",
    "depth_conv": "global_tokens.conv",
    "depth_fc": "global_tokens.fc",
    "fold": "fold",
    "in_proj": "in_proj",
    "out_norm": "out_norm",
    "out_proj": "out_proj",
}
_IN_SCAN = {
    "A_logs": "ssm.A_log",
    "Ds": "ssm.D",
    "dt_projs_bias": "ssm.dt_bias",
    "dt_projs_weight": "ssm.dt_proj_weight",
    "x_proj_weight": "ssm.x_proj_weight",
}


def mixer_name(name: str) -> str | None:
    """Name in ``LoGVMambaBlock`` of a parameter of a mixer of VMamba, Swin-UMamba or LoG-VMamba."""
    module, _, leaf = name.rpartition(".")
    return f"{_IN_MIXER[module]}.{leaf}" if module in _IN_MIXER else _IN_SCAN.get(name)


def block_name(name: str) -> str | None:
    """The same for a block: the mixer, ``self_attention``, and the norm ahead of it, ``ln`` or, in 2D, ``ln_1``."""
    part, _, rest = name.partition(".")
    if part in ("ln", "ln_1"):
        return f"norm.{rest}"
    return mixer_name(rest) if part == "self_attention" else None


def first_name(name: str) -> str:
    """Name of the tensor that a name stands for, where the authors' code stores tensors several times.

    Decoders of U-Mamba and of LoG-VMamba's 3D network hold their encoder, and residual blocks of
    dynamic-network-architectures hold convolution and norm once more in a list.
    """
    name = re.sub(r"^decoder\.encoder\.", "encoder.", name)
    name = re.sub(r"\bconv(\d)\.all_modules\.0\.", r"conv\1.conv.", name)
    return re.sub(r"\bconv(\d)\.all_modules\.1\.", r"conv\1.norm.", name)


def same_names(names: Iterable[str]) -> dict[str, str | None]:
    """Names in a network that has the authors' own."""
    return {name: name for name in names}


def _each(translate: Callable[..., str | None], names: Iterable[str], *others: int) -> dict[str, str | None]:
    return {name: translate(name, *others) for name in names}


_BLOCKS = r"(?:vssm_encoder\.layers|decoder\.stages)\.(\d+)\.blocks\.(\d+)\.(.+)"


def swin_names(names: Iterable[str]) -> dict[str, str | None]:
    """Names in ``LoGVMambaSwinUNet`` of the parameters of Swin-UMamba† or of LoG-VMamba's 2D network."""
    return _each(_swin, names)


def _swin(name: str) -> str | None:
    block = re.fullmatch(_BLOCKS, name)
    if block is not None:
        half, inside = ("encoder" if name.startswith("vssm") else "decoder"), block_name(block[3])
        return None if inside is None else f"{half}.stages.{block[1]}.{block[2]}.{inside}"
    return _renamed(
        name,
        (r"vssm_encoder\.patch_embed\.(.+)", r"encoder.patch_embed.\1"),
        (r"vssm_encoder\.downsamples\.(.+)", r"encoder.mergers.\1"),
        (r"decoder\.expand_layers\.(.+)", r"decoder.expansions.\1"),
        (r"decoder\.concat_back_dim\.(\d+)\.(.+)", r"decoder.fusions.\1.linear.\2"),
        (r"decoder\.seg_layers\.(.+)", r"decoder.seg_layers.\1"),
    )


def swin_umamba_names(names: Iterable[str]) -> dict[str, str | None]:
    """Names in ``SwinUMamba`` of the parameters of the authors' network.

    They count from the finest scale: ``encoder1`` is the image's skip, ``decoder2`` the last step up, ``decoder1`` the
    block behind it, and the first of ``out_layers`` the finest head.
    """
    names = list(names)
    return _each(_swin_umamba, names, _largest(r"decoder(\d+)\.transp_conv\..+", names) - 1)


def _largest(pattern: str, names: Iterable[str]) -> int:
    return max((int(found[1]) for found in (re.fullmatch(pattern, name) for name in names) if found), default=0)


def _swin_umamba(name: str, steps: int) -> str | None:
    if name.startswith("vssm_encoder."):
        return _swin(name)
    found = re.fullmatch(r"(encoder|decoder|out_layers\.)(\d+)\.(.+?)\.(conv\.)?(weight|bias)", name)
    if found is None:
        return name if re.fullmatch(r"stem\.[01]\.(weight|bias)", name) else None
    part, number, inside, leaf = found[1], int(found[2]), found[3], found[5]
    names = {
        ("encoder", "layer"): f"skips.{number - 1}",
        ("decoder", "layer"): "decoder.last",
        ("decoder", "conv_block"): f"decoder.stages.{steps + 1 - number}",
        ("decoder", "transp_conv"): f"decoder.upsamplers.{steps + 1 - number}",
        ("out_layers.", "conv"): f"decoder.seg_layers.{steps - 2 - number}",
    }
    module, _, convolution = inside.partition(".")
    own = names.get((part, module))
    return None if own is None else ".".join(filter(None, (own, convolution, leaf)))


def log_vmamba_3d_names(names: Iterable[str]) -> dict[str, str | None]:
    """Names in ``LoGVMambaUNet`` of the parameters of LoG-VMamba's 3D network.

    Its last step is not in its decoder.
    """
    names = list(names)
    return _each(_log_vmamba_3d, names, _largest(r"encoder\.stages\.(\d+)\..+", names))


def _log_vmamba_3d(name: str, last: int) -> str | None:
    mixer = re.fullmatch(r"encoder\.mamba_layers\.(\d+)\.mamba\.(.+)", name)
    if mixer is not None:
        inside = block_name(mixer[2])
        return None if inside is None else f"encoder.mixers.{mixer[1]}.{inside}"
    return _renamed(
        re.sub(r"conv([12])\.(conv|norm)\.", r"\2\1.", name),
        (r"(encoder\.stem|encoder\.stages|decoder\.stages)\.(.+)", r"\1.\2"),
        (r"decoder\.upsample_layers\.(.+)", r"decoder.upsamplers.\1"),
        (r"upsample\.(.+)", rf"decoder.upsamplers.{last}.\1"),
        (r"conv\.(.+)", rf"decoder.stages.{last}.0.\1"),
        (r"seg_layer\.(.+)", r"decoder.seg_layers.0.\1"),
    )


def _renamed(name: str, *rows: Sequence[str]) -> str | None:
    for theirs, ours in rows:
        if re.fullmatch(theirs, name):
            return re.sub(theirs, ours, name)
    return None
