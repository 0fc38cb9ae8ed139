"""How the golden files of NestedFormer are compared: its pooling stage, its fusion and the whole network."""

from collections.abc import Mapping

import peer_golden
import torch
from peer_golden import LIMIT
from torch import Tensor, nn

from nnunet_logvmamba.networks.peers.nested_former import NestedFormer, NestedFusion, PoolingStage

POOL_PLACES = {
    "embeddings": "embeddings",
    "block0_pool": "block_list.0.attn",
    "block0_ffn": "block_list.0.ffn",
    "block0": "block_list.0",
}
FUSION_PLACES = {
    "spatial/embeddings": "spatial_att.embeddings",
    **{
        f"spatial/block{block}/{ours}": f"spatial_att.block_list.{block}{place}"
        for block in (0, 1)
        for ours, place in {
            "slice_attention": ".attn.v_attention",
            "column_attention": ".attn.h_attention",
            "window_attention": ".attn.window_attention",
            "sum": ".attn",
            "out": "",
        }.items()
    },
    **{f"modality/embeddings{index}": f"modality_att.embeddings.{index}" for index in range(3)},
    "modality/cross_attention": "modality_att.cross_attention.attn_cross",
    "modality/cross_block": "modality_att.cross_attention",
}


def pooling_stage(hyper: dict) -> PoolingStage:
    return PoolingStage(
        hyper["in_channels"], hyper["out_channels"], hyper["patch_size"], hyper["img_size"], hyper["num_layers"]
    )


def fusion(hyper: dict) -> NestedFusion:
    return NestedFusion(
        hyper["model_num"],
        hyper["hidden_size"],
        hyper["img_size"],
        window=hyper["window_size"],
        num_tokens=hyper["token_mixer_size"],
        num_blocks=hyper["self_num_layer"],
        mlp_size=hyper["mlp_size"],
    )


def network(hyper: dict) -> NestedFormer:
    return NestedFormer(
        input_channels=hyper["model_num"],
        num_classes=hyper["out_channels"],
        patch_size=hyper["image_size"],
        pools=hyper["pool_size"],
        features=hyper["fea"],
        window=hyper["window_size"],
        num_tokens=hyper["token_mixer_size"],
    )


def places(hyper: dict) -> dict[str, str]:
    modalities = range(hyper["model_num"])
    stages = ["conv_0", *(f"down_{stage}" for stage in range(1, 5))]
    inside = {f"mod{m}/{stage}": f"encoder.encoders.{m}.{stage}" for m in modalities for stage in stages}
    outside = ["fusion", *(f"fusion_conv_{k}" for k in range(1, 6)), *(f"upcat_{k}" for k in range(1, 5))]
    return inside | {name: name for name in outside}


def compare_part(part: str, made: nn.Module, names: Mapping[str, str], hyper: dict, tensors: dict[str, Tensor]) -> None:
    weights = peer_golden.below(tensors, f"param/{part}/")
    for dtype, limit in LIMIT.items():
        peer_golden.fill(made, weights, dtype)
        x = peer_golden.image(tensors, f"in/{part}/x", dtype)
        with peer_golden.recorded(made) as seen:
            y = made(x)
        found = {name: seen[place] for name, place in names.items()}
        if part == "nmafa":
            found["modality/tokens"] = seen_context(made, x)
        peer_golden.compare_intermediates(tensors, found, limit, f"mid/{part}/")
        peer_golden.assert_close(f"out/{part}/y", y, tensors[f"out/{part}/y"], limit)
        if dtype is torch.float64:
            (peer_golden.upstream(y) * y).sum().backward()
            idle = set(hyper["no_gradient"])
            assert {name for name, parameter in made.named_parameters() if parameter.grad is None} <= idle
            vanishing = [name for name in weights if name.endswith("key.bias")]
            peer_golden.compare_gradients(made, tensors, f"grad/{part}/param/", vanishing)
            peer_golden.compare_input_gradient(x.grad, tensors, f"grad/{part}/x")


def seen_context(made: NestedFusion, x: Tensor) -> Tensor:
    """What the tokens of all modalities are when the cross attention gets them."""
    seen = []
    attention = made.modality_att["cross_attention"].attn_cross
    hook = attention.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[1]))
    made(x)
    hook.remove()
    return seen[0]


def compare(hyper: dict, tensors: dict[str, Tensor]) -> None:
    if "pool" in hyper:
        compare_part("pool", pooling_stage(hyper["pool"]), POOL_PLACES, hyper, tensors)
        compare_part("nmafa", fusion(hyper["nmafa"]), FUSION_PLACES, hyper, tensors)
        return
    weights = peer_golden.below(tensors, "param/")
    for dtype, limit in LIMIT.items():
        made = peer_golden.fill(network(hyper), weights, dtype)
        x = peer_golden.image(tensors, dtype=dtype)
        with peer_golden.recorded(made) as seen:
            logits = made(x)
        found = {name: seen[place] for name, place in places(hyper).items()}
        peer_golden.compare_intermediates(tensors, found, limit)
        peer_golden.compare_summary(logits, tensors, limit)
        if dtype is torch.float64:
            (peer_golden.upstream(logits) * logits).sum().backward()
            peer_golden.compare_gradients(made, tensors)
            peer_golden.compare_input_gradient(x.grad, tensors)
