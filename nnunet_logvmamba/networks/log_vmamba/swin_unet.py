"""LoGVMambaSwinUNet: the Swin-UMamba lineage with LoG-VMamba blocks in its decoder, in 2D, for any patch size."""

from collections.abc import Sequence
from copy import deepcopy
from math import prod
from typing import Any, ClassVar

from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor

from nnunet_logvmamba.layers import check_family, flag, listed, per_axis, whole, wholes
from nnunet_logvmamba.networks.blocks.arguments import known_arguments
from nnunet_logvmamba.networks.blocks.heads import every_scale_has_a_head
from nnunet_logvmamba.networks.blocks.images import check_image
from nnunet_logvmamba.networks.blocks.padding import crop, pad_to_multiples, sizes_of_scales
from nnunet_logvmamba.networks.blocks.vmamba_encoder import VMambaEncoder
from nnunet_logvmamba.networks.contract import PlannedNetwork
from nnunet_logvmamba.networks.costs import Stage, heads
from nnunet_logvmamba.networks.log_vmamba.expanding_decoder import ExpandingDecoder
from nnunet_logvmamba.networks.log_vmamba.policy import (
    StageSettings,
    check_first_stride,
    stage_settings,
    swin_decoder_tokens,
)
from nnunet_logvmamba.networks.log_vmamba.presets import PAPER_2D, channel_arguments


