"""Three networks of MONAI, used as they are: the residual U-Net, UNETR and Swin UNETR.

MONAI takes seconds to import, so that this module is loaded for those alone who build one of them.
"""

import warnings
from collections.abc import Sequence
from copy import deepcopy
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnunet_logvmamba.layers import check_spatial_dims, flag, listed, per_axis, share, whole, wholes
from nnunet_logvmamba.networks.blocks.arguments import known_arguments
from nnunet_logvmamba.networks.blocks.heads import one_output
from nnunet_logvmamba.networks.blocks.images import check_image, check_padded_size, check_patch, check_positions
from nnunet_logvmamba.networks.blocks.padding import crop, pad_to_multiples
from nnunet_logvmamba.networks.contract import PlannedNetwork
from nnunet_logvmamba.networks.log_vmamba.policy import check_first_stride

with warnings.catch_warnings():
    # MONAI loads torchvision where it can, and that warns beside some builds of torch; nothing here uses it.
    warnings.simplefilter("ignore")
    from monai.networks import nets

_UNETR_PATCH = 16
_SWIN_STRIDE, _SWIN_WIDTH = 32, 12
_WIDEST = 256


class MonaiUNet(PlannedNetwork, nets.UNet):
    """MONAI's U-Net of residual units (Kerfoot et al.), with the strides of the plan.

    An image that the strides do not divide is padded with zeros at the end of each axis, and the output is cropped.
    The published widths are 16, 32, 64, 128, 256; a longer plan stays at the last. Names of weights are MONAI's.

    Args:
        input_channels: Image channels.
        num_classes: Output channels.
        strides: Stride per stage of the plan, each a number or one per axis; the first is 1.
        features_per_stage: Widths, one per stage.
        spatial_dims: 2 or 3.
        num_res_units: Convolutions in a residual unit.
        dropout: Share of values dropped while training.
        deep_supervision: Must be False; there is one output.

    Shape: (batch, input_channels, *spatial) -> (batch, num_classes, *spatial)

    Raises:
        ValueError: If an argument is unknown, missing or does not fit (the message names it), or an image has other
            channels or axes, or so few voxels that a single one is left at the deepest stage, whose norm needs two.

    References: Kerfoot et al., left-ventricle quantification using residual U-Net (STACOM 2018); MONAI (Apache-2.0).
    """

    dims: ClassVar = (2, 3)
    pads_itself: ClassVar = True
    deep_supervised: ClassVar = False
    preset: ClassVar = {
        "patch_size": (128, 128, 128),
        "arguments": {
            "input_channels": 4,
            "num_classes": 3,
            "strides": [1, 2, 2, 2, 2],
            "features_per_stage": [16, 32, 64, 128, 256],
            "spatial_dims": 3,
        },
    }
    plan_arguments: ClassVar = ("strides", "features_per_stage", "spatial_dims")

    @known_arguments
    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        strides: Sequence[Sequence[int] | int],
        features_per_stage: Sequence[int],
        spatial_dims: int,
        num_res_units: int = 2,
        dropout: float = 0.0,
        deep_supervision: bool = False,
    ):
        one_output(deep_supervision)
        check_spatial_dims(spatial_dims)
        steps = [
            per_axis(f"strides[{stage}]", step, spatial_dims)
            for stage, step in enumerate(listed("strides", strides, "with one entry per stage"))
        ]
        widths = wholes("features_per_stage", features_per_stage, "stage")
        if len(steps) < 2 or len(steps) != len(widths):
            raise ValueError(
                f"strides has {len(steps)} entries and features_per_stage {len(widths)}; one each is needed for every "
                "stage, and two stages at least"
            )
        check_first_stride(steps)
        super().__init__(
            spatial_dims=spatial_dims,
            in_channels=whole("input_channels", input_channels),
            out_channels=whole("num_classes", num_classes),
            channels=widths,
            strides=steps[1:],
            num_res_units=whole("num_res_units", num_res_units, least=0),
            dropout=share("dropout", dropout),
        )
        self.input_channels, self.spatial_dims = input_channels, spatial_dims
        self.total_stride = [prod(axis) for axis in zip(*steps)]

    @classmethod
    def from_plan(cls, planned: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """Give the plan's strides, and the published widths."""
        widths = [min(16 * 2**stage, _WIDEST) for stage in range(len(planned["strides"]))]
        return {
            "strides": deepcopy(planned["strides"]),
            "features_per_stage": widths,
            "spatial_dims": len(planned["kernel_sizes"][0]),
        }

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, self.input_channels, self.spatial_dims)
        check_padded_size(x, self.total_stride)
        return crop(super().forward(pad_to_multiples(x, self.total_stride)), x.shape[2:])


