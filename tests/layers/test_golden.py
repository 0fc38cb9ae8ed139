"""Every stored scan, block and network of the authors' code, step by step: intermediates, output and gradients.

``pytest tests/layers/test_golden.py --golden DIR`` runs the same comparison over any folder of such files.
"""

import json
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nnunet_logvmamba.layers import LoGVMambaBlock, token_order, token_positions
from nnunet_logvmamba.networks import LoGVMambaSwinUNet, LoGVMambaUNet
from nnunet_logvmamba.networks.published_names import block_name, log_vmamba_3d_names, swin_names
from nnunet_logvmamba.ops import available_backends, selective_scan

RELATIVE_LIMIT = 1e-4  # of each tensor's largest magnitude, float32 against float32; README of the tensors, section 3
LOGITS_LIMIT = 1e-3  # absolute, same source

FAMILIES = {
    "LoG-VMamba": {"local_tokens": True, "global_tokens": True},
    "L-VMamba": {"local_tokens": True, "global_tokens": False},
    "G-VMamba": {"local_tokens": False, "global_tokens": True},
    "VSS": {"local_tokens": False, "global_tokens": False},
    "SS2D-4dir": {"local_tokens": False, "global_tokens": False, "directions": 4},
}
PLACEMENTS = {"head": "head", "center": "middle", "split": "split", "even": "interleaved"}


