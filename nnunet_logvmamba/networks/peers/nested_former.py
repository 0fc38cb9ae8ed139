"""NestedFormer: an encoder per modality, whose deepest maps are fused by nested attention, in 3D."""

from collections import OrderedDict
from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_logvmamba.layers import listed, per_axis, share, whole, wholes
from nnunet_logvmamba.networks.blocks.arguments import known_arguments
from nnunet_logvmamba.networks.blocks.heads import one_output
from nnunet_logvmamba.networks.blocks.images import check_image, check_patch, check_positions, times
from nnunet_logvmamba.networks.blocks.padding import crop, pad_to_multiples
from nnunet_logvmamba.networks.contract import PlannedNetwork

_HEADS = 8
_POOLS = 4
_EPS = 1e-6


class NestedFormer(PlannedNetwork):
    """One convolutional encoder for each image channel, fusion by attention at the bottom, one decoder.

    Its pooling blocks and its fusion hold weights per voxel, so it is built for one patch size and takes no other;
    a patch that the pools do not divide is padded with zeros at the end of each axis, and the output is cropped. Time
    and memory grow with the number of image channels; it was published for four of them.

    Args:
        input_channels: Image channels, each of which is a modality with an encoder of its own.
        num_classes: Output channels.
        patch_size: Voxels per axis of the only images that it takes.
        pools: Stride ahead of each of the four lower stages, each a number or one per axis.
        features: Widths of the five stages, finest first, and of the last map ahead of the head. The deepest is a
            multiple of 8, and all but the first and the last are even.
        window: Most voxels per axis of a window of attention; the largest up to it that divides the map is taken.
        num_tokens: Tokens that each modality is told to the others by.
        num_blocks: Blocks of the spatial part of the fusion.
        dropout: Share of values dropped while training.
        deep_supervision: Must be False; there is one output.

    Shape: (batch, input_channels, *patch_size) -> (batch, num_classes, *patch_size)

    Raises:
        ValueError: If an argument is unknown, missing or does not fit (the message names it), or an image has other
            channels, axes or voxels.

    References: NestedFormer (arXiv 2208.14876), whose code is Apache-2.0. As there, one table of relative positions
        serves all heads and biases ahead of a norm have no effect; its norm that nothing uses is kept and frozen, so
        that weights fit. Other than there, windows follow the map and pools the plan.
    """

    dims: ClassVar = (3,)
    pads_itself: ClassVar = True
    any_patch: ClassVar = False
    deep_supervised: ClassVar = False
    preset: ClassVar = {
        "patch_size": (128, 128, 128),
        "arguments": {"input_channels": 4, "num_classes": 3, "patch_size": [128, 128, 128]},
    }
    plan_arguments: ClassVar = ("patch_size", "pools")

    @known_arguments
    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        pools: Sequence[Sequence[int] | int] = (2, 2, 2, 2),
        features: Sequence[int] = (16, 16, 32, 64, 128, 16),
        window: Sequence[int] | int = 4,
        num_tokens: int = 32,
        num_blocks: int = 2,
        dropout: float = 0.1,
        deep_supervision: bool = False,
    ):
        super().__init__()
        one_output(deep_supervision)
        self.input_channels, num_classes = whole("input_channels", input_channels), whole("num_classes", num_classes)
        self.patch_size = per_axis("patch_size", patch_size, 3)
        if len(listed("pools", pools, "with one entry per lower stage")) != _POOLS:
            raise ValueError(f"pools has {len(pools)} entries; one for each of {_POOLS} lower stages is needed")
        steps = [per_axis(f"pools[{stage}]", pool, 3) for stage, pool in enumerate(pools)]
        self.total_stride = [prod(axis) for axis in zip(*steps)]
        *widths, last = _checked_widths(features)
        dropout = share("dropout", dropout)
        size = [-(-side // step) * step for side, step in zip(self.patch_size, self.total_stride)]
        sizes = []
        for pool in steps:
            size = [side // step for side, step in zip(size, pool)]
            sizes.append(size)
        if prod(size) < 2:
            raise ValueError(
                f"patch_size is {list(self.patch_size)}, of which the pools leave a single voxel, and norms need two: "
                f"one axis at least must have more voxels than its one of {times(self.total_stride)}"
            )

        encoders = nn.ModuleList(_Encoder(widths, steps, sizes, dropout) for _ in range(input_channels))
        self.encoder = nn.ModuleDict({"encoders": encoders})
        bottom = widths[-1]
        self.fusion = NestedFusion(
            input_channels,
            bottom,
            size,
            window=per_axis("window", window, 3),
            num_tokens=whole("num_tokens", num_tokens),
            num_blocks=whole("num_blocks", num_blocks),
            mlp_size=2 * bottom,
            dropout=dropout,
        )
        for stage, width in enumerate(widths, 1):
            self.add_module(f"fusion_conv_{stage}", _two_convs(input_channels * width, width))
        for stage in range(_POOLS, 0, -1):
            skip, out = widths[stage - 1], widths[stage - 1] if stage > 1 else last
            self.add_module(f"upcat_{stage}", _UpConcatenate(widths[stage], skip, out, steps[stage - 1]))
        self.final_conv = nn.Conv3d(last, num_classes, 1)

    @classmethod
    def from_plan(cls, planned: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """Give the patch and the plan's first four pools; those that a plan with fewer stages lacks are 1."""
        pools = [*planned["strides"][1:], *[1] * _POOLS][:_POOLS]
        return {"patch_size": list(patch_size), "pools": [list(per_axis("strides", pool, 3)) for pool in pools]}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        own = {f"{prefix}{name}": value for name, value in self.named_parameters() if "position_embeddings" in name}
        check_positions(state_dict, own, self.patch_size)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, self.input_channels, 3)
        check_patch(x, self.patch_size)
        modalities = pad_to_multiples(x, self.total_stride).split(1, dim=1)
        maps = [torch.stack(scale, 1) for scale in zip(*map(_run, self.encoder["encoders"], modalities))]
        *skips, y = [getattr(self, f"fusion_conv_{stage}")(found.flatten(1, 2)) for stage, found in enumerate(maps, 1)]
        y = self.fusion(maps[-1]) + y
        for stage in range(_POOLS, 0, -1):
            y = getattr(self, f"upcat_{stage}")(y, skips[stage - 1])
        return crop(self.final_conv(y), self.patch_size)


def _run(encoder: nn.Module, x: Tensor) -> list[Tensor]:
    return encoder(x)


def _checked_widths(features: Sequence[int]) -> list[int]:
    widths = wholes("features", features, "stage")
    if len(widths) != _POOLS + 2:
        raise ValueError(f"features has {len(widths)} entries; {_POOLS + 1} stages and the last map need {_POOLS + 2}")
    if any(width % 2 for width in widths[1:-1]) or widths[-2] % _HEADS:
        raise ValueError(
            f"features is {widths}; entries 1 to {_POOLS} must be even, and the last of them a multiple of {_HEADS}"
        )
    return widths


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _two_convs(in_channels: int, out_channels: int) -> nn.Sequential:
    """Twice a convolution, a norm and a ReLU."""

    def one(channels: int) -> nn.Sequential:
        convolution = nn.Conv3d(channels, out_channels, 3, padding=1)
        return _named(conv_1=nn.Sequential(convolution, nn.InstanceNorm3d(out_channels), nn.ReLU(inplace=True)))

    return _named(conv_1=one(in_channels), conv_2=one(out_channels))


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each voxel. Shape: (batch, channels, *spatial), kept."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _FeedForward(nn.Module):
    """Two layers with a GELU between; ``layer`` makes one."""

    def __init__(self, layer: Any, channels: int, width: int, dropout: float):
        super().__init__()
        self.fc1, self.fc2 = layer(channels, width), layer(width, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


def _pointwise(in_channels: int, out_channels: int) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, 1)


class _GlobalPool(nn.Module):
    """The mean of each channel, weighted and shifted by numbers that each voxel has of its own."""

    def __init__(self, size: Sequence[int]):
        super().__init__()
        self.size = size
        self.global_layer = nn.Linear(1, prod(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.global_layer(x.flatten(2).mean(-1, keepdim=True)).unflatten(2, self.size)


class _PoolingBlock(nn.Module):
    def __init__(self, channels: int, size: Sequence[int], dropout: float):
        super().__init__()
        self.attention_norm, self.ffn_norm = _ChannelNorm(channels, eps=_EPS), _ChannelNorm(channels, eps=_EPS)
        self.attn = _GlobalPool(size)
        self.ffn = _FeedForward(_pointwise, channels, 2 * channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        x = x + normed + self.attn(normed)
        return x + self.ffn(self.ffn_norm(x))


class PoolingStage(nn.Module):
    """A strided convolution without overlap and blocks that mix each voxel with the mean of the map.

    Args:
        in_channels: Of the map above.
        channels: Of the stage.
        pool: Stride per axis.
        size: Voxels per axis behind the stride.
        num_blocks: Blocks.
        dropout: Share of values dropped while training.

    Shape: (batch, in_channels, *(size * pool)) -> (batch, channels, *size)
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        pool: Sequence[int],
        size: Sequence[int],
        num_blocks: int = 2,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.embeddings = _named(
            patch_embeddings=nn.Conv3d(in_channels, channels, tuple(pool), tuple(pool)), norm=_ChannelNorm(channels)
        )
        self.block_list = nn.Sequential(*(_PoolingBlock(channels, size, dropout) for _ in range(num_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.block_list(self.embeddings(x))


class _Encoder(nn.Sequential):
    """Of one modality. Shape: (batch, 1, *spatial) -> maps of five scales, finest first"""

    def __init__(self, widths: Sequence[int], pools: Sequence[Any], sizes: Sequence[Any], dropout: float):
        stages = map(PoolingStage, widths, widths[1:], pools, sizes, [2] * _POOLS, [dropout] * _POOLS)
        super().__init__(
            OrderedDict(conv_0=_two_convs(1, widths[0]), **{f"down_{i}": stage for i, stage in enumerate(stages, 1)})
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self:
            x = stage(x)
            maps.append(x)
        return maps


class _UpConcatenate(nn.Module):
    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, pool: Sequence[int]):
        super().__init__()
        self.upsample = nn.ConvTranspose3d(in_channels, in_channels // 2, tuple(pool), tuple(pool))
        self.convs = _two_convs(skip_channels + in_channels // 2, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convs(torch.cat((skip, self.upsample(x)), 1))


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention with heads of consecutive channels. Shape: (sequences, tokens, channels), that of ``query`` kept."""
    heads = (tokens.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for tokens in (query, key, value))
    return F.scaled_dot_product_attention(*heads, attn_mask=bias).transpose(1, 2).flatten(2)


class _Attention(nn.Module):
    """Of tokens to a context, or to themselves. Shape: (sequences, tokens, channels), kept"""

    def __init__(self, channels: int):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        return self.out(_attend(self.query(x), self.key(context), self.value(context)))


class _WindowAttention(nn.Module):
    """Attention inside windows, with a bias for each offset that all heads share.

    Shape: (batch, *spatial, channels), kept
    """

    def __init__(self, channels: int, window: Sequence[int]):
        super().__init__()
        self.window, edge = tuple(window), 2 * max(window) - 1
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        self.pos_embedding = nn.Parameter(torch.randn(edge, edge, edge))

    def _bias(self) -> Tensor:
        """Of each query (rows) to each key of a window."""
        device = self.pos_embedding.device
        positions = torch.cartesian_prod(*(torch.arange(side, device=device) for side in self.window))
        offsets = positions[None] - positions[:, None] + max(self.window) - 1
        return self.pos_embedding[offsets.unbind(-1)]

    def forward(self, x: Tensor) -> Tensor:
        batch, *spatial, _ = x.shape
        grid = [side // part for side, part in zip(spatial, self.window)]
        for axis, part in zip((1, 3, 5), self.window):
            x = x.unflatten(axis, (-1, part))
        tokens = x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(0, 3)
        query, key, value = self.to_qkv(tokens).chunk(3, -1)
        tokens = self.to_out(_attend(query, key, value, self._bias()))
        x = tokens.reshape(batch, *grid, *self.window, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return x.reshape(batch, *spatial, -1)


class _Positions(nn.Module):
    def __init__(self, num_tokens: int, channels: int):
        super().__init__()
        self.position_embeddings = nn.Parameter(torch.zeros(1, num_tokens, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position_embeddings


class _TripleAttention(nn.Module):
    """The sum of attention inside each plane of the first axis, along that axis, and inside windows.

    Shape: (batch, *spatial, channels) -> (batch, tokens, channels), in raster order
    """

    def __init__(self, channels: int, size: Sequence[int], window: Sequence[int], with_positions: bool):
        super().__init__()
        self.v_attention, self.h_attention = _Attention(channels), _Attention(channels)
        self.window_attention = _WindowAttention(channels, window)
        depth, *plane = size
        self.pos_embedding_1 = _Positions(prod(plane), channels) if with_positions else nn.Identity()
        self.pos_embedding_2 = _Positions(depth, channels) if with_positions else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        batch, depth = x.shape[:2]
        in_planes = self.v_attention(self.pos_embedding_1(x.flatten(2, 3).flatten(0, 1))).unflatten(0, (batch, depth))
        columns = x.flatten(2, 3).transpose(1, 2).flatten(0, 1)
        along = self.h_attention(self.pos_embedding_2(columns)).unflatten(0, (batch, -1)).transpose(1, 2)
        return (in_planes + along).flatten(1, 2) + self.window_attention(x).flatten(1, 3)


class _SpatialBlock(nn.Module):
    """Shape: (batch, channels, *spatial), kept"""

    def __init__(
        self, channels: int, size: Sequence[int], window: Sequence[int], mlp_size: int, dropout: float, first: bool
    ):
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(channels, eps=_EPS), nn.LayerNorm(channels, eps=_EPS)
        self.attn = _TripleAttention(channels, size, window, with_positions=first)
        self.ffn = _FeedForward(nn.Linear, channels, mlp_size, dropout)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.movedim(1, -1)
        mixed = tokens.flatten(1, 3) + self.attn(self.attention_norm(tokens))
        mixed = mixed + self.ffn(self.ffn_norm(mixed))
        return mixed.transpose(1, 2).unflatten(2, x.shape[2:])


class _ModalityTokens(nn.Module):
    """A modality's voxels with learned positions. Shape: (batch, channels, *spatial) -> (batch, voxels, channels)"""

    def __init__(self, channels: int, num_voxels: int, dropout: float):
        super().__init__()
        self.patch_embeddings = nn.Conv3d(channels, channels, 1)
        self.position_embeddings = nn.Parameter(torch.zeros(1, num_voxels, channels))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.patch_embeddings(x).flatten(2).transpose(1, 2) + self.position_embeddings)


class _TokenLearner(nn.Module):
    """Few tokens, each the mean of all voxels weighted by a map of its own.

    Shape: (batch, voxels, channels) -> (batch, num_tokens, channels)
    """

    def __init__(self, channels: int, num_tokens: int, size: Sequence[int]):
        super().__init__()
        self.size = size
        self.token_conv = nn.Conv3d(channels, num_tokens, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.token_conv(x.transpose(1, 2).unflatten(2, self.size)).sigmoid().flatten(2)
        return maps @ x / x.shape[1]


class _CrossBlock(nn.Module):
    """Tokens look at those of a context; norms come behind the sums. Shape: (batch, tokens, channels), kept"""

    def __init__(self, channels: int, mlp_size: int, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels, eps=_EPS).requires_grad_(False)  # of published weights, not used
        self.attention_norm_cross, self.ffn_norm = (nn.LayerNorm(channels, eps=_EPS) for _ in range(2))
        self.attn_cross = _Attention(channels)
        self.ffn = _FeedForward(nn.Linear, channels, mlp_size, dropout)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attention_norm_cross(x + self.attn_cross(x, context))
        return self.ffn_norm(x + self.ffn(x))


class NestedFusion(nn.Module):
    """Joins the deepest maps of all modalities: attention in space, then from there to tokens of each modality.

    Args:
        num_modalities: Maps.
        channels: Of each.
        size: Voxels per axis.
        window: Most voxels per axis of a window.
        num_tokens: Per modality.
        num_blocks: Of the spatial part.
        mlp_size: Width inside the feed-forward layers.
        dropout: Share of values dropped while training.

    Shape: (batch, num_modalities, channels, *size) -> (batch, channels, *size)
    """

    def __init__(
        self,
        num_modalities: int,
        channels: int,
        size: Sequence[int],
        *,
        window: Sequence[int],
        num_tokens: int,
        num_blocks: int,
        mlp_size: int,
        dropout: float = 0.1,
    ):
        super().__init__()
        window = [_largest_divisor(side, most) for side, most in zip(size, window)]
        self.spatial_att = _named(
            embeddings=_named(patch_embeddings=_pointwise(num_modalities * channels, channels)),
            block_list=nn.Sequential(
                *(
                    _SpatialBlock(channels, size, window, mlp_size, dropout, first=index == 0)
                    for index in range(num_blocks)
                )
            ),
        )
        self.modality_att = nn.ModuleDict(
            {
                "embeddings": nn.ModuleList(
                    _ModalityTokens(channels, prod(size), dropout) for _ in range(num_modalities)
                ),
                "token_mixer": _TokenLearner(channels, num_tokens, size),
                "cross_attention": _CrossBlock(channels, mlp_size, dropout),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        fused = self.spatial_att(x.flatten(1, 2))
        parts = self.modality_att
        tokens = [parts["token_mixer"](embed(one)) for embed, one in zip(parts["embeddings"], x.unbind(1))]
        queries = fused.flatten(2).transpose(1, 2)
        return parts["cross_attention"](queries, torch.cat(tokens, 1)).transpose(1, 2).unflatten(2, x.shape[3:])


def _largest_divisor(number: int, most: int) -> int:
    return next(part for part in range(most, 0, -1) if number % part == 0)
