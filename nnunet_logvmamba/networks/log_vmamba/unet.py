"""LoGVMambaUNet: the U-Mamba-Enc lineage with LoG-VMamba blocks, for any nnU-Net plan."""

from collections.abc import Sequence
from typing import Any

from dynamic_network_architectures.building_blocks.helper import (
    convert_conv_op_to_dim,
    maybe_convert_scalar_to_list,
)
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn

from nnunet_logvmamba.layers import CONVOLUTIONS
from nnunet_logvmamba.networks.blocks.heads import every_scale_has_a_head
from nnunet_logvmamba.networks.blocks.images import check_image
from nnunet_logvmamba.networks.log_vmamba.decoder import Decoder
from nnunet_logvmamba.networks.log_vmamba.encoder import Encoder
from nnunet_logvmamba.networks.log_vmamba.policy import StageSettings, stage_settings, unet_tokens
from nnunet_logvmamba.networks.log_vmamba.presets import in_our_words, preset_arguments

_INSTANCE_NORMS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class LoGVMambaUNet(nn.Module):
    """U-Net with token-mixing blocks in its encoder.

    Plan stage 0 is a full-resolution stem. Plan stage i + 1 is mixing stage i: residual blocks and one block of the
    LoG-VMamba family; it takes the plan's i-th width, so a BraTS plan (32, 64, 128, 256, 320, 320) gives
    32 | 32, 64, 128, 256, 320. Every argument can be written in JSON, and the vocabulary is that of nnU-Net's plans;
    ``from_preset`` and ``from_channels`` take plain words.

    Example:
        >>> network = LoGVMambaUNet(
        ...     input_channels=1,
        ...     n_stages=3,
        ...     features_per_stage=[32, 64, 64],
        ...     conv_op=nn.Conv2d,
        ...     kernel_sizes=[[3, 3]] * 3,
        ...     strides=[[1, 1], [2, 2], [2, 2]],
        ...     num_classes=2,
        ... )

    Args:
        input_channels: Image channels.
        n_stages: Stages of the plan, at least 2.
        features_per_stage: Widths of the plan, one per stage; the last is not used.
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
        kernel_sizes: Kernel per stage and axis.
        strides: Stride per stage and axis; the first is normally 1.
        num_classes: Output channels.
        conv_bias: Whether convolutions ahead of a norm have a bias.
        norm_op: Norm layer class; None means instance norm.
        norm_op_kwargs: Its arguments; None means epsilon 1e-5, affine.
        dropout_op: Must be None; kept because plans name it.
        dropout_op_kwargs: Not used.
        nonlin: Nonlinearity class; None means leaky ReLU.
        nonlin_kwargs: Its arguments.
        deep_supervision: Return all scales, finest first.
        family: ``log``, ``l``, ``g``, ``vss`` or ``no_ssm``.
        placement: ``head``, ``middle``, ``split`` or ``interleaved``.
        directions: Scanning directions: 1, 2 or 4.
        window: Side R of the unfolded neighbourhood.
        squeeze: Channels S per unfolded channel; None means 16 in 3D, 8 in 2D.
        state_size: States per channel.
        expand: Inner width of a block over its channels.
        mixer_stages: Mixing stages with a block; None means all.
        local_token_stages, global_token_stages, global_strides, channels_per_token, canonical_grids: See
            ``policy.stage_settings``; what is usual stands in ``policy.unet_tokens``.
        seg_heads: ``all`` builds a head per scale whether deep supervision is on or not, so that a checkpoint always
            fits; ``last`` builds only the finest.
        drop_path: Probability to drop a block's branch while training.
        checkpointing: Recompute the mixing stages in the backward pass instead of keeping their activations.
        backend: Scan backend.

    Shape: (batch, input_channels, *spatial) -> (batch, num_classes, *spatial), or a list of all scales

    Raises:
        ValueError: If an argument is unknown or does not fit; the message names it.

    References: LoG-VMamba (arXiv 2408.14415); U-Mamba (arXiv 2401.04722).
    """

    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: Sequence[Sequence[int]] | int,
        strides: Sequence[Sequence[int]] | Sequence[int],
        num_classes: int,
        conv_bias: bool = True,
        norm_op: type[nn.Module] | None = None,
        norm_op_kwargs: dict[str, Any] | None = None,
        dropout_op: type[nn.Module] | None = None,
        dropout_op_kwargs: dict[str, Any] | None = None,
        nonlin: type[nn.Module] | None = None,
        nonlin_kwargs: dict[str, Any] | None = None,
        deep_supervision: bool = False,
        family: str = "log",
        placement: str = "interleaved",
        directions: int = 1,
        window: int = 3,
        squeeze: int | None = None,
        state_size: int = 16,
        expand: int = 1,
        mixer_stages: Sequence[int] | None = None,
        local_token_stages: Sequence[int] | None = None,
        global_token_stages: Sequence[int] | None = None,
        global_strides: Sequence[Sequence[int] | int] | None = None,
        channels_per_token: Sequence[int] | None = None,
        canonical_grids: Sequence[Sequence[int]] | None = None,
        seg_heads: str = "all",
        drop_path: float = 0.1,
        checkpointing: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        if conv_op not in CONVOLUTIONS.values():
            raise ValueError(f"conv_op is {conv_op}; torch.nn.Conv2d or torch.nn.Conv3d is needed")
        if dropout_op is not None:
            raise ValueError(f"dropout_op is {dropout_op}; LoGVMambaUNet has no dropout layers, set it to null")
        all_heads = every_scale_has_a_head(seg_heads, deep_supervision)
        spatial_dims = convert_conv_op_to_dim(conv_op)
        self.input_channels, self.spatial_dims = input_channels, spatial_dims
        features = [features_per_stage] * n_stages if isinstance(features_per_stage, int) else list(features_per_stage)
        kernel_sizes = [kernel_sizes] * n_stages if isinstance(kernel_sizes, int) else list(kernel_sizes)
        for name, values in (("features_per_stage", features), ("kernel_sizes", kernel_sizes), ("strides", strides)):
            if n_stages < 2 or len(values) != n_stages:
                raise ValueError(
                    f"{name} has {len(values)} entries for {n_stages} stages; one each and at least 2 are needed"
                )
        kernel_sizes = [maybe_convert_scalar_to_list(conv_op, size) for size in kernel_sizes]
        strides = [maybe_convert_scalar_to_list(conv_op, step) for step in strides]
        widths = features[: n_stages - 1]
        self.settings: list[StageSettings] = stage_settings(
            widths,
            unet_tokens(strides),
            family=family,
            expand=expand,
            window=window,
            squeeze=squeeze,
            mixer_stages=mixer_stages,
            local_token_stages=local_token_stages,
            global_token_stages=global_token_stages,
            global_strides=global_strides,
            channels_per_token=channels_per_token,
            canonical_grids=canonical_grids,
        )
        residual_options = {
            "conv_bias": conv_bias,
            "norm_op": _INSTANCE_NORMS[spatial_dims] if norm_op is None else norm_op,
            "norm_op_kwargs": {"eps": 1e-5, "affine": True} if norm_op_kwargs is None else norm_op_kwargs,
            "nonlin": nn.LeakyReLU if nonlin is None else nonlin,
            "nonlin_kwargs": nonlin_kwargs or {},
        }
        self.encoder = Encoder(
            input_channels,
            features[0],
            widths,
            conv_op,
            kernel_sizes,
            strides,
            self.settings,
            mixer_options={
                "expand": expand,
                "window": window,
                "squeeze": squeeze,
                "state_size": state_size,
                "placement": placement,
                "directions": directions,
                "drop_path": drop_path,
                "backend": backend,
            },
            checkpointing=checkpointing,
            **residual_options,
        )
        self.decoder = Decoder(
            features[0],
            widths,
            num_classes,
            conv_op,
            kernel_sizes,
            deep_supervision=deep_supervision,
            all_heads=all_heads,
            **residual_options,
        )
        self.apply(InitWeights_He(1e-2))

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> "LoGVMambaUNet":
        """Build a published size, with other channels or any other argument.

        Example:
            >>> network = LoGVMambaUNet.from_preset("paper3d", in_channels=1, out_channels=2)

        Args:
            preset: ``paper3d``: 4 channels, 3 classes, six stages, for patches of 128 x 128 x 128.
            overrides: Arguments of the class, which win; ``in_channels`` is another word for ``input_channels``,
                ``out_channels`` for ``num_classes``.

        Raises:
            ValueError: If there is no such preset, it is that of another class, or an argument does not fit.
        """
        return cls(**preset_arguments(cls.__name__, preset, overrides))

    @classmethod
    def from_channels(
        cls,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int] | int] | int = 2,
        kernel_size: Sequence[int] | int = 3,
        **options: Any,
    ) -> "LoGVMambaUNet":
        """Build a network in plain words, without a plan.

        Example:
            >>> network = LoGVMambaUNet.from_channels(
            ...     spatial_dims=2, in_channels=3, out_channels=2, channels=(32, 64, 128)
            ... )

        Args:
            spatial_dims: 2 or 3.
            in_channels: Image channels.
            out_channels: Output channels.
            channels: Widths of the stages, finest first. The stem at full resolution has the first width too.
            strides: Stride ahead of each stage, one for all or one per stage, each a number or one per axis. Image
                sizes must be divisible by their product.
            kernel_size: Side of the convolutions, a number or one per axis.
            options: Further arguments of the class, such as ``family`` or ``deep_supervision``.

        Raises:
            ValueError: If an argument does not fit.
        """
        if spatial_dims not in CONVOLUTIONS:
            raise ValueError(f"spatial_dims is {spatial_dims!r}; LoG-VMamba is defined for 2 and 3")
        if not channels:
            raise ValueError("channels is empty; one width per stage is needed, such as (32, 64, 128)")
        strides = [strides] * len(channels) if isinstance(strides, int) else list(strides)
        if len(strides) != len(channels):
            raise ValueError(f"strides has {len(strides)} entries for {len(channels)} channels; one each is needed")
        return cls(
            **in_our_words({"in_channels": in_channels, "out_channels": out_channels, **options}),
            n_stages=len(channels) + 1,
            features_per_stage=[*channels, channels[-1]],
            conv_op=CONVOLUTIONS[spatial_dims],
            kernel_sizes=[kernel_size] * (len(channels) + 1),
            strides=[1, *strides],
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_image(x, self.input_channels, self.spatial_dims)
        return self.decoder(self.encoder(x))
