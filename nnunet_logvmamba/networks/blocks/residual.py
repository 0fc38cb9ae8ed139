"""The residual convolution block of encoder and decoder."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_logvmamba.layers import recomputed
from nnunet_logvmamba.networks.blocks.innermost import are_known, is_watched, normalised, pointwise
from nnunet_logvmamba.networks.blocks.norms import INSTANCE_NORMS, faster

_DRAW_NOTHING = {nn.Conv2d, nn.Conv3d, nn.GroupNorm, *INSTANCE_NORMS.values(), nn.LeakyReLU, nn.ReLU}
"""Of any other layer it is not known whether it draws random numbers."""


class ResidualBlock(nn.Module):
    """conv, norm, nonlinearity, conv, norm, plus the input, nonlinearity.

    With ``project`` the input comes through a strided 1x1 convolution, with ``project_norm`` and a norm, else as it is.
    The blocks of dynamic-network-architectures differ in that branch (average pooling) and save convolutions twice.
    With ``saving`` what the second convolution reads is computed again in the backward pass, from the block's input if
    that has few channels, else from what the first convolution gives; hooks on the way are called again, too.

    Shape: (batch, in_channels, *spatial) -> (batch, out_channels, *(spatial / stride))
    """

    saving, reads_little = True, False  # of networks that were pickled before there was a choice

    def __init__(
        self,
        conv_op: type[nn.Module],
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int] | int,
        *,
        project: bool,
        project_norm: bool = False,
        saving: bool = True,
        conv_bias: bool,
        norm_op: type[nn.Module],
        norm_op_kwargs: dict[str, Any],
        nonlin: type[nn.Module],
        nonlin_kwargs: dict[str, Any],
    ):
        super().__init__()
        self.saving, self.reads_little = saving, 4 * in_channels <= out_channels
        norm_op = faster(norm_op)
        padding = [size // 2 for size in kernel_size]
        self.conv1 = conv_op(in_channels, out_channels, kernel_size, stride, padding, bias=conv_bias)
        self.norm1 = norm_op(out_channels, **norm_op_kwargs)
        self.nonlin = nonlin(**nonlin_kwargs)
        self.conv2 = conv_op(out_channels, out_channels, kernel_size, 1, padding, bias=conv_bias)
        self.norm2 = norm_op(out_channels, **norm_op_kwargs)
        self.conv3 = conv_op(in_channels, out_channels, 1, stride, bias=conv_bias) if project else None
        self.norm3 = norm_op(out_channels, **norm_op_kwargs) if project_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.conv3 is None else self.norm3(pointwise(x, self.conv3))
        if not self.saving or torch.compiler.is_compiling():
            x = self._second(self.conv1(x))
        else:
            modules: list[nn.Module] = [self.conv1] * self.reads_little + [self.norm1, self.nonlin, self.conv2]
            draws = any(type(module) not in _DRAW_NOTHING or is_watched(module) for module in modules)
            if self.reads_little:
                x = recomputed(self._both, modules, x, draws=draws)
            else:
                x = recomputed(self._second, modules, self.conv1(x), draws=draws)
        return normalised(x, self.norm2, self.nonlin, skip)

    def is_known(self) -> bool:
        """Whether its layers may be trained in ``quick_training``."""
        known = type(self) is ResidualBlock and "forward" not in vars(self)
        known = known and are_known(self.norm1, self.nonlin) and are_known(self.norm2, self.nonlin)
        return known and (self.conv3 is None or not is_watched(self.conv3)) and type(self.norm3) is nn.Identity

    def _both(self, x: Tensor) -> Tensor:
        return self._second(self.conv1(x))

    def _second(self, x: Tensor) -> Tensor:
        return self.conv2(normalised(x, self.norm1, self.nonlin))


def residual_stage(
    conv_op: type[nn.Module],
    in_channels: int,
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int] | int,
    num_blocks: int,
    **options: Any,
) -> nn.Sequential:
    """One projecting block, then ``num_blocks - 1`` that add their input as it is."""
    blocks = [ResidualBlock(conv_op, in_channels, out_channels, kernel_size, stride, project=True, **options)]
    for _ in range(num_blocks - 1):
        blocks.append(ResidualBlock(conv_op, out_channels, out_channels, kernel_size, 1, project=False, **options))
    return nn.Sequential(*blocks)
