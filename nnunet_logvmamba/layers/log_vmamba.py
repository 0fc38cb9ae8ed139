"""The LoG-VMamba block; VSS, L-VMamba, G-VMamba and the control without states are its settings."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import above_zero, share, whole
from .global_tokens import GlobalTokens
from .local_tokens import ConvTokens, LocalTokens, check_spatial_dims
from .selective_ssm import SelectiveSSM, SkipOnly
from .token_order import check_directions, check_placement, sequence_orders

Family = Literal["log", "l", "g", "vss", "no_ssm"]
FAMILIES: tuple[str, ...] = get_args(Family)


def check_family(family: str) -> None:
    """Raise ValueError, naming the valid words, unless ``family`` is one of them."""
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; valid are {', '.join(map(repr, FAMILIES))}")


class DropPath(nn.Module):
    """Drop a residual branch for whole samples while training, and scale the others up to keep the mean.

    Raises:
        ValueError: If the probability is not from 0 to below 1.

    References: Huang et al. (2016), "Deep networks with stochastic depth".
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = share("drop_path", probability)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        mask = torch.empty((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f"{self.probability}"


class LoGVMambaBlock(nn.Module):
    """One residual block: norm, gate, local and global tokens, selective scan, fold, norm, gate, out-projection.

    The families differ in their tokens only:

    ========== ============ ============= ===========
    family     local tokens global tokens states
    ========== ============ ============= ===========
    ``log``    unfolded     yes           yes
    ``l``      unfolded     no            yes
    ``g``      plain        yes           yes
    ``vss``    plain        no            yes
    ``no_ssm`` as told      no            no, y = D*x
    ========== ============ ============= ===========

    Args:
        channels: Width of the map that comes and goes.
        spatial_dims: 2 or 3.
        local_tokens: Unfold the neighbourhood (LTX) instead of a plain depthwise convolution.
        global_tokens: Put global tokens (GTX) into the sequence.
        states: False replaces the scan by its skip ``D * x``.
        expand: Inner width = ``expand * channels``.
        window: Side of the unfolded neighbourhood, odd.
        squeeze: Channels per unfolded channel; None means 16 in 3D and 8 in 2D.
        state_size: States per channel.
        placement: Where global tokens enter the sequence, see ``token_positions``.
        directions: 1, 2 or 4, see ``sequence_orders``.
        global_stride: Stride of the global tokens' convolution, per axis.
        channels_per_token: Channels that make one global token.
        canonical_grid: Grid for which the global tokens' linear layer is stored.
        norm_eps: Epsilon of the first norm; None means 1e-6 in 3D and 1e-5 in 2D, as published.
        drop_path: Probability to drop the branch of a sample while training.
        backend: Scan backend.

    Shape: (batch, channels, *spatial) -> (batch, channels, *spatial)

    Raises:
        ValueError: If a value is unknown or does not divide; the message names it.

    References: LoG-VMamba (arXiv 2408.14415), figure 3.
    """

    def __init__(
        self,
        channels: int,
        spatial_dims: int,
        *,
        local_tokens: bool = True,
        global_tokens: bool = True,
        states: bool = True,
        expand: int = 1,
        window: int = 3,
        squeeze: int | None = None,
        state_size: int = 16,
        placement: str = "interleaved",
        directions: int = 1,
        global_stride: int | Sequence[int] = 1,
        channels_per_token: int = 1,
        canonical_grid: int | Sequence[int] | None = None,
        norm_eps: float | None = None,
        drop_path: float = 0.0,
        backend: str = "auto",
    ):
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_placement(placement)
        check_directions(directions)
        self.placement, self.directions = placement, directions
        channels = whole("channels", channels)
        squeeze = default_squeeze(spatial_dims) if squeeze is None else whole("squeeze", squeeze)
        inner = whole("expand", expand) * channels

        published_eps = 1e-6 if spatial_dims == 3 else 1e-5
        self.norm = nn.LayerNorm(channels, eps=published_eps if norm_eps is None else above_zero("norm_eps", norm_eps))
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        if local_tokens:
            self.local_tokens = LocalTokens(inner, spatial_dims, squeeze, window)
            step_rank = math.ceil(channels // squeeze * window**spatial_dims / 16)
        else:
            self.local_tokens = ConvTokens(inner, spatial_dims)
            step_rank = math.ceil(channels / 16)
        width = self.local_tokens.width
        self.global_tokens = None
        if global_tokens and states:
            if canonical_grid is None:
                raise ValueError("global tokens need a canonical_grid")
            self.global_tokens = GlobalTokens(width, spatial_dims, global_stride, channels_per_token, canonical_grid)
        if states:
            self.ssm = SelectiveSSM(width, state_size, max(1, step_rank), directions, backend)
        else:
            self.ssm = SkipOnly(width, directions)
        self.fold = nn.Linear(width, inner, bias=False) if local_tokens else nn.Identity()
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        spatial = tuple(x.shape[2:])
        tokens = self.norm(x.flatten(2).transpose(1, 2))  # (batch, length, channels)
        inner_weight, gate_weight = self.in_proj.weight.chunk(2)
        # Two products instead of one: each result is dense, so the convolution below reads it without a copy.
        inner = F.linear(tokens, inner_weight)
        gate = F.linear(tokens, gate_weight)
        local = self.local_tokens(inner.transpose(1, 2).unflatten(2, spatial))
        y = self.out_norm(self.fold(self._mix(local)))
        y = self.out_proj(y * F.silu(gate))
        return x + self.drop_path(y).transpose(1, 2).unflatten(2, spatial)

    def _mix(self, local: Tensor) -> Tensor:
        """Scan over local and global tokens; the outputs at the local positions, summed over directions.

        Shape: (batch, width, *spatial) -> (batch, length, width)
        """
        spatial = tuple(local.shape[2:])
        tokens = local.flatten(2).transpose(1, 2)  # a view; LocalTokens stores the width innermost
        if isinstance(self.ssm, SkipOnly):
            return self.ssm(tokens)
        context = None if self.global_tokens is None else self.global_tokens(local)
        num_global = 0 if context is None else context.shape[1]
        return self.ssm(
            tokens, context, sequence_orders(spatial, num_global, self.placement, self.directions, local.device)
        )


def default_squeeze(spatial_dims: int) -> int:
    """The published squeeze: 16 in 3D, 8 in 2D."""
    return 16 if spatial_dims == 3 else 8