def load(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Hyper-parameters and tensors of a golden file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return json.loads(metadata.get("hyper", "{}")), tensors


def why_not(hyper: dict) -> str | None:
    """Reason for which a file is ruled out by this project's decisions, if it is."""
    if hyper["spatial_dims"] == 2 and hyper["family"] == "G-VMamba" and 1 in _axes(hyper["d_depth_stride"]):
        return "2D stride 1 with the published kernel 2 shrinks the map; ours has kernel 1 (D5)"
    return None


def _axes(stride: int | list[int]) -> list[int]:
    return [stride] if isinstance(stride, int) else stride


def published_split(num_local, num_global, local, context):
    """The published order, which differs from the paper's words (D1): the second half goes to the middle."""
    half, middle = num_global // 2, num_local // 2
    return (
        torch.where(local < middle, local + half, local + num_global),
        torch.where(context < half, context, context + middle),
    )


def build(hyper: dict) -> LoGVMambaBlock:
    settings = dict(FAMILIES[hyper["family"]])
    if settings["global_tokens"]:
        stride = hyper["d_depth_stride"]
        settings |= {
            "placement": PLACEMENTS[hyper["mode"]],
            "global_stride": stride if isinstance(stride, int) else tuple(stride),
            "channels_per_token": hyper["d_depth_squeeze"],
            "canonical_grid": tuple(hyper["gtx_out_shape"]),
        }
    if settings["local_tokens"]:
        settings |= {"squeeze": hyper["squeeze"], "window": hyper["window"]}
    return LoGVMambaBlock(
        hyper["hidden_dim"],
        hyper["spatial_dims"],
        expand=hyper["expand"],
        state_size=hyper["d_state"],
        norm_eps=hyper["block_norm_eps"],
        **settings,
    )


def widened(narrow: dict[str, torch.Tensor], squeeze: int) -> dict[str, torch.Tensor]:
    """State of an L-VMamba block that computes what the published default, which is narrower by ``squeeze``, computes.

    That form (D9) squeezes in its in-projection and has no full-width gate. Ours holds it as a special case: one
    channel of each squeezed group carries the narrow one and the others are zero; behind the fold every channel comes
    ``squeeze`` times, which leaves mean and variance of the norm as they are; the out-projection takes the mean.
    """
    copies = {"fold.weight", "out_norm.weight", "out_norm.bias"}
    wide = {name: x.repeat_interleave(squeeze, 0) if name in copies else x for name, x in narrow.items()}
    carrier, gate = narrow["in_proj.weight"].chunk(2)
    alone = torch.stack([carrier] + [torch.zeros_like(carrier)] * (squeeze - 1), dim=1).flatten(0, 1)
    wide["in_proj.weight"] = torch.cat((alone, gate.repeat_interleave(squeeze, 0)))
    kernel = narrow["local_tokens.conv.weight"]
    wide["local_tokens.conv.weight"] = torch.cat([kernel] + [torch.zeros_like(kernel)] * (squeeze - 1), dim=1)
    wide["out_proj.weight"] = narrow["out_proj.weight"].repeat_interleave(squeeze, 1) / squeeze
    return wide


def record(block: LoGVMambaBlock) -> dict[str, torch.Tensor]:
    """Intermediates of the next forward pass, under the names and in the layout of the golden files."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name, arrange=lambda x: x):
        return lambda module, args, output: seen.__setitem__(name, arrange(output))

    def scan(module, args, output):
        tokens, context, orders = args
        rows = tokens if context is None else torch.cat((tokens, context), dim=1)
        laid_out = []
        for (delta, b, c), decay, skip, bias, order in zip(
            module.project(tokens, context),
            module.A_log.chunk(module.directions),
            module.D.chunk(module.directions),
            module.dt_bias,
            orders,
        ):
            sequence, delta, b, c = (x if order is None else x[:, order] for x in (rows, delta, b, c))
            y = selective_scan(sequence, delta, -decay.exp(), b, c, skip, delta_bias=bias)
            laid_out.append((sequence, delta, b, c, y))
        for name, parts in zip(("scan_delta", "scan_out"), ([x[1] for x in laid_out], [x[4] for x in laid_out])):
            seen[name] = torch.cat([part.transpose(1, 2) for part in parts], dim=1)
        seen["sequence"] = laid_out[0][0].transpose(1, 2)
        seen["scan_B"], seen["scan_C"] = (
            torch.cat([x[index] for x in laid_out], dim=2).permute(0, 2, 3, 1) for index in (2, 3)
        )

    block.local_tokens.register_forward_hook(keep("local_tokens"))
    block.ssm.register_forward_hook(scan)
    block.out_norm.register_forward_hook(keep("out_norm"))
    block.out_proj.register_forward_hook(keep("mixer_out"))
    if isinstance(block.fold, torch.nn.Linear):
        block.local_tokens.conv.register_forward_hook(keep("dwc_silu", torch.nn.functional.silu))
        block.fold.register_forward_hook(keep("fold"))
    if block.global_tokens is not None:
        block.global_tokens.conv.register_forward_hook(keep("gtx_conv"))
        block.global_tokens.register_forward_hook(keep("global_tokens", lambda x: x.transpose(1, 2)))
    return seen


def assert_close(name: str, ours: torch.Tensor, theirs: torch.Tensor, relative: float = RELATIVE_LIMIT) -> None:
    assert ours.shape == theirs.shape, f"{name}: shape {tuple(ours.shape)}, stored {tuple(theirs.shape)}"
    error = (ours.double() - theirs.double()).abs().max().item()
    limit = relative * theirs.double().abs().max().item()
    assert error <= limit, f"{name}: largest error {error:.2e}, limit {limit:.2e}"


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1)


def test_block_equals_the_published_one(golden_block: Path, monkeypatch):
    hyper, stored = load(golden_block)
    reason = why_not(hyper)
    if reason:
        pytest.skip(reason)
    if hyper.get("mode") == "split" and not golden_block.stem.startswith("variant_papersplit"):
        monkeypatch.setitem(token_order._POSITIONS, "split", published_split)
    block = build(hyper).eval()
    names = {block_name(name.removeprefix("param/")): name for name in stored if name.startswith("param/")}
    weights = {ours: stored[theirs].clone().requires_grad_() for ours, theirs in names.items()}
    copies = hyper["squeeze"] if hyper.get("no_squeeze") else 1  # of every channel behind the fold
    state = widened(weights, copies) if copies > 1 else weights
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in block.state_dict().items()
    }
    seen = record(block)

    x = stored["in/x"].movedim(-1, 1).clone().requires_grad_()
    y = torch.func.functional_call(block, state, x, strict=True)
    (stored["in/grad_out"] * channels_last(y)).sum().backward()

    assert_close("out/y", channels_last(y), stored["out/y"])
    assert_close("grad/in/x", channels_last(x.grad), stored["grad/in/x"])
    compared = 0
    for name, value in stored.items():
        if name.startswith("mid/"):
            ours = seen[name.removeprefix("mid/")]
            if name in ("mid/fold", "mid/out_norm"):
                ours = ours[..., ::copies]
            assert_close(name, ours.reshape(value.shape) if ours.numel() == value.numel() else ours, value)
            compared += 1
        elif name.startswith("grad/param/"):
            assert_close(name, weights[block_name(name.removeprefix("grad/param/"))].grad, value)
            compared += 1
    assert compared > 0


def test_token_positions_equal_the_published_orders(golden_order: Path, monkeypatch):
    _, stored = load(golden_order)
    monkeypatch.setitem(token_order._POSITIONS, "split", published_split)
    orders = {name: value for name, value in stored.items() if name.startswith("order/")}
    assert orders
    for name, order in orders.items():
        _, mode, sizes = name.split("/")
        num_local, num_global = (int(part[1:]) for part in sizes.split("_"))
        local_at, global_at = token_positions(PLACEMENTS[mode], num_local, num_global)
        ours = torch.empty(num_local + num_global, dtype=torch.int64)
        ours[local_at] = torch.arange(num_local)
        ours[global_at] = -1 - torch.arange(num_global)
        assert ours.tolist() == order.tolist(), name


@pytest.mark.parametrize("backend", available_backends("cpu"))
def test_scan_equals_the_stored_values_and_gradients(golden_scan: Path, backend):
    hyper, stored = load(golden_scan)
    limit = {"float64": 1e-10, "float32": 1e-6}[hyper["stored_as"]]
    leaves = {name[3:]: value.double().requires_grad_() for name, value in stored.items() if name.startswith("in/")}
    grad_y = leaves.pop("grad_y").detach()
    # The files have the length last: (batch, channels, length) and (batch, groups, state, length).
    y = selective_scan(
        leaves["u"].transpose(1, 2),
        leaves["delta"].transpose(1, 2),
        leaves["A"],
        leaves["B"].permute(0, 3, 1, 2),
        leaves["C"].permute(0, 3, 1, 2),
        leaves.get("D"),
        delta_bias=leaves.get("delta_bias"),
        delta_softplus=hyper["delta_softplus"],
        backend=backend,
    ).transpose(1, 2)
    assert_close("out/y", y, stored["out/y"], limit)
    for name, gradient in zip(leaves, torch.autograd.grad(y, list(leaves.values()), grad_y)):
        assert_close(f"grad/{name}", gradient, stored[f"grad/{name}"], limit)


def published_grids(patch: list[int], strides: list[int]) -> list[list[int]]:
    """Grids that a patch leaves behind the global tokens' convolutions of the 2D decoder, finest first."""
    return [[-(-size // (4 * 2**stage * stride)) for size in patch] for stage, stride in enumerate(strides)]


def test_2d_network_equals_the_published_one(golden_net2d: Path, monkeypatch):
    hyper, stored = load(golden_net2d)
    shared_weights = golden_net2d.with_name(f"{golden_net2d.stem.removesuffix('_b')}.safetensors")
    weights = stored if any(name.startswith("param/") for name in stored) else load(shared_weights)[1]
    if hyper["mode"] == "split":
        monkeypatch.setitem(token_order._POSITIONS, "split", published_split)
    widths = hyper["dims"]
    _, channels, *patch = hyper["input_shape"]
    strides = hyper["gtx_strides"][::-1]  # the files go up from the bottom, our arguments down from the finest stage
    grids = published_grids(patch, strides)
    assert [prod(grid) for grid in grids[::-1]] == hyper["gtx_outs"]
    network = LoGVMambaSwinUNet(
        input_channels=channels,
        n_stages=len(widths) + 1,
        features_per_stage=[widths[0], *widths],
        strides=[1, 4, *[2] * (len(widths) - 1)],
        num_classes=hyper["classes"],
        n_blocks_per_stage=hyper["encoder_depths"],
        n_blocks_per_stage_decoder=hyper["decoder_depth"],
        deep_supervision=hyper["deep_supervision"],
        placement=PLACEMENTS[hyper["mode"]],
        squeeze=hyper["squeeze"],
        expand=hyper["expand"],
        global_strides=strides,
        channels_per_token=hyper["depth_squeezes"][::-1],
        canonical_grids=grids,
    ).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == hyper["param_count_trainable"]
    names = swin_names(name.removeprefix("param/") for name in weights if name.startswith("param/"))
    network.load_state_dict({ours: weights[f"param/{theirs}"].float() for theirs, ours in names.items()}, strict=True)

    seen = {}
    for kind, stages in (("encoder_layer", network.encoder.stages), ("decoder_stage", network.decoder.stages)):
        for index, stage in enumerate(stages):
            stage[-1].register_forward_hook(lambda _m, _a, y, name=f"{kind}{index}": seen.__setitem__(name, y))
    with torch.no_grad():
        outputs = network(stored["in/x"].float())

    logits = [name for name in stored if name.startswith("out/")]
    assert sorted(logits) == [f"out/logits_{index}" for index in range(len(outputs))]
    for index, ours in enumerate(outputs):
        theirs = stored[f"out/logits_{index}"]
        assert ours.shape == theirs.shape
        error = (ours - theirs).abs().max().item()
        assert error <= LOGITS_LIMIT, f"logits {index}: largest error {error:.2e}, limit {LOGITS_LIMIT:.0e}"
    intermediates = [name for name in stored if name.startswith("mid/")]
    assert intermediates
    for name in intermediates:
        assert_close(name, channels_last(seen[name.removeprefix("mid/")]), stored[name])


def test_network_equals_the_published_one(golden_net3d: Path):
    hyper, stored = load(golden_net3d)
    shared_weights = golden_net3d.with_name(f"{golden_net3d.stem.removesuffix('_b')}.safetensors")
    weights = stored if any(name.startswith("param/") for name in stored) else load(shared_weights)[1]
    widths = hyper["features_per_stage"]
    num_stages = hyper["n_stages"]
    stages = hyper["stages"]
    network = LoGVMambaUNet(
        input_channels=stored["in/x"].shape[1],
        n_stages=num_stages + 1,
        features_per_stage=[*widths, widths[-1]],
        conv_op=torch.nn.Conv3d,
        kernel_sizes=hyper["kernel"],
        strides=[[1] * 3, [2] * 3, *hyper["strides"][1:]],
        num_classes=hyper["classes"],
        conv_bias=True,
        squeeze=hyper["squeeze"],
        expand=hyper["expand"],
        placement=PLACEMENTS[hyper["depth_mode"]],
        global_strides=[stage["gtx_stride"] or 1 for stage in stages],
        channels_per_token=[stage["depth_squeeze"] or 1 for stage in stages],
        canonical_grids=[stage["gtx_out"] or [1] * 3 for stage in stages],
        seg_heads="last",
    ).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == hyper["param_count_trainable"]
    state = network.state_dict()
    names = log_vmamba_3d_names(name.removeprefix("param/") for name in weights if name.startswith("param/"))
    for theirs, ours in names.items():
        state[ours].copy_(weights[f"param/{theirs}"])
    loaded = set(names.values())
    assert loaded == set(state)

    seen = {}
    for index, mixer in enumerate(network.encoder.mixers):
        mixer.register_forward_hook(lambda _m, _a, y, name=f"encoder_stage{index}": seen.__setitem__(name, y))
    for index, stage in enumerate(network.decoder.stages):
        stage.register_forward_hook(lambda _m, _a, y, name=f"decoder_stage{index}": seen.__setitem__(name, y))
    with torch.no_grad():
        logits = network(stored["in/x"].float())

    step = hyper["logits_stride"]
    error = (logits[:, :, ::step, ::step, ::step] - stored["out/logits_strided"]).abs().max().item()
    assert error <= LOGITS_LIMIT, f"logits: largest error {error:.2e}, limit {LOGITS_LIMIT:.0e}"
    flat = logits.double().flatten(2)
    assert (flat.mean(-1) - stored["out/logits_mean"]).abs().max() <= LOGITS_LIMIT
    assert (flat.std(-1) - stored["out/logits_std"]).abs().max() <= LOGITS_LIMIT
    intermediates = [name for name in stored if name.startswith("mid/")]
    assert intermediates
    for name in intermediates:
        stage, _, step = name.removeprefix("mid/").partition("_every")
        every = slice(None, None, int(step))
        assert_close(name, seen[stage][:, :, every, every, every], stored[name])
