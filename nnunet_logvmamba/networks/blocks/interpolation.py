"""Linear interpolation of maps to a given size."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_MODES = {2: "bilinear", 3: "trilinear"}


def interpolate(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear or trilinear interpolation, cell centre to cell centre (align_corners false).

    On a CPU in single or double precision as a product with a small matrix along each axis, last axis first, which
    takes less than half the time of torch's kernel; sums are the same but for rounding. Maps whose channels lie
    innermost go to torch's, which is quick with those.

    Shape: (batch, channels, *spatial) -> (batch, channels, *size)
    """
    by_matrix = x.is_cpu and x.is_contiguous() and x.dtype in (torch.float32, torch.float64)
    if not by_matrix or torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return F.interpolate(x, size=size, mode=_MODES[x.ndim - 2], align_corners=False)
    for axis in reversed(range(2, x.ndim)):
        weights = _weights(x.shape[axis], size[axis - 2], x)
        if axis == x.ndim - 1:
            x = x @ weights.T
        else:
            x = (weights @ x.flatten(axis + 1)).unflatten(axis + 1, x.shape[axis + 1 :])
    return x


def _weights(before: int, after: int, x: Tensor) -> Tensor:
    """What each of ``before`` voxels of an axis gives to each of ``after``, (after, before), as x is."""
    each = torch.eye(before, dtype=x.dtype, device=x.device)[None]
    return F.interpolate(each, size=after, mode="linear", align_corners=False)[0].T
