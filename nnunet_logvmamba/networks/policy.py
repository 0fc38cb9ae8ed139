"""Which stage gets which tokens: the published choices, extended to any plan by one small table.

Whatever fixes a weight's shape follows from the plan's strides and the stage index, never from the patch, so that one
checkpoint serves every patch size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from nnunet_logvmamba.layers import GLOBAL_STRIDES, check_family, default_squeeze

_LOCAL_STAGES = (0, 1, 2)
_CHANNELS_PER_TOKEN = (1, 1, 1, 2, 8)  # by mixing stage; deeper stages keep the last
_GLOBAL_STRIDE_TARGET = 16  # cumulative stride at which global tokens are taken
_GRID = {2: (32, 512), 3: (8, 128)}  # largest canonical grid and patch of the published networks, per axis


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


def stage_settings(
    widths: Sequence[int],
    strides: Sequence[Sequence[int]],
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
    """Settings of every mixing stage of a U-Net.

    Args:
        widths: Channels of the mixing stages.
        strides: Strides of all stages of the plan, one more than there are mixing stages: the first is the stem's.
        family: ``log``, ``l``, ``g``, ``vss`` or ``no_ssm``.
        expand: Inner width of a block over its channels.
        window: Side of the unfolded neighbourhood.
        squeeze: Channels per unfolded channel; None means the published value.
        mixer_stages: Mixing stages that carry a block; None means all.
        local_token_stages: Mixing stages with unfolded tokens; None means the first three where the width divides.
        global_token_stages: Mixing stages with global tokens; None means all but the first.
        global_strides: Stride of the global tokens in every mixing stage; None means 16 / cumulative stride,
            from 1 to 8.
        channels_per_token: Channels per global token in every mixing stage; None means 1, 1, 1, 2, 8, 8, …, lowered to
            what divides.
        canonical_grids: Grid of the global tokens' linear layer in every mixing stage; None means that of the
            published patch.

    Raises:
        ValueError: If a stage index does not exist, or unfolded tokens are asked for where the width does not divide.
    """
    check_family(family)
    num_stages, spatial_dims = len(widths), len(strides[0])
    squeeze = default_squeeze(spatial_dims) if squeeze is None else squeeze
    if squeeze < 1:
        raise ValueError(f"squeeze is {squeeze}; at least 1 is needed")
    for name, stages in (
        ("mixer_stages", mixer_stages),
        ("local_token_stages", local_token_stages),
        ("global_token_stages", global_token_stages),
    ):
        strangers = [stage for stage in stages or () if stage not in range(num_stages)]
        if strangers:
            raise ValueError(f"{name} names stage {strangers[0]}; this network has mixing stages 0 to {num_stages - 1}")
    for name, values in (
        ("global_strides", global_strides),
        ("channels_per_token", channels_per_token),
        ("canonical_grids", canonical_grids),
    ):
        if values is not None and len(values) != num_stages:
            raise ValueError(f"{name} has {len(values)} entries; one per mixing stage, {num_stages}, is needed")

    settings = []
    for stage, channels in enumerate(widths):
        inner = expand * channels
        cumulative = [prod(step[axis] for step in strides[: stage + 2]) for axis in range(spatial_dims)]
        wants_local = family in ("log", "l", "no_ssm")
        if local_token_stages is None:
            local = wants_local and stage in _LOCAL_STAGES and inner % squeeze == 0
        else:
            local = wants_local and stage in local_token_stages
            if local and inner % squeeze:
                raise ValueError(
                    f"mixing stage {stage} has {inner} channels, which squeeze {squeeze} does not divide; "
                    f"leave it out of local_token_stages or choose another squeeze"
                )
        if global_token_stages is None:
            has_global = family in ("log", "g") and stage >= 1
        else:
            has_global = family in ("log", "g") and stage in global_token_stages
        token_width = inner // squeeze * window**spatial_dims if local else inner

        if global_strides is None:
            stride = tuple(_power_of_two(min(8, _GLOBAL_STRIDE_TARGET // total)) for total in cumulative)
        else:
            stride = _per_axis(global_strides[stage], spatial_dims)
        if channels_per_token is None:
            per_token = _CHANNELS_PER_TOKEN[min(stage, len(_CHANNELS_PER_TOKEN) - 1)]
            while token_width % per_token:
                per_token //= 2
        else:
            per_token = channels_per_token[stage]
        if canonical_grids is None:
            largest, patch = _GRID[spatial_dims]
            grid = tuple(max(1, min(largest, patch // total)) for total in cumulative)
        else:
            grid = _per_axis(canonical_grids[stage], spatial_dims)
        settings.append(
            StageSettings(
                mixes=mixer_stages is None or stage in mixer_stages,
                local_tokens=local,
                global_tokens=has_global,
                states=family != "no_ssm",
                global_stride=stride,
                channels_per_token=per_token,
                canonical_grid=grid,
                token_width=token_width,
            )
        )
    return settings


def _per_axis(value: Sequence[int] | int, spatial_dims: int) -> tuple[int, ...]:
    return (value,) * spatial_dims if isinstance(value, int) else tuple(value)


def _power_of_two(value: int) -> int:
    """Largest stride of the table that is not above ``value``, at least 1."""
    return max((step for step in GLOBAL_STRIDES if step <= value), default=1)
