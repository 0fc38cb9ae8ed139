"""How many parameters and multiply-adds a network has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def count_parameters(module: nn.Module) -> int:
    """Give the number of weights, each shared one counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_multiply_adds(network: nn.Module, channels: int, patch_size: Sequence[int]) -> dict[str, int]:
    """Count the multiply-adds of convolutions and matrix products for one patch forwards, module by module.

    Interpolation, element-wise operations and the scan are not among them. Nothing is computed.

    Args:
        network: On the meta device; it runs in the mode it is in.
        channels: Input channels.
        patch_size: Voxels per axis.

    Returns:
        Counts by the module's dotted name; ``""`` is the whole. A module without any is absent.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from nnunet_logvmamba.layers import FLOPS

    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter, torch.no_grad():
        network(torch.empty(1, channels, *patch_size, device="meta"))
    root = f"{type(network).__name__}."
    counts = {name.removeprefix(root): sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    return {**counts, "": counter.get_total_flops() // 2}