class LoGVMambaSwinUNet(PlannedNetwork):
    """VMamba encoder and a decoder of token-mixing blocks, without convolutions between them.

    Plan stage 0 is full resolution and holds only the end of the decoder. Plan stage i + 1 is mixing stage i: blocks of
    the encoder and, in all but the deepest, of the decoder. So the published network has the widths 96 | 96, 192, 384,
    768 and the strides 1 | 4, 2, 2, 2. An image that the strides do not divide is padded with zeros at the end of each
    axis, and the outputs are cropped. Every argument can be written in JSON; ``from_preset`` and ``from_channels`` take
    plain words. The preset ``paper2d`` has 3 channels, 1 class and deep supervision, for patches of 512 x 512.

    Args:
        input_channels: Image channels.
        n_stages: Stages of the plan, at least 3.
        features_per_stage: Widths of the plan, one per stage; the first is that of the full-resolution map.
        strides: Stride per stage, each a number or one per axis; the first is 1, the second the side of a patch.
        num_classes: Output channels.
        n_blocks_per_stage: Blocks of the encoder, one number per mixing stage.
        n_blocks_per_stage_decoder: Blocks of every stage of the decoder.
        deep_supervision: Return all scales, finest first.
        family: Blocks of the decoder: ``log``, ``l``, ``g``, ``vss`` (which makes it Swin-UMamba†) or ``no_ssm``.
            The encoder is the same for all of them, so ``no_ssm`` still scans there.
        placement: ``head``, ``middle``, ``split`` or ``interleaved``.
        directions: Scanning directions of the decoder's blocks, 1, 2 or 4; None means 4 for ``vss`` and 1 otherwise, as
            published.
        window: Side R of the unfolded neighbourhood.
        squeeze: Channels S per unfolded channel; None means 8.
        state_size: States per channel of the decoder's blocks.
        expand: Inner width of the decoder's blocks over their channels.
        local_token_stages, global_token_stages, global_strides, channels_per_token, canonical_grids: About the decoder,
            by mixing stage, finest first and without the deepest. See ``policy.stage_settings``; what is usual stands
            in ``policy.swin_decoder_tokens``.
        seg_heads: ``all`` builds a head per scale whether deep supervision is on or not, so that a checkpoint always
            fits; ``last`` builds only the finest.
        drop_path: Largest probability to drop a block's branch while training: it rises from 0 to this in the encoder
            and falls back to 0 in the decoder.
        checkpointing: Recompute the blocks in the backward pass instead of keeping their activations.
        backend: Scan backend.

    Shape: (batch, input_channels, *spatial) -> (batch, num_classes, *spatial), or a list of all scales, whose sizes are
        ``spatial`` over the cumulative stride, rounded as nnU-Net rounds its targets

    Raises:
        ValueError: If an argument is unknown, missing or does not fit (the message names it), or an image has other
            channels or axes.

    References: LoG-VMamba (arXiv 2408.14415); Swin-UMamba (arXiv 2402.03302); VMamba (arXiv 2401.10166).
    """

    dims: ClassVar = (2,)
    pads_itself: ClassVar = True
    smallest_input: ClassVar = 9  # below, nnU-Net's targets at 1/16 have no pixel
    pretrainable: ClassVar = True
    preset: ClassVar = PAPER_2D
    plan_arguments: ClassVar = ("n_stages", "strides")

    @known_arguments
    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        strides: Sequence[Sequence[int]] | Sequence[int],
        num_classes: int,
        n_blocks_per_stage: Sequence[int] = (2, 2, 9, 2),
        n_blocks_per_stage_decoder: int = 2,
        deep_supervision: bool = False,
        family: str = "log",
        placement: str = "interleaved",
        directions: int | None = None,
        window: int = 3,
        squeeze: int | None = None,
        state_size: int = 16,
        expand: int = 2,
        local_token_stages: Sequence[int] | None = None,
        global_token_stages: Sequence[int] | None = None,
        global_strides: Sequence[Sequence[int] | int] | None = None,
        channels_per_token: Sequence[int] | None = None,
        canonical_grids: Sequence[Sequence[int]] | None = None,
        seg_heads: str = "all",
        drop_path: float = 0.2,
        checkpointing: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        check_family(family)
        deep_supervision = flag("deep_supervision", deep_supervision)
        all_heads = every_scale_has_a_head(seg_heads, deep_supervision)
        input_channels, num_classes = whole("input_channels", input_channels), whole("num_classes", num_classes)
        if whole("n_stages", n_stages) < 3:
            raise ValueError(f"n_stages is {n_stages}; at least 3 are needed: full resolution and two mixing stages")
        for name, values, length, what in (
            ("features_per_stage", features_per_stage, n_stages, "stage"),
            ("strides", strides, n_stages, "stage"),
            ("n_blocks_per_stage", n_blocks_per_stage, n_stages - 1, "mixing stage"),
        ):
            if len(listed(name, values, f"with one entry per {what}")) != length:
                raise ValueError(f"{name} has {len(values)} entries; one per {what}, {length}, is needed")
        features_per_stage = wholes("features_per_stage", features_per_stage, "stage")
        n_blocks_per_stage = wholes("n_blocks_per_stage", n_blocks_per_stage, "mixing stage")
        n_blocks_per_stage_decoder = whole("n_blocks_per_stage_decoder", n_blocks_per_stage_decoder)
        if any(hasattr(step, "__len__") and len(step) != 2 for step in strides):
            raise ValueError(f"strides are {strides}; LoGVMambaSwinUNet is 2D and needs one for each of two axes")
        strides = [per_axis(f"strides[{stage}]", step, 2) for stage, step in enumerate(strides)]
        check_first_stride(strides)
        if directions is None:
            directions = 4 if family == "vss" else 1
        full_width, *widths = features_per_stage
        self.input_channels, self.strides = input_channels, strides
        self.settings: list[StageSettings] = stage_settings(
            widths[:-1],
            swin_decoder_tokens(strides),
            family=family,
            expand=expand,
            window=window,
            squeeze=squeeze,
            local_token_stages=local_token_stages,
            global_token_stages=global_token_stages,
            global_strides=global_strides,
            channels_per_token=channels_per_token,
            canonical_grids=canonical_grids,
        )
        common: dict[str, Any] = {"drop_path": drop_path, "checkpointing": flag("checkpointing", checkpointing)}
        self.encoder = VMambaEncoder(input_channels, widths, strides[1:], n_blocks_per_stage, backend=backend, **common)
        self.decoder = ExpandingDecoder(
            full_width,
            widths,
            strides[1:],
            self.settings,
            n_blocks_per_stage_decoder,
            num_classes,
            deep_supervision=deep_supervision,
            all_heads=all_heads,
            mixer_options={
                "placement": placement,
                "directions": directions,
                "window": window,
                "squeeze": squeeze,
                "state_size": state_size,
                "expand": expand,
                "backend": backend,
            },
            **common,
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
        strides: Sequence[Sequence[int] | int] | int | None = None,
        **options: Any,
    ) -> "LoGVMambaSwinUNet":
        """Build a network in plain words, without a plan.

        Example:
            >>> network = LoGVMambaSwinUNet.from_channels(
            ...     spatial_dims=2, in_channels=3, out_channels=2, channels=(48, 96, 192)
            ... )

        Args:
            spatial_dims: 2, which is all that there is.
            in_channels: Image channels.
            out_channels: Output channels.
            channels: Widths of the stages, finest first, at least two. The end of the decoder, at full resolution, has
                the first width too.
            strides: Stride ahead of each stage, one for all or one per stage, each a number or one per axis. None means
                4, the side of a patch, then 2.
            options: Further arguments of the class, such as ``family`` or ``deep_supervision``. Without
                ``n_blocks_per_stage`` the encoder has the published (2, 2, 9, 2) blocks in four stages, else 2 in each.

        Raises:
            ValueError: If an argument is unknown or does not fit; the message names it.
        """
        if spatial_dims != 2:
            raise ValueError(f"spatial_dims is {spatial_dims!r}; LoGVMambaSwinUNet is 2D: LoGVMambaUNet is there for 3")
        stages = len(wholes("channels", channels, "stage"))
        if stages == 1:
            raise ValueError(f"channels is {channels}; LoGVMambaSwinUNet needs at least two stages")
        steps = (4, *[2] * (stages - 1)) if strides is None else strides
        arguments = channel_arguments(cls, spatial_dims, in_channels, out_channels, channels, steps, options)
        widths = arguments.pop("features_per_stage")
        if stages != 4:  # else the default is that of the published network
            arguments.setdefault("n_blocks_per_stage", (2,) * stages)
        return cls(**arguments, features_per_stage=[widths[0], *widths])

    @classmethod
    def from_plan(cls, planned: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """Give the published stages, whatever was planned."""
        stages = ("n_stages", "features_per_stage", "strides", "n_blocks_per_stage")
        return {name: deepcopy(cls.preset["arguments"][name]) for name in stages}

    def costs_by_stage(self) -> list[Stage]:
        """Patches, stages of the encoder with the merging ahead, steps of the decoder, heads."""
        stages = [Stage("patches", ("encoder.patch_embed",))]
        for index in range(len(self.encoder.stages)):
            ahead = [f"encoder.mergers.{index - 1}"] if index else []
            stages.append(Stage(f"encoder {index}", ahead, f"encoder.stages.{index}", "VSS"))
        last = len(self.decoder.stages)
        for step, setting in enumerate(reversed(self.settings)):
            ahead = [f"decoder.expansions.{step}", f"decoder.fusions.{step}"]
            stages.append(Stage(f"decoder {step}", ahead, f"decoder.stages.{step}", setting.label))
        return [*stages, Stage(f"decoder {last}", (f"decoder.expansions.{last}",)), heads(self)]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_image(x, self.input_channels, 2)
        spatial = x.shape[2:]
        padded = pad_to_multiples(x, [prod(axis) for axis in zip(*self.strides)])
        outputs = self.decoder(self.encoder(padded))
        if isinstance(outputs, Tensor):
            return crop(outputs, spatial)
        return [crop(output, size) for output, size in zip(outputs, sizes_of_scales(spatial, self.strides))]