class UNETR(PlannedNetwork, nets.UNETR):
    """MONAI's UNETR: a vision transformer on patches of 16 voxels along each axis, and a convolutional decoder.

    It holds a position for every such patch, so that it is built for one image size and takes no other; one that 16
    does not divide is padded with zeros at the end of each axis, and the output is cropped. Names of weights are
    MONAI's; the norms of its cross attention, which nothing uses, are frozen, since distributed training takes no
    weight without a gradient.

    Args:
        input_channels: Image channels.
        num_classes: Output channels.
        patch_size: Voxels per axis of the only images that it takes.
        feature_size: Width of the finest map.
        hidden_size: Width of the transformer, a multiple of ``num_heads``.
        mlp_dim: Width inside its feed-forward layers.
        num_heads: Of its attention.
        dropout_rate: Share of values dropped in feed-forward layers, attention and positions while training.
        deep_supervision: Must be False; there is one output.

    Shape: (batch, input_channels, *patch_size) -> (batch, num_classes, *patch_size)

    Raises:
        ValueError: If an argument is unknown, missing or does not fit (the message names it), or an image has other
            channels, axes or voxels.

    References: UNETR (arXiv 2103.10504); MONAI (Apache-2.0). The defaults are those of LoG-VMamba's comparison.
    """

    dims: ClassVar = (2, 3)
    pads_itself: ClassVar = True
    any_patch: ClassVar = False
    deep_supervised: ClassVar = False
    preset: ClassVar = {
        "patch_size": (128, 128, 128),
        "arguments": {"input_channels": 4, "num_classes": 3, "patch_size": [128, 128, 128]},
    }
    plan_arguments: ClassVar = ("patch_size",)

    @known_arguments
    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        feature_size: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        dropout_rate: float = 0.1,
        deep_supervision: bool = False,
    ):
        one_output(deep_supervision)
        sides = wholes("patch_size", patch_size, "axis")
        if len(sides) not in self.dims:
            raise ValueError(f"patch_size is {sides}; 2 or 3 sides are needed")
        if whole("hidden_size", hidden_size) % whole("num_heads", num_heads):
            raise ValueError(f"hidden_size is {hidden_size}; a multiple of num_heads, {num_heads}, is needed")
        super().__init__(
            in_channels=whole("input_channels", input_channels),
            out_channels=whole("num_classes", num_classes),
            img_size=[-(-side // _UNETR_PATCH) * _UNETR_PATCH for side in sides],
            feature_size=whole("feature_size", feature_size),
            hidden_size=hidden_size,
            mlp_dim=whole("mlp_dim", mlp_dim),
            num_heads=num_heads,
            dropout_rate=share("dropout_rate", dropout_rate),
            spatial_dims=len(sides),
        )
        self.input_channels, self.built_for = input_channels, sides
        for name, parameter in self.named_parameters():
            if "norm_cross_attn" in name:
                parameter.requires_grad_(False)

    @classmethod
    def from_plan(cls, planned: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """Give the patch alone."""
        return {"patch_size": list(patch_size)}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        positions = self.vit.patch_embedding.position_embeddings
        check_positions(state_dict, {f"{prefix}vit.patch_embedding.position_embeddings": positions}, self.built_for)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, self.input_channels, len(self.built_for))
        check_patch(x, self.built_for)
        return crop(super().forward(pad_to_multiples(x, [_UNETR_PATCH] * len(self.built_for))), self.built_for)


class SwinUNETR(PlannedNetwork, nets.SwinUNETR):
    """MONAI's Swin UNETR: an encoder of attention in shifted windows, and a convolutional decoder.

    An image that 32 does not divide is padded with zeros at the end of each axis, and the output is cropped. Names of
    weights are MONAI's.

    Args:
        input_channels: Image channels.
        num_classes: Output channels.
        spatial_dims: 2 or 3.
        feature_size: Width of the finest map, a multiple of 12.
        drop_rate: Share of values dropped among tokens and in feed-forward layers while training.
        use_v2: Whether each stage begins with a residual convolution.
        checkpointing: Recompute the stages in the backward pass instead of keeping their activations.
        deep_supervision: Must be False; there is one output.

    Shape: (batch, input_channels, *spatial) -> (batch, num_classes, *spatial)

    Raises:
        ValueError: If an argument is unknown, missing or does not fit (the message names it), or an image has other
            channels or axes, or at most 32 voxels along every axis.

    References: Swin UNETR (arXiv 2201.01266); MONAI (Apache-2.0). The defaults are those of LoG-VMamba's comparison.
    """

    dims: ClassVar = (2, 3)
    pads_itself: ClassVar = True
    deep_supervised: ClassVar = False
    preset: ClassVar = {
        "patch_size": (128, 128, 128),
        "arguments": {"input_channels": 4, "num_classes": 3, "spatial_dims": 3},
    }
    plan_arguments: ClassVar = ("spatial_dims",)

    @known_arguments
    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        spatial_dims: int,
        feature_size: int = 48,
        drop_rate: float = 0.1,
        use_v2: bool = False,
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ):
        one_output(deep_supervision)
        check_spatial_dims(spatial_dims)
        if whole("feature_size", feature_size) % _SWIN_WIDTH:
            raise ValueError(f"feature_size is {feature_size}; a multiple of {_SWIN_WIDTH} is needed")
        device = torch.get_default_device()
        with torch.device("cpu"):  # MONAI asks for the values of a tensor, of which the meta device has none
            super().__init__(
                in_channels=whole("input_channels", input_channels),
                out_channels=whole("num_classes", num_classes),
                feature_size=feature_size,
                drop_rate=share("drop_rate", drop_rate),
                use_checkpoint=flag("checkpointing", checkpointing),
                spatial_dims=spatial_dims,
                use_v2=flag("use_v2", use_v2),
            )
        self.to(device)
        self.input_channels, self.spatial_dims = input_channels, spatial_dims

    @classmethod
    def from_plan(cls, planned: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """Give the number of axes alone."""
        return {"spatial_dims": len(patch_size)}

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, self.input_channels, self.spatial_dims)
        check_padded_size(x, [_SWIN_STRIDE] * self.spatial_dims)
        return crop(super().forward(pad_to_multiples(x, [_SWIN_STRIDE] * self.spatial_dims)), x.shape[2:])

    def _check_input_size(self, spatial_shape: Sequence[int]) -> None:
        """Nothing is left to check behind the padding, and torch.compile cannot trace MONAI's check."""
