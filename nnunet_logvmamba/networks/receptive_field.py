"""How far a network sees: the gradient of its middle voxel's logits by every voxel of the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

SHARES = (0.5, 0.9)


def receptive_field(network: nn.Module, images: Tensor) -> np.ndarray:
    """Give the effective receptive field: what each voxel of the image weighs in the logits of the middle one.

    Absolute gradients, summed over channels and classes and averaged over images. The network is called in evaluation,
    each image by itself, and its finest output is taken; the mode of every module and the gradients of parameters are
    left as they were.

    Args:
        network: Any of ``PlannedNetwork``, or of nnU-Net.
        images: (batch, channels, \\*spatial), on the network's device.

    Returns:
        float64 (\\*spatial), of sum 1.

    Raises:
        ValueError: If no gradient is there, or one that is not finite.

    References: Luo et al. (2016), "Understanding the effective receptive field", arXiv 1701.04128.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    total = torch.zeros(images.shape[2:], dtype=torch.float64, device="cpu")
    try:
        for image in images.detach().split(1):
            image.requires_grad_()
            output = network(image)
            logits = output if isinstance(output, Tensor) else output[0]
            place = (0, slice(None)) + tuple(size // 2 for size in logits.shape[2:])
            middle = logits[place]
            for index, logit in enumerate(middle):
                (gradient,) = torch.autograd.grad(logit, image, retain_graph=index + 1 < len(middle))
                total += gradient[0].abs().sum(0).double().cpu()
    finally:
        for module, mode in modes:
            module.training = mode
    found = total / total.sum()
    if not found.isfinite().all():
        raise ValueError("the gradients of this network's middle voxel are zero or not finite, so it has no field")
    return found.numpy()


def radii(field: np.ndarray, shares: Sequence[float] = SHARES) -> list[list[int]]:
    """Give for each share and axis the least distance from the middle within which so much of the field lies.

    Args:
        field: What :func:`receptive_field` gives.
        shares: From 0 to 1.

    Returns:
        Voxels, a list per share, with a number per axis; the other axes are summed over.
    """
    found = []
    for share in shares:
        within = []
        for axis, size in enumerate(field.shape):
            profile = field.sum(tuple(other for other in range(field.ndim) if other != axis))
            distances = np.abs(np.arange(size) - size // 2)
            mass = np.cumsum(np.bincount(distances, weights=profile))
            within.append(int(np.searchsorted(mass, share * mass[-1] - 1e-12)))
        found.append(within)
    return found
