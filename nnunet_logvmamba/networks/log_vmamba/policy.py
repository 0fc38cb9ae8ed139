"""Which stage gets which tokens: the published choices, extended to any plan by two small tables.

Whatever fixes a weight's shape follows from the plan's strides and the stage index, never from the patch, so that one
checkpoint serves every patch size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from nnunet_logvmamba.layers import GLOBAL_STRIDES, check_family, default_squeeze, listed, per_axis, whole, wholes

# U-Net lineage, by mixing stage
_LOCAL_STAGES = (0, 1, 2)
_CHANNELS_PER_TOKEN = (1, 1, 1, 2, 8)  # deeper stages keep the last
_GLOBAL_STRIDE_TARGET = 16  # cumulative stride at which global tokens are taken
_GRID = {2: (32, 512), 3: (8, 128)}  # largest canonical grid and patch of the published networks, per axis

# Decoder of the Swin lineage, from the bottom; further steps keep the last
_SWIN_GLOBAL_STRIDES = (2, 2, 4)
_SWIN_CHANNELS_PER_TOKEN = (2, 1, 1)
_SWIN_PATCH = 512  # of the published network, per axis; its canonical grids are those that this patch gives


@dataclass(frozen=True)
class UsualTokens:
    """What the tokens of one mixing stage look like unless an argument says otherwise.

    ``channels_per_token`` is lowered to what divides, ``local_tokens`` holds where the width can be squeezed.
    """

    local_tokens: bool
    global_tokens: bool
    global_stride: tuple[int, ...]
    channels_per_token: int
    canonical_grid: tuple[int, ...]


@dataclass(frozen=True)
class StageSettings:
    """What the block of one mixing stage looks like; without a block, ``mixes`` is False and the rest is moot."""

    mixes: bool
    local_tokens: bool
    global_tokens: bool
    states: bool
    global_stride: tuple[int, ...]
    channels_per_token: int
    canonical_grid: tuple[int, ...]
    token_width: int

    @property
    def block_arguments(self) -> dict[str, Any]:
        """Arguments of ``LoGVMambaBlock`` that these settings decide."""
        names = ("local_tokens", "global_tokens", "states", "global_stride", "channels_per_token", "canonical_grid")
        return {name: getattr(self, name) for name in names}

    @property
    def label(self) -> str:
        """Name of the block that these settings give."""
        if not self.mixes:
            return "-"
        if not self.states:
            return "NoSSM"
        return {
            (True, True): "LoG-VMamba",
            (True, False): "L-VMamba",
            (False, True): "G-VMamba",
            (False, False): "VSS",
        }[self.local_tokens, self.global_tokens]


def unet_tokens(strides: Sequence[Sequence[int]]) -> list[UsualTokens]:
    """Usual tokens of every mixing stage of a U-Net.

    Unfolded tokens in the first three stages, global ones in all but the first. The global stride is 16 / cumulative
    stride, from 1 to 8; the channels per token are 1, 1, 1, 2, 8, 8, …; the grid is that of the published patch.

    Args:
        strides: Strides of all stages of the plan, one more than there are mixing stages: the first is the stem's.
    """
    largest, patch = _GRID[len(strides[0])]
    return [
        UsualTokens(
            local_tokens=stage in _LOCAL_STAGES,
            global_tokens=stage >= 1,
            global_stride=tuple(_power_of_two(min(8, _GLOBAL_STRIDE_TARGET // total)) for total in totals),
            channels_per_token=_CHANNELS_PER_TOKEN[min(stage, len(_CHANNELS_PER_TOKEN) - 1)],
            canonical_grid=tuple(max(1, min(largest, patch // total)) for total in totals),
        )
        for stage, totals in enumerate(_cumulative(strides)[1:])
    ]


def swin_decoder_tokens(strides: Sequence[Sequence[int]]) -> list[UsualTokens]:
    """Usual tokens of the decoder of a Swin-UMamba network, in every mixing stage but the deepest, finest first.

    Unfolded and global tokens everywhere; from the bottom the global strides are 2, 2, 4, 4, … and the channels per
    token 2, 1, 1, …; the grids are those of the published patch.

    Args:
        strides: Strides of all stages of the plan: full resolution, then one per stage of the encoder.
    """
    usual = []
    for step, totals in enumerate(reversed(_cumulative(strides)[1:-1])):
        stride = _SWIN_GLOBAL_STRIDES[min(step, len(_SWIN_GLOBAL_STRIDES) - 1)]
        usual.append(
            UsualTokens(
                local_tokens=True,
                global_tokens=True,
                global_stride=(stride,) * len(totals),
                channels_per_token=_SWIN_CHANNELS_PER_TOKEN[min(step, len(_SWIN_CHANNELS_PER_TOKEN) - 1)],
                canonical_grid=tuple(max(1, _SWIN_PATCH // (total * stride)) for total in totals),
            )
        )
    return usual[::-1]


def check_first_stride(strides: Sequence[Sequence[int]]) -> None:
    """Raise ValueError unless plan stage 0 keeps the image's resolution, which is that of the output."""
    if any(step != 1 for step in strides[0]):
        raise ValueError(
            f"the first stride is {tuple(strides[0])}; it must be 1, since plan stage 0 is full resolution: strides "
            "has one entry per stage, each a number or one per axis"
        )


