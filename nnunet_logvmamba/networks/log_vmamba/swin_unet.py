"""LoGVMambaSwinUNet: the Swin-UMamba lineage with LoG-VMamba blocks in its decoder, in 2D, for any patch size."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch.nn.functional as F
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn

from nnunet_logvmamba.layers import check_family
from nnunet_logvmamba.networks.blocks.heads import every_scale_has_a_head
from nnunet_logvmamba.networks.blocks.images import check_image
from nnunet_logvmamba.networks.blocks.vmamba_encoder import VMambaEncoder
from nnunet_logvmamba.networks.log_vmamba.expanding_decoder import ExpandingDecoder
from nnunet_logvmamba.networks.log_vmamba.policy import StageSettings, per_axis, stage_settings, swin_decoder_tokens
from nnunet_logvmamba.networks.log_vmamba.presets import preset_arguments


class LoGVMambaSwinUNet(nn.Module):
    """VMamba encoder and a decoder of token-mixing blocks, without convolutions between them.

    Plan stage 0 is full resolution and holds only the end of the decoder. Plan stage i + 1 is mixing stage i: blocks of
    the encoder and, in all but the deepest, of the decoder. So the published network has the widths 96 | 96, 192, 384,
    768 and the strides 1 | 4, 2, 2, 2. An image that the strides do not divide is padded with zeros at the end of each
    axis, and the outputs are cropped. Every argument can be written in JSON.

    Args:
        input_channels: Image channels.
        n_stages: Stages of the plan, at least 3.
        features_per_stage: Widths of the plan, one per stage; the first is that of the full-resolution map.
        strides: Stride per stage and axis; the first is 1, the second the side of a patch.
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
        ValueError: If an argument is unknown or does not fit; the message names it.

    References: LoG-VMamba (arXiv 2408.14415); Swin-UMamba (arXiv 2402.03302); VMamba (arXiv 2401.10166).
    """

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
        all_heads = every_scale_has_a_head(seg_heads, deep_supervision)
        if n_stages < 3:
            raise ValueError(f"n_stages is {n_stages}; at least 3 are needed: full resolution and two mixing stages")
        for name, values, length, what in (
            ("features_per_stage", features_per_stage, n_stages, "one per stage"),
            ("strides", strides, n_stages, "one per stage"),
            ("n_blocks_per_stage", n_blocks_per_stage, n_stages - 1, "one per mixing stage"),
        ):
            if len(values) != length:
                raise ValueError(f"{name} has {len(values)} entries; {what}, {length}, is needed")
        if min(features_per_stage) < 1:
            raise ValueError(f"features_per_stage is {list(features_per_stage)}; at least 1 each is needed")
        if min(n_blocks_per_stage) < 1:
            raise ValueError(f"n_blocks_per_stage is {list(n_blocks_per_stage)}; at least 1 each is needed")
        if n_blocks_per_stage_decoder < 1:
            raise ValueError(f"n_blocks_per_stage_decoder is {n_blocks_per_stage_decoder}; at least 1 is needed")
        strides = [per_axis(step, 2) for step in strides]
        if any(len(step) != 2 for step in strides):
            raise ValueError(f"strides are {strides}; LoGVMambaSwinUNet is 2D and needs one for each of two axes")
        if strides[0] != (1, 1):
            raise ValueError(f"the first stride is {strides[0]}; it must be 1, since plan stage 0 is full resolution")
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
        common = {"drop_path": drop_path, "checkpointing": checkpointing}
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
    def from_preset(cls, preset: str, **overrides: Any) -> "LoGVMambaSwinUNet":
        """Build a published size, with other channels or any other argument.

        Example:
            >>> network = LoGVMambaSwinUNet.from_preset("paper2d", in_channels=1, deep_supervision=False)

        Args:
            preset: ``paper2d``: 3 channels, 1 class, deep supervision, for patches of 512 x 512.
            overrides: Arguments of the class, which win; ``in_channels`` is another word for ``input_channels``,
                ``out_channels`` for ``num_classes``.

        Raises:
            ValueError: If there is no such preset, it is that of another class, or an argument does not fit.
        """
        return cls(**preset_arguments(cls.__name__, preset, overrides))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_image(x, self.input_channels, 2)
        spatial = x.shape[2:]
        padding = [-size % prod(axis) for size, axis in zip(spatial, zip(*self.strides))]
        if any(padding):
            x = F.pad(x, [pad for end in reversed(padding) for pad in (0, end)])
        outputs = self.decoder(self.encoder(x))
        if not any(padding):
            return outputs
        if isinstance(outputs, Tensor):
            return _crop(outputs, spatial)
        scales = ([prod(axis[: stage + 1]) for axis in zip(*self.strides)] for stage in range(len(outputs)))
        return [
            # Also below half a cell one is left, and 1 / total is multiplied as nnU-Net does, lest rounding differ.
            _crop(output, [max(1, round(size * (1 / total))) for size, total in zip(spatial, totals)])
            for output, totals in zip(outputs, scales)
        ]


def _crop(x: Tensor, size: Sequence[int]) -> Tensor:
    height, width = size
    return x[..., :height, :width]
