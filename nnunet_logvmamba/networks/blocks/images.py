"""What a network says to an image that it was not built for."""

from torch import Tensor


def check_image(x: Tensor, channels: int, spatial_dims: int) -> None:
    """Raise ValueError, naming what came and what is needed, unless ``x`` is (batch, channels, *spatial)."""
    if x.ndim != spatial_dims + 2:
        raise ValueError(f"the input has {x.ndim} axes; batch, channels and {spatial_dims} spatial axes are needed")
    if x.shape[1] != channels:
        raise ValueError(
            f"the image has {x.shape[1]} channel(s) and the network was built for {channels}: give every image the "
            "channels that dataset.json names"
        )