def stage_settings(
    widths: Sequence[int],
    usual: Sequence[UsualTokens],
    *,
    family: str = "log",
    expand: int = 1,
    window: int = 3,
    squeeze: int | None = None,
    mixer_stages: Sequence[int] | None = None,
    local_token_stages: Sequence[int] | None = None,
    global_token_stages: Sequence[int] | None = None,
    global_strides: Sequence[Sequence[int] | int] | None = None,
    channels_per_token: Sequence[int] | None = None,
    canonical_grids: Sequence[Sequence[int]] | None = None,
) -> list[StageSettings]:
    """Settings of every mixing stage of a network.

    Args:
        widths: Channels of the mixing stages.
        usual: What holds where an argument below is None, one entry per mixing stage.
        family: ``log``, ``l``, ``g``, ``vss`` or ``no_ssm``.
        expand: Inner width of a block over its channels.
        window: Side of the unfolded neighbourhood.
        squeeze: Channels per unfolded channel; None means the published value.
        mixer_stages: Mixing stages that carry a block; None means all.
        local_token_stages: Mixing stages with unfolded tokens; None means the usual ones where the width divides.
        global_token_stages: Mixing stages with global tokens; None means the usual ones.
        global_strides: Stride of the global tokens in every mixing stage; None means the usual one.
        channels_per_token: Channels per global token in every mixing stage; None means the usual number, lowered to
            what divides.
        canonical_grids: Grid of the global tokens' linear layer in every mixing stage; None means that of the
            published patch.

    Raises:
        ValueError: If a number is out of range, a stage index does not exist, or unfolded tokens are asked for where
            the width does not divide.
    """
    check_family(family)
    num_stages, spatial_dims = len(widths), len(usual[0].global_stride)
    squeeze = default_squeeze(spatial_dims) if squeeze is None else whole("squeeze", squeeze)
    expand, window = whole("expand", expand), whole("window", window)
    for name, stages in (
        ("mixer_stages", mixer_stages),
        ("local_token_stages", local_token_stages),
        ("global_token_stages", global_token_stages),
    ):
        numbers = [] if stages is None else listed(name, stages, "of mixing stages")
        strangers = [stage for stage in numbers if isinstance(stage, bool) or stage not in range(num_stages)]
        if strangers:
            raise ValueError(
                f"{name} names stage {strangers[0]!r}; this network has mixing stages 0 to {num_stages - 1}"
            )
    for name, values in (
        ("global_strides", global_strides),
        ("channels_per_token", channels_per_token),
        ("canonical_grids", canonical_grids),
    ):
        if values is not None and len(listed(name, values, "with one entry per mixing stage")) != num_stages:
            raise ValueError(f"{name} has {len(values)} entries; one per mixing stage, {num_stages}, is needed")
    if channels_per_token is not None:
        channels_per_token = wholes("channels_per_token", channels_per_token, "mixing stage")

    settings = []
    for stage, (channels, tokens) in enumerate(zip(widths, usual)):
        inner = expand * channels
        wants_local = family in ("log", "l", "no_ssm")
        if local_token_stages is None:
            local = wants_local and tokens.local_tokens and inner % squeeze == 0
        else:
            local = wants_local and stage in local_token_stages
            if local and inner % squeeze:
                raise ValueError(
                    f"mixing stage {stage} has {inner} channels, which squeeze {squeeze} does not divide; "
                    f"leave it out of local_token_stages or choose another squeeze"
                )
        wished = tokens.global_tokens if global_token_stages is None else stage in global_token_stages
        token_width = inner // squeeze * window**spatial_dims if local else inner

        stride, grid = tokens.global_stride, tokens.canonical_grid
        if global_strides is not None:
            stride = per_axis(f"global_strides[{stage}]", global_strides[stage], spatial_dims)
        if canonical_grids is not None:
            grid = per_axis(f"canonical_grids[{stage}]", canonical_grids[stage], spatial_dims)
        if channels_per_token is None:
            per_token = tokens.channels_per_token
            while token_width % per_token:
                per_token //= 2
        else:
            per_token = channels_per_token[stage]
        settings.append(
            StageSettings(
                mixes=mixer_stages is None or stage in mixer_stages,
                local_tokens=local,
                global_tokens=wished and family in ("log", "g"),
                states=family != "no_ssm",
                global_stride=stride,
                channels_per_token=per_token,
                canonical_grid=grid,
                token_width=token_width,
            )
        )
    return settings


def _cumulative(strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Cumulative stride of every stage of a plan, per axis."""
    return [tuple(map(prod, zip(*strides[: stage + 1]))) for stage in range(len(strides))]


def _power_of_two(value: int) -> int:
    """Largest stride of the table that is not above ``value``, at least 1."""
    return max((step for step in GLOBAL_STRIDES if step <= value), default=1)
