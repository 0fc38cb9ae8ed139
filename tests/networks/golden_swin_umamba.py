"""How the golden files of Swin-UMamba and Swin-UMamba† are compared: every map, all heads, and a step of training."""

import peer_golden
import torch
from peer_golden import LIMIT
from torch import Tensor, nn

from nnunet_logvmamba.layers import DropPath
from nnunet_logvmamba.networks import LoGVMambaSwinUNet
from nnunet_logvmamba.networks.contract import PlannedNetwork
from nnunet_logvmamba.networks.peers.swin_umamba import SwinUMamba
from nnunet_logvmamba.networks.published_names import swin_names, swin_umamba_names


class Decided(nn.Module):
    """In place of ``DropPath``: which samples keep the branch is given."""

    def __init__(self, probability: float, keep: Tensor):
        super().__init__()
        self.factor = keep / (1 - probability)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def network(hyper: dict) -> PlannedNetwork:
    common = {
        "input_channels": hyper["input_channels"],
        "num_classes": hyper["classes"],
        "n_blocks_per_stage": hyper["depths"],
        "deep_supervision": True,
    }
    if hyper["kind"] == "swin_umamba":
        return SwinUMamba(features_per_stage=hyper["feat_size"], **common)
    widths, stages = hyper["dims"], len(hyper["dims"])
    return LoGVMambaSwinUNet(
        n_stages=stages + 1,
        features_per_stage=[widths[0], *widths],
        strides=[1, 4, *[2] * (stages - 1)],
        family="vss",
        **common,
    )


def places(made: PlannedNetwork) -> dict[str, str]:
    """Our module for what a file calls a map."""
    halves = {"vssm_encoder.layers": "encoder.stages", "decoder.stages": "decoder.stages"}
    found = {"stem": "stem", "vssm_encoder.patch_embed": "encoder.patch_embed", "decoder1": "decoder.last"}
    for theirs, ours in {
        "vssm_encoder.downsamples.{}": "encoder.mergers.{}",
        "decoder.expand_layers.{}": "decoder.expansions.{}",
        "decoder.concat_back_dim.{}": "decoder.fusions.{}",
    }.items():
        found |= {theirs.format(index): ours.format(index) for index in range(4)}
    found |= {f"encoder{index + 1}": f"skips.{index}" for index in range(5)}
    found |= {f"decoder{6 - step}": f"decoder.stages.{step}" for step in range(5)}
    for theirs, ours in halves.items():
        for index, stage in enumerate(made.get_submodule(ours)):
            if isinstance(stage, nn.Sequential):
                found[f"{theirs}.{index}"] = f"{ours}.{index}.{len(stage) - 1}"
                for block in range(len(stage)):
                    mixer = f"{theirs}.{index}.blocks.{block}.self_attention"
                    found[f"{mixer}/in"] = f"{ours}.{index}.{block}.norm"
                    found[f"{mixer}/out"] = f"{ours}.{index}.{block}.out_proj"
    return found


def in_their_layout(name: str, ours: Tensor, theirs: Tensor) -> Tensor:
    """Channels last inside the encoder and in the decoder of Swin-UMamba†, first elsewhere; tokens as a map."""
    if "self_attention" in name:
        return ours.view(theirs.shape)
    return ours.movedim(1, -1) if name.startswith(("vssm_encoder.", "decoder.")) else ours


def decide(made: nn.Module, probabilities: list[float], keep: Tensor) -> None:
    """Put decisions in place of every ``DropPath``, in the order in which the blocks run."""
    blocks = [module for module in made.modules() if isinstance(getattr(module, "drop_path", None), DropPath)]
    assert torch.allclose(torch.tensor([block.drop_path.probability for block in blocks]), torch.tensor(probabilities))
    for block, decisions in zip(blocks, keep, strict=True):
        block.drop_path = Decided(block.drop_path.probability, decisions)


def compare(hyper: dict, tensors: dict[str, Tensor]) -> None:
    """Compare a network with what is stored of it."""
    made = network(hyper)
    renamed = swin_umamba_names if hyper["kind"] == "swin_umamba" else swin_names
    theirs_to_ours = renamed(peer_golden.below(tensors, "param/"))
    weights = {ours: tensors[f"param/{theirs}"] for theirs, ours in theirs_to_ours.items()}
    where = places(made)
    for dtype, limit in LIMIT.items():
        peer_golden.fill(made, weights, dtype)
        x = peer_golden.image(tensors, dtype=dtype)
        with peer_golden.recorded(made) as seen:
            logits = made(x)
        maps = {}
        for name, stored in peer_golden.below(tensors, "mid/").items():
            plain = peer_golden.plain(name)
            maps[plain] = in_their_layout(plain, seen[where[plain]], stored)
        peer_golden.compare_intermediates(tensors, maps, limit)
        compare_logits(logits, tensors, "logits/", limit)
        if dtype == torch.float64:
            sum((tensors[f"in/grad_logits/{head}"] * y).sum() for head, y in enumerate(logits)).backward()
            peer_golden.compare_input_gradient(x.grad, tensors, "grad/in/x")
            gradients = peer_golden.below(tensors, "grad/param/")
            own = {f"grad/param/{theirs_to_ours[name]}": value for name, value in gradients.items()}
            peer_golden.compare_gradients(made, own)
        made.decoder.deep_supervision = False
        with torch.no_grad():
            peer_golden.assert_close("logits/0, alone and predicted", made(x), tensors["logits/0"], limit)
        made.decoder.deep_supervision = True

    made.double().train()
    decide(made, hyper["drop_path_per_block_in_module_order"], tensors["train/keep"])
    with torch.no_grad():
        compare_logits(made(peer_golden.image(tensors)), tensors, "train/logits/", LIMIT[torch.float64])


def compare_logits(logits: list[Tensor], tensors: dict[str, Tensor], prefix: str, limit: float) -> None:
    stored = peer_golden.below(tensors, prefix)
    assert sorted(stored) == [str(head) for head in range(len(logits))]
    for head, y in enumerate(logits):
        peer_golden.assert_close(f"{prefix}{head}", y, stored[str(head)], limit)
