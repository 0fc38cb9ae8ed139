"""Local tokens: what each voxel tells the sequence about itself and its neighbours."""

from numbers import Integral

import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import whole

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


def check_spatial_dims(spatial_dims: int) -> None:
    """Raise ValueError unless ``spatial_dims`` is 2 or 3."""
    if not isinstance(spatial_dims, Integral) or spatial_dims not in CONVOLUTIONS:
        raise ValueError(f"spatial_dims is {spatial_dims!r}; 2 or 3 is needed")


class ConvTokens(nn.Module):
    """Plain tokens of a VSS block: a depthwise convolution and SiLU, one token per voxel.

    Shape: (batch, channels, *spatial) -> (batch, channels, *spatial)

    Raises:
        ValueError: If a number does not fit.
    """

    def __init__(self, channels: int, spatial_dims: int):
        super().__init__()
        check_spatial_dims(spatial_dims)
        self.width = whole("channels", channels)
        self.conv = CONVOLUTIONS[spatial_dims](channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv(x))


class LocalTokens(nn.Module):
    """Describe each voxel by its neighbourhood: one wide token per voxel (LTX).

    A grouped convolution squeezes the channels first to keep tokens affordable, then the window around each voxel is
    unfolded along the channels: width = channels / squeeze * window ** spatial_dims. The squeezed channel varies
    slowest and the window position fastest, last axis fastest of all. Neighbours beyond the border are zero. The
    unfold is indexing and has no parameters.

    Shape: (batch, channels, *spatial) -> (batch, width, *spatial), stored with the width innermost

    Raises:
        ValueError: If ``channels`` is not divisible by ``squeeze``, or ``window`` is not odd and positive.

    References: LoG-VMamba (arXiv 2408.14415), section 3.2.
    """

    def __init__(self, channels: int, spatial_dims: int, squeeze: int, window: int = 3):
        super().__init__()
        check_spatial_dims(spatial_dims)
        if whole("channels", channels) % whole("squeeze", squeeze):
            raise ValueError(f"{channels} channels are not divisible by squeeze {squeeze}")
        if whole("window", window) % 2 == 0:
            raise ValueError(f"window is {window}; an odd number of at least 1 is needed")
        self.window = window
        squeezed = channels // squeeze
        self.width = squeezed * window**spatial_dims
        self.conv = CONVOLUTIONS[spatial_dims](channels, squeezed, 3, padding=1, groups=squeezed)

    def forward(self, x: Tensor) -> Tensor:
        return self.unfold(F.silu(self.conv(x)))

    def unfold(self, x: Tensor) -> Tensor:
        """Put the window around each voxel along the channels.

        Shape: (batch, squeezed, *spatial) -> (batch, squeezed * window ** spatial_dims, *spatial)
        """
        spatial_dims = x.ndim - 2
        x = F.pad(x, [self.window // 2] * (2 * spatial_dims))
        for axis in range(2, 2 + spatial_dims):
            x = x.unfold(axis, self.window, 1)
        # (batch, squeezed, *spatial, *window) -> (batch, *spatial, squeezed, *window): the one copy that is made
        x = x.movedim(1, 1 + spatial_dims).flatten(1 + spatial_dims)
        return x.movedim(-1, 1)
