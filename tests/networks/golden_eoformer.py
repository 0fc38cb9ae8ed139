"""How the golden files of EoFormer are compared: edge operators, blocks and the whole network."""

import peer_golden
import torch
import torch.nn.functional as F
from peer_golden import LIMIT
from torch import Tensor, nn

from nnunet_logvmamba.networks.peers.eoformer import (
    Block,
    EdgeOperator,
    EfficientAttention,
    EoFormer,
    SeparableConvolution,
)

BLOCK_STEPS = ("norm1", "token_mixer", "mlp")
KERNELS = {"sobelx": "sbx", "sobely": "sby", "sobelz": "sbz", "laplacian": "lpl"}


def part(name: str, hyper: dict) -> nn.Module:
    width = hyper["dim"]
    return {
        "eos": lambda: EdgeOperator.sobel(width),
        "eol": lambda: EdgeOperator.laplace(width),
        "sepconv_block": lambda: Block(width, SeparableConvolution(width)),
        "attention_block": lambda: Block(width, EfficientAttention(width), scaled=True),
    }[name]()


def network(hyper: dict) -> EoFormer:
    return EoFormer(
        input_channels=hyper["in_channels"],
        num_classes=hyper["out_channels"],
        features=hyper["encoder_dims"],
        decoder_features=hyper["decoder_dims"],
        n_blocks_per_stage=hyper["encoder_depths"],
    )


def branches(operator: EdgeOperator, x: Tensor) -> dict[str, Tensor]:
    """What each convolution of an edge operator gives alone, and all of them with the residual as one convolution."""
    volume, width = x.movedim(-1, 1), x.shape[-1]
    kernel, bias = operator.merged()
    found = {"merged_kernel": kernel.clone(), "merged_bias": bias, "conv3x3x3": operator.conv3x3x3(volume)}
    found["merged_kernel"][:, :, 1, 1, 1] += torch.eye(width, dtype=x.dtype)
    for name, branch in operator.named_children():
        if name.startswith("conv1x1x1_"):
            found[name] = F.conv3d(volume, branch.kernel(), branch.bias, padding=1)
    return found


def compare_part(name: str, made: nn.Module, tensors: dict[str, Tensor]) -> None:
    for dtype, limit in LIMIT.items():
        peer_golden.fill(made, peer_golden.below(tensors, f"param/{name}/"), dtype)
        x = peer_golden.image(tensors, f"in/{name}/x", dtype)
        with peer_golden.recorded(made) as seen:
            y = made(x)
        if isinstance(made, EdgeOperator):
            seen |= branches(made, x)
        peer_golden.compare_intermediates(tensors, seen, limit, f"mid/{name}/")
        peer_golden.assert_close(f"out/{name}/y", y, tensors[f"out/{name}/y"], limit)
        if dtype is torch.float64:
            (peer_golden.upstream(y) * y).sum().backward()
            vanishing = [
                parameter for parameter, _ in made.named_parameters() if parameter.endswith(("b0", "keys.bias"))
            ]
            for parameter in made.parameters():
                if not parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
            peer_golden.compare_gradients(made, tensors, f"grad/{name}/param/", vanishing)
            peer_golden.compare_input_gradient(x.grad, tensors, f"grad/{name}/x")


def places() -> dict[str, str]:
    stages = range(4)
    found = {f"down{stage}": f"encoder.downsample_layers.{stage}" for stage in stages}
    found |= {f"stage{stage}": f"encoder.stages.{stage}" for stage in stages}
    found |= {f"up{stage}": f"decoder.upsample_layers.{stage}" for stage in stages}
    return found | {f"dstage{stage}": f"decoder.stages.{stage}" for stage in stages[:-1]}


def compare(hyper: dict, tensors: dict[str, Tensor]) -> None:
    if "eos" in hyper:
        operators = part("eos", hyper["eos"]), part("eol", hyper["eol"])
        kernels = {
            name: made.fixed for operator in operators for name, made in operator.named_children() if "1x1" in name
        }
        for name, ours in KERNELS.items():
            assert torch.equal(tensors[f"kernel/{name}"], kernels[f"conv1x1x1_{ours}"])
        for name, settings in hyper.items():
            compare_part(name, part(name, settings), tensors)
        return
    for dtype, limit in LIMIT.items():
        made = peer_golden.fill(network(hyper), peer_golden.below(tensors, "param/"), dtype)
        x = peer_golden.image(tensors, dtype=dtype)
        with peer_golden.recorded(made) as seen:
            logits = made(x)
        last = {"stages", "downsample_layers"}  # channels stand last inside, first in the file
        found = {
            name: seen[place].movedim(-1, 1) if last & set(place.split(".")) else seen[place]
            for name, place in places().items()
        }
        peer_golden.compare_intermediates(tensors, found, limit)
        peer_golden.compare_summary(logits, tensors, limit)
        if dtype is torch.float64:
            (peer_golden.upstream(logits) * logits).sum().backward()
            peer_golden.compare_gradients(made, tensors)
            peer_golden.compare_input_gradient(x.grad, tensors)
