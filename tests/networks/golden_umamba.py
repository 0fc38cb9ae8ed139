"""U-Mamba: what its golden files hold, step by step, in float64 and once more forwards in float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from peer_golden import (
    LIMIT,
    assert_close,
    below,
    compare_gradients,
    compare_input_gradient,
    compare_intermediates,
    fill,
    image,
    recorded,
)
from torch import Tensor, nn

from nnunet_logvmamba.layers import MambaLayer, mamba
from nnunet_logvmamba.networks.peers.umamba import UMamba, UMambaBot, UMambaEnc

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


def compare(hyper: dict, tensors: dict[str, Tensor]) -> None:
    """Compare one file."""
    (compare_layer if hyper["kind"] == "umamba_mamba_layer" else compare_network)(hyper, tensors)


@contextmanager
def recorded_steps() -> Iterator[list[dict[str, Tensor]]]:
    """Record what every convolution and scan of Mamba blocks gets and gives, in the order of its sequence."""
    steps: list[dict[str, Tensor]] = []

    def noting_convolution(x, weight, bias, *, order, silu):
        y = convolve(x, weight, bias, order=order, silu=silu)
        steps.append({"conv": in_sequence(y, order)})
        return y

    def noting_scan(u, delta, A, B, C, D, *, delta_bias, order, backend):
        y = scan(u, delta, A, B, C, D, delta_bias=delta_bias, order=order, backend=backend)
        found = {"dt": delta, "B": B.squeeze(2), "C": C.squeeze(2), "scan": y}
        steps[-1].update({name: in_sequence(value, order) for name, value in found.items()})
        return y

    convolve, scan = mamba.causal_conv1d, mamba.selective_scan
    with patch.object(mamba, "causal_conv1d", noting_convolution), patch.object(mamba, "selective_scan", noting_scan):
        yield steps


def in_sequence(rows: Tensor, order: Tensor | None) -> Tensor:
    """(batch, channels, length) of what lies as (batch, length, channels), in the order of a direction."""
    return (rows if order is None else rows.index_select(1, order)).transpose(1, 2)


def compare_layer(hyper: dict, tensors: dict[str, Tensor]) -> None:
    for dtype, limit in LIMIT.items():
        layer = fill(MambaLayer(hyper["d_model"], tokens=hyper["tokens"]), below(tensors, "param/"), dtype)
        assert (layer.mamba.step_rank, layer.directions) == (hyper["dt_rank"], 1)
        x = image(tensors, dtype=dtype)
        with recorded(layer) as seen, recorded_steps() as steps:
            y = layer(x)
        (step,) = steps
        seen |= {
            "norm": seen["norm/out"],
            "conv_silu": step["conv"],
            "z": seen["mamba.in_proj"].chunk(2, dim=-1)[1].transpose(1, 2),
            "scan_delta": step["dt"],
            "scan_B": step["B"],
            "scan_C": step["C"],
            "scan_out": step["scan"],
            "gated": seen["mamba.out_proj/in"].transpose(1, 2),
        }
        compare_intermediates(tensors, seen, limit)
        assert_close("out/y", y, tensors["out/y"], limit)
        if dtype == torch.float64:
            y.backward(tensors["in/grad_out"].double())
            compare_gradients(layer, tensors)
            compare_input_gradient(x.grad, tensors, "grad/in/x")


def network_of(hyper: dict) -> UMamba:
    """The network of a file's plan."""
    dims = len(hyper["patch_size"])
    enc = hyper["kind"].startswith("umamba_enc")
    return (UMambaEnc if enc else UMambaBot)(
        input_channels=hyper["input_channels"],
        n_stages=hyper["n_stages"],
        features_per_stage=hyper["features_per_stage"],
        conv_op=CONVOLUTIONS[dims],
        kernel_sizes=hyper["kernel_sizes"],
        strides=hyper["strides"],
        num_classes=hyper["classes"],
        n_conv_per_stage=hyper["n_conv_per_stage_in_plan"],
        n_conv_per_stage_decoder=hyper["n_conv_per_stage_in_plan"][:-1],
        deep_supervision=hyper["deep_supervision"],
        **({"patch_size": hyper["patch_size"]} if enc else {}),
    )


def compare_network(hyper: dict, tensors: dict[str, Tensor]) -> None:
    logits = below(tensors, "logits/")
    for dtype, limit in LIMIT.items():
        network = network_of(hyper)
        assert network.blocks == hyper["blocks_used_encoder"]
        assert network.blocks_up == hyper["blocks_used_decoder_from_bottom"]
        fill(network, below(tensors, "param/"), dtype)
        x = image(tensors, dtype=dtype)
        with recorded(network) as seen:
            outputs = network(x)
        compare_intermediates(tensors, seen, limit)
        assert len(outputs) == len(logits)
        for index, output in enumerate(outputs):
            assert_close(f"logits/{index}", output, logits[str(index)], limit)
        if dtype == torch.float64:
            torch.autograd.backward(outputs, [g.double() for _, g in sorted(below(tensors, "in/grad_logits/").items())])
            compare_gradients(network, tensors)
            compare_input_gradient(x.grad, tensors, "grad/in/x")
        with torch.no_grad():
            if any(name.startswith("odd/") for name in tensors):
                compare_odd(network, tensors, limit, dtype)
            network.decoder.deep_supervision = False
            assert_close("logits/0, alone and predicted", network(x), logits["0"], limit)


def compare_odd(network: UMamba, tensors: dict[str, Tensor], limit: float, dtype: torch.dtype) -> None:
    """At a size that the strides do not divide the original gives a larger map; ours pads, and crops to that size."""
    x = image(tensors, "odd/in/x", dtype)
    for index, output in enumerate(network.segment(x)):
        assert_close(f"odd/logits/{index}", output, tensors[f"odd/logits/{index}"], limit)
    assert network(x)[0].shape[2:] == x.shape[2:]
