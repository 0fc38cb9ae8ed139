"""Building blocks as nn.Modules; 2D and 3D share one class."""

from nnunet_logvmamba.ops.causal_conv import FLOPS
from nnunet_logvmamba.ops.finite import LISTENERS, all_finite, count_not_finite, finite

from .arguments import flag, listed, per_axis, share, whole, wholes
from .global_tokens import GLOBAL_STRIDES, GlobalTokens
from .local_tokens import CONVOLUTIONS, ConvTokens, LocalTokens, check_spatial_dims
from .log_vmamba import FAMILIES, DropPath, LoGVMambaBlock, check_family, default_squeeze
from .mamba import MAMBA_DIRECTIONS, Mamba, MambaLayer, single_precision
from .recompute import nothing_recomputed, recomputed
from .selective_ssm import SelectiveSSM, SkipOnly
from .token_order import (
    DIRECTIONS,
    PLACEMENTS,
    check_directions,
    check_placement,
    raster_order,
    sequence_orders,
    token_positions,
)

__all__ = [
    "CONVOLUTIONS",
    "DIRECTIONS",
    "FAMILIES",
    "FLOPS",
    "GLOBAL_STRIDES",
    "LISTENERS",
    "MAMBA_DIRECTIONS",
    "PLACEMENTS",
    "ConvTokens",
    "DropPath",
    "GlobalTokens",
    "LoGVMambaBlock",
    "LocalTokens",
    "Mamba",
    "MambaLayer",
    "SelectiveSSM",
    "SkipOnly",
    "all_finite",
    "check_directions",
    "check_family",
    "check_placement",
    "check_spatial_dims",
    "count_not_finite",
    "default_squeeze",
    "finite",
    "nothing_recomputed",
    "raster_order",
    "recomputed",
    "sequence_orders",
    "single_precision",
    "token_positions",
    "flag",
    "listed",
    "per_axis",
    "share",
    "whole",
    "wholes",
]
