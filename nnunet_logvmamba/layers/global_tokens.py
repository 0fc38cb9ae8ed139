"""Global tokens (GTX): a few tokens that each see the whole image."""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import per_axis, whole
from .local_tokens import CONVOLUTIONS, check_spatial_dims

# stride -> (kernel, dilation, padding), per axis
_CONVOLUTION_3D = {1: (1, 1, 0), 2: (3, 1, 1), 4: (3, 2, 2), 8: (5, 2, 3)}
_CONVOLUTION_2D = {1: (1, 1, 0), 2: (3, 1, 1), 4: (5, 1, 2), 8: (9, 1, 4)}
_CONVOLUTION = {2: _CONVOLUTION_2D, 3: _CONVOLUTION_3D}
GLOBAL_STRIDES = tuple(_CONVOLUTION_3D)


class GlobalTokens(nn.Module):
    """Compress a whole map into ``channels / channels_per_token`` tokens of full width (GTX).

    A strided grouped convolution leaves one small map per token; a linear layer over its positions makes it a token.
    That layer belongs to a canonical grid. On a map that gives another grid its weights are resampled linearly, axis by
    axis, so that a constant map gives the same tokens on every grid (see ``resampling``): one checkpoint fits every
    patch.

    Args:
        channels: Width of the local tokens, which is also the width of the global ones.
        spatial_dims: 2 or 3.
        stride: Step of the convolution per axis, out of 1, 2, 4, 8; kernel and dilation follow from it.
        channels_per_token: Consecutive channels that make one token; must divide ``channels``.
        canonical_grid: Positions, of all axes or per axis, for which the linear layer is stored.

    Shape: (batch, channels, *spatial) -> (batch, tokens, channels)

    Raises:
        ValueError: If a stride has no kernel, ``channels_per_token`` does not divide ``channels``, or a value is no
            whole number or not one per axis.

    References: LoG-VMamba (arXiv 2408.14415), section 3.2; kernels as in the authors' code.
    """

    def __init__(
        self,
        channels: int,
        spatial_dims: int,
        stride: int | Sequence[int],
        channels_per_token: int,
        canonical_grid: int | Sequence[int],
    ):
        super().__init__()
        check_spatial_dims(spatial_dims)
        stride = per_axis("global stride", stride, spatial_dims)
        if any(step not in GLOBAL_STRIDES for step in stride):
            raise ValueError(f"global stride is {stride}; {spatial_dims} values out of {GLOBAL_STRIDES} are needed")
        if whole("channels", channels) % whole("channels_per_token", channels_per_token):
            raise ValueError(f"{channels} token channels are not divisible by channels_per_token {channels_per_token}")
        self.canonical_grid = per_axis("canonical_grid", canonical_grid, spatial_dims)
        self.num_tokens = channels // channels_per_token
        kernel, dilation, padding = zip(*(_CONVOLUTION[spatial_dims][step] for step in stride))
        self.conv = CONVOLUTIONS[spatial_dims](
            channels, self.num_tokens, kernel, stride, padding, dilation, groups=self.num_tokens
        )
        self.smallest_map = tuple(
            reach * (size - 1) + 1 - 2 * pad for size, reach, pad in zip(kernel, dilation, padding)
        )
        self.fc = nn.Linear(prod(self.canonical_grid), channels)

    def forward(self, x: Tensor) -> Tensor:
        missing = [max(0, least - size) for least, size in zip(self.smallest_map, x.shape[2:])]
        if any(missing):  # only a map of one or two slices under stride 8
            x = F.pad(x, [pad for size in reversed(missing) for pad in (0, size)])
        x = self.conv(x)
        return F.silu(F.linear(x.flatten(2), self._weight_for(tuple(x.shape[2:])), self.fc.bias))

    def _weight_for(self, grid: tuple[int, ...]) -> Tensor:
        """Weights of the linear layer on ``grid``, (channels, positions)."""
        if grid == self.canonical_grid:
            return self.fc.weight
        weight = self.fc.weight.unflatten(1, self.canonical_grid)
        for axis, (canonical, actual) in enumerate(zip(self.canonical_grid, grid), start=1):
            if actual != canonical:
                matrix = resampling(canonical, actual, weight.dtype, weight.device)
                weight = torch.tensordot(weight, matrix, dims=([axis], [1])).movedim(-1, axis)
        return weight.flatten(1)


def resampling(
    canonical: int, actual: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Tensor:
    """Matrix that takes weights on ``canonical`` cells of an axis to ``actual`` cells of the same length.

    Linear interpolation between cell centres (align_corners false); on fewer cells its triangle is as wide as they are,
    so that every weight counts, also on a small patch. Each column is then scaled to sum 1: a weight is spread over
    cells, none of it is lost. So the sum of all weights stays, and with it the response to a constant map. Where
    ``actual`` is a multiple of ``canonical`` this is plain interpolation times canonical / actual.

    Returns:
        (actual, canonical); the identity if both are equal.
    """
    exact = torch.promote_types(dtype, torch.float32)  # half precision cannot tell so many cells apart
    centres = (torch.arange(canonical, dtype=exact, device=device) + 0.5) / canonical
    wanted = (torch.arange(actual, dtype=exact, device=device) + 0.5) / actual
    # Beyond the outermost centres the outermost weight goes on, as in torch's interpolation.
    if actual > canonical:
        wanted = wanted.clamp(0.5 / canonical, 1 - 0.5 / canonical)
    distance = (wanted[:, None] - centres).abs() * min(canonical, actual)
    matrix = (1 - distance).clamp_min(0)
    return (matrix / matrix.sum(dim=0)).to(dtype)
