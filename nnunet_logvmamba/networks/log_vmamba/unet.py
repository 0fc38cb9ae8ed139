"""LoGVMambaUNet: the U-Mamba-Enc lineage with LoG-VMamba blocks, for any nnU-Net plan."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn

from nnunet_logvmamba.layers import CONVOLUTIONS, check_spatial_dims, flag, listed, per_axis, whole, wholes
from nnunet_logvmamba.networks.blocks.arguments import check_nonlinearity, check_norm, known_arguments
from nnunet_logvmamba.networks.blocks.heads import every_scale_has_a_head
from nnunet_logvmamba.networks.blocks.images import check_image, check_size
from nnunet_logvmamba.networks.blocks.innermost import innermost, quick_training, trains_quickly
from nnunet_logvmamba.networks.blocks.norms import INSTANCE_NORMS
from nnunet_logvmamba.networks.blocks.residual import ResidualBlock
from nnunet_logvmamba.networks.contract import PlannedNetwork
from nnunet_logvmamba.networks.costs import Stage, heads, names_in
from nnunet_logvmamba.networks.log_vmamba.decoder import Decoder
from nnunet_logvmamba.networks.log_vmamba.encoder import Encoder
from nnunet_logvmamba.networks.log_vmamba.policy import StageSettings, check_first_stride, stage_settings, unet_tokens
from nnunet_logvmamba.networks.log_vmamba.presets import PAPER_3D, channel_arguments

_AROUND_BLOCKS = (Encoder, Decoder, nn.Sequential, nn.ModuleList)


class LoGVMambaUNet(PlannedNetwork):
    """U-Net with token-mixing blocks in its encoder.

    Plan stage 0 is a full-resolution stem. Plan stage i + 1 is mixing stage i: residual blocks and one block of the
    LoG-VMamba family; it takes the plan's i-th width, so a BraTS plan (32, 64, 128, 256, 320, 320) gives
    32 | 32, 64, 128, 256, 320. Every argument can be written in JSON, and the vocabulary is that of nnU-Net's plans;
    ``from_preset`` and ``from_channels`` take plain words. The preset ``paper3d`` has 4 channels, 3 classes and six
    stages, for patches of 128 x 128 x 128.

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
        kernel_sizes: Odd kernel per stage, each a number or one per axis; a single number is for all.
        strides: Stride per stage, each a number or one per axis; the first is 1.
        num_classes: Output channels.
        conv_bias: Whether convolutions ahead of a norm have a bias.
        norm_op: Norm layer class; None means instance norm.
        norm_op_kwargs: Its arguments; None means epsilon 1e-5, affine.
        dropout_op: Must be None; kept because plans name it.
        dropout_op_kwargs: Not used.
        nonlin: Nonlinearity class, any but RReLU; None means leaky ReLU.
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
        checkpointing: Recompute every stage in the backward pass instead of keeping its activations.
        backend: Scan backend.

    Shape: (batch, input_channels, *spatial) -> (batch, num_classes, *spatial), or a list of all scales. The strides
        need not divide ``spatial``: where they do not, a coarse map is stretched or squeezed by less than one of its
        voxels on the way up

    Raises:
        ValueError: If an argument is unknown, missing or does not fit (the message names it), or an image has other
            channels or axes, or so few voxels that instance norm has a single one of them at the deepest stage.

    References: LoG-VMamba (arXiv 2408.14415); U-Mamba (arXiv 2401.04722).
    """

    preset: ClassVar = PAPER_3D

    @classmethod
    def from_plan(cls, planned: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """Give the arguments that follow from a U-Net that nnU-Net planned; knobs come on top.

        Raises:
            ValueError: If it has no norms or no nonlinearities.
        """
        for name in ("norm_op", "nonlin"):
            if planned.get(name, name) is None:
                raise ValueError(f"{name} is null in the plan; {cls.__name__} needs one, so name its class there")
        found = super().from_plan(planned, patch_size)
        if found.get("norm_op_kwargs", found) is None:  # nnU-Net then takes what the norm has by itself
            found["norm_op_kwargs"] = {}
        return found

    @known_arguments
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
            raise ValueError(f"conv_op is {conv_op!r}; the class torch.nn.Conv2d or torch.nn.Conv3d is needed")
        if dropout_op is not None:
            raise ValueError(f"dropout_op is {dropout_op}; LoGVMambaUNet has no dropout layers, set it to null")
        deep_supervision = flag("deep_supervision", deep_supervision)
        all_heads = every_scale_has_a_head(seg_heads, deep_supervision)
        spatial_dims = convert_conv_op_to_dim(conv_op)
        self.input_channels, self.spatial_dims = whole("input_channels", input_channels), spatial_dims
        n_stages, num_classes = whole("n_stages", n_stages, least=2), whole("num_classes", num_classes)
        features = [features_per_stage] * n_stages if isinstance(features_per_stage, Integral) else features_per_stage
        sizes: Any = [kernel_sizes] * n_stages if isinstance(kernel_sizes, Integral) else kernel_sizes
        for name, values in (("features_per_stage", features), ("kernel_sizes", sizes), ("strides", strides)):
            if len(listed(name, values, "with one entry per stage")) != n_stages:
                raise ValueError(f"{name} has {len(values)} entries for {n_stages} stages; one each is needed")
        features = wholes("features_per_stage", features, "stage")
        kernels = [per_axis(f"kernel_sizes[{stage}]", size, spatial_dims, odd=True) for stage, size in enumerate(sizes)]
        strides = [per_axis(f"strides[{stage}]", step, spatial_dims) for stage, step in enumerate(strides)]
        check_first_stride(strides)
        self.strides = strides
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
        residual_options: dict[str, Any] = {
            "conv_bias": flag("conv_bias", conv_bias),
            "norm_op": INSTANCE_NORMS[spatial_dims] if norm_op is None else norm_op,
            "norm_op_kwargs": {"eps": 1e-5, "affine": True} if norm_op_kwargs is None else norm_op_kwargs,
            "nonlin": nn.LeakyReLU if nonlin is None else nonlin,
            "nonlin_kwargs": ({"inplace": True} if nonlin is None else {}) if nonlin_kwargs is None else nonlin_kwargs,
        }
        check_norm(residual_options["norm_op"], residual_options["norm_op_kwargs"], features, spatial_dims)
        check_nonlinearity(residual_options["nonlin"], residual_options["nonlin_kwargs"])
        self.encoder = Encoder(
            self.input_channels,
            features[0],
            widths,
            conv_op,
            kernels,
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
            checkpointing=flag("checkpointing", checkpointing),
            **residual_options,
        )
        self.decoder = Decoder(
            features[0],
            widths,
            num_classes,
            conv_op,
            kernels,
            deep_supervision=deep_supervision,
            all_heads=all_heads,
            checkpointing=self.encoder.checkpointing,
            **residual_options,
        )
        self.apply(InitWeights_He(1e-2))

    @classmethod
    @known_arguments
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
            strides: Stride ahead of each stage, one for all or one per stage, each a number or one per axis: a list is
                read stage by stage, so ``[(1, 2, 2)] * 3`` keeps the first axis in all of three stages.
            kernel_size: Side of the convolutions, odd, a number or one per axis.
            options: Further arguments of the class, such as ``family`` or ``deep_supervision``.

        Raises:
            ValueError: If an argument is unknown or does not fit; the message names it.
        """
        check_spatial_dims(spatial_dims)
        arguments = channel_arguments(cls, spatial_dims, in_channels, out_channels, channels, strides, options)
        kernel = per_axis("kernel_size", kernel_size, spatial_dims, odd=True)
        widths = arguments.pop("features_per_stage")
        return cls(
            **arguments,
            features_per_stage=[*widths, widths[-1]],
            conv_op=CONVOLUTIONS[spatial_dims],
            kernel_sizes=[kernel] * (len(widths) + 1),
        )

    def costs_by_stage(self) -> list[Stage]:
        """Stem, mixing stages with their blocks, steps of the decoder, heads."""
        stages = [Stage("stem", ("encoder.stem",))]
        for index, setting in enumerate(self.settings):
            mixer = f"encoder.mixers.{index}" if setting.mixes else None
            stages.append(Stage(f"mixing {index}", (f"encoder.stages.{index}",), mixer, setting.label))
        for step, name in enumerate(names_in("decoder.stages", self.decoder.stages)):
            stages.append(Stage(f"decoder {step}", (f"decoder.upsamplers.{step}", name)))
        return [*stages, heads(self)]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_image(x, self.input_channels, self.spatial_dims)
        check_size(x, self.strides, self.encoder.stages[-1][0].norm1)
        if not (trains_quickly(x) and self._is_known()):
            return self.decoder(self.encoder(x))
        with quick_training():
            return self.decoder(self.encoder(innermost(x)))

    def _is_known(self) -> bool:
        """Whether all layers may be trained in ``quick_training``."""
        if not self.training:
            return False
        modules = dict(self.named_modules())
        blocks = {name: module for name, module in modules.items() if isinstance(module, ResidualBlock)}
        parts = (name.split(".") for name in blocks)
        around = {".".join(names[:count]) for names in parts for count in range(1, len(names))}
        # What others put around a block may call it again, outside of this.
        if not all(type(modules[name]) in _AROUND_BLOCKS and "forward" not in vars(modules[name]) for name in around):
            return False
        return self.decoder.is_known() and all(block.is_known() for block in blocks.values())
