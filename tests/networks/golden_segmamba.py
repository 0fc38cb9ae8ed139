"""SegMamba: what its golden files hold, step by step, in float64 and once more forwards in float32."""

import torch
import torch.nn.functional as F
from golden_umamba import recorded_steps
from peer_golden import (
    LIMIT,
    assert_close,
    below,
    compare_gradients,
    compare_input_gradient,
    compare_intermediates,
    compare_summary,
    fill,
    image,
    recorded,
    upstream,
)
from torch import Tensor

from nnunet_logvmamba.layers import MAMBA_DIRECTIONS, Mamba, MambaLayer
from nnunet_logvmamba.networks.peers.segmamba import GatedConvolution, SegMamba

DIRECTIONS = {"forward": "forward", "backward": "backward", "slices": "interslice"}
BIASES_AHEAD_OF_NORMS = [f"proj{end}.bias" for end in ("", "2", "3", "4")]


def compare(hyper: dict, tensors: dict[str, Tensor]) -> None:
    """Compare one file."""
    if "tom" not in hyper:
        return compare_network(hyper, tensors)
    compare_orders(hyper["tom"], tensors)
    for dtype, limit in LIMIT.items():
        compare_layer(hyper["tom"], tensors, dtype, limit)
        compare_convolution(hyper["gsc"], tensors, dtype, limit)
    return None


def compare_orders(hyper: dict, tensors: dict[str, Tensor]) -> None:
    for name, order in below(tensors, "order/").items():
        slices = hyper["nslices"] if name == "tom/interslice" else int(name.rpartition("_n")[2])
        assert Mamba.order("slices", torch.empty(1, len(order), 1), slices).tolist() == order.tolist(), name


def compare_layer(hyper: dict, tensors: dict[str, Tensor], dtype: torch.dtype, limit: float) -> None:
    layer = MambaLayer(hyper["dim"], residual=True, slices=hyper["nslices"], directions=tuple(MAMBA_DIRECTIONS))
    fill(layer, below(tensors, "param/tom/"), dtype)
    x = image(tensors, "in/tom/x", dtype)
    with recorded(layer) as seen, recorded_steps() as steps:
        y = layer(x)
    xz = seen["mamba.in_proj"]
    gate = F.silu(xz.chunk(2, dim=-1)[1])
    found = {"norm": seen["norm"], "xz": xz.transpose(1, 2), "mixer_out": y - x}
    for (direction, name), step in zip(DIRECTIONS.items(), steps, strict=True):
        order = Mamba.order(direction, xz, hyper["nslices"])
        gates = (gate if order is None else gate[:, order]).transpose(1, 2)
        found |= {f"{name}/{key}": step[key] for key in ("conv", "dt", "B", "C")}
        found[f"{name}/out"] = step["scan"] * gates
    compare_intermediates(tensors, found, limit, "mid/tom/")
    assert_close("out/tom/y", y, tensors["out/tom/y"], limit)
    if dtype == torch.float64:
        y.backward(tensors["in/tom/grad_out"].double())
        compare_gradients(layer, tensors, "grad/tom/param/")
        compare_input_gradient(x.grad, tensors, "grad/tom/x")


def compare_convolution(hyper: dict, tensors: dict[str, Tensor], dtype: torch.dtype, limit: float) -> None:
    module = fill(GatedConvolution(hyper["channels"]), below(tensors, "param/gsc/"), dtype)
    x = image(tensors, "in/gsc/x", dtype)
    with recorded(module) as seen:
        y = module(x)
    compare_intermediates(tensors, seen, limit, "mid/gsc/")
    assert_close("out/gsc/y", y, tensors["out/gsc/y"], limit)
    if dtype == torch.float64:
        y.backward(tensors["in/gsc/grad_out"].double())
        compare_gradients(module, tensors, "grad/gsc/param/", BIASES_AHEAD_OF_NORMS)
        compare_input_gradient(x.grad, tensors, "grad/gsc/x")


def compare_network(hyper: dict, tensors: dict[str, Tensor]) -> None:
    for dtype, limit in LIMIT.items():
        network = SegMamba(
            hyper["in_chans"],
            hyper["out_chans"],
            hyper["feat_size"],
            hyper["depths"],
            hyper["hidden_size"],
            slices=hyper["nslices"],
        )
        fill(network, below(tensors, "param/"), dtype)
        x = image(tensors, dtype=dtype)
        with recorded(network) as seen:
            logits = network(x)
        for kind, modules in (("down", "downsample_layers"), ("gsc", "gscs"), ("stage", "stages"), ("skip", "mlps")):
            seen |= {f"{kind}{index}": seen[f"vit.{modules}.{index}"] for index in range(4)}
        compare_intermediates(tensors, seen, limit)
        compare_summary(logits, tensors, limit)
        if dtype == torch.float64:
            logits.backward(upstream(logits))
            compare_gradients(network, tensors)
            compare_input_gradient(x.grad, tensors)
            network.vit.stages.apply(planes_as_slices)
            with torch.no_grad():
                assert torch.equal(network(x), logits)  # where the first axis has 128 voxels


def planes_as_slices(module: torch.nn.Module) -> None:
    if isinstance(module, MambaLayer):
        module.slices = None
