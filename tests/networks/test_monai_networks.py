"""MONAI's networks: published sizes, the same numbers as MONAI itself, idle norms, patches, and their arguments."""

import json
import sys
from pathlib import Path

import pytest
import torch
from monai.networks import nets

from nnunet_logvmamba.errors import OtherPatchError
from nnunet_logvmamba.networks import UNETR, MonaiUNet, SwinUNETR, catalogue
from nnunet_logvmamba.networks.costs import summarize

COUNTS = Path(__file__).resolve().parents[3] / "shared" / "golden" / "peers"
COUNTS = COUNTS / "counts_segmamba_eoformer_nested_monai.json"
OURS = {
    "unet_res2": lambda args: (MonaiUNet, {"strides": [1, *args["strides"]], "features_per_stage": args["channels"]}),
    "unetr": lambda args: (UNETR, {"patch_size": args["img_size"]}),
    "swinunetr": lambda args: (SwinUNETR, {key: args[key] for key in ("feature_size", "use_v2") if key in args}),
}


def published() -> list[tuple[str, dict]]:
    """The published sizes of the file beside the golden ones; none where there is none."""
    networks = json.loads(COUNTS.read_text())["networks"] if COUNTS.is_file() else {}
    return [(name, entry) for name, entry in networks.items() if name.startswith(tuple(OURS))]


SIZES = published()


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        pytest.param(name, entry, id=name, marks=pytest.mark.slow if "swinunetr_3d" in name else ())
        for name, entry in SIZES
    ],
)
def test_parameters_and_multiply_adds_are_the_published_ones(name, entry):
    kind, arguments = next(ours for start, ours in OURS.items() if name.startswith(start))(entry["arguments"])
    _, channels, *patch = entry["input"]
    if kind is not UNETR:
        arguments["spatial_dims"] = len(patch)
    with torch.device("meta"):
        network = kind(channels, entry["output"][1], **arguments)
    summary = summarize(network, channels, patch, batch_size=1)
    assert (summary.parameters, summary.multiply_adds) == (entry["parameters"], entry["macs_conv_and_matmul"])


def test_without_einops_those_who_need_it_say_so_and_the_others_are_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "einops", None)
    for name in ("UNETR", "SwinUNETR"):
        with pytest.raises(ValueError, match=f"{name} needs einops, which is not installed: pip install einops"):
            catalogue.row(name).load()
    assert {row.load().__name__ for row in catalogue.NETWORKS if row.package is None} >= {"MonaiUNet", "NestedFormer"}


SMALL_UNETR = {"hidden_size": 24, "mlp_dim": 24, "num_heads": 4, "feature_size": 4}
PAIRS = {
    "UNet": (
        lambda: MonaiUNet(1, 2, [1, (1, 2), 2], [4, 8, 8], 2),
        lambda: nets.UNet(2, 1, 2, (4, 8, 8), ((1, 2), (2, 2)), num_res_units=2),
    ),
    "UNETR": (
        lambda: UNETR(1, 2, [32, 48], **SMALL_UNETR),
        lambda: nets.UNETR(1, 2, (32, 48), dropout_rate=0.1, spatial_dims=2, **SMALL_UNETR),
    ),
    "SwinUNETR": (
        lambda: SwinUNETR(1, 2, 2, feature_size=12),
        lambda: nets.SwinUNETR(1, 2, feature_size=12, drop_rate=0.1, spatial_dims=2),
    ),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_weights_and_logits_are_those_of_monai(pair):
    ours, theirs = (make().eval() for make in pair)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 1, 32, 64 if isinstance(ours, SwinUNETR) else 48)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (lambda size: MonaiUNet(1, 2, [1, (1, 2), 2], [4, 8, 8], 2), (7, 9)),
        (lambda size: MonaiUNet(1, 2, [1, 2, (2, 1, 2)], [4, 8, 8], 3), (7, 9, 5)),
        (lambda size: UNETR(1, 2, size, **SMALL_UNETR), (20, 5)),
        (lambda size: SwinUNETR(1, 2, 2, feature_size=12), (33, 5)),
    ],
)
def test_sizes_that_the_strides_do_not_divide_come_back_as_they_were(network, size):
    assert network(size)(torch.randn(2, 1, *size)).shape == (2, 2, *size)


def test_the_norms_of_unetr_that_nothing_uses_are_frozen_and_all_else_learns():
    network = UNETR(1, 2, [32, 32], **SMALL_UNETR)
    network(torch.randn(1, 1, 32, 32)).square().sum().backward()
    idle = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert len(idle) == 24
    assert idle == [name for name, parameter in network.named_parameters() if not parameter.requires_grad]


def test_another_patch_for_unetr_and_weights_of_another_are_refused_in_one_sentence():
    network = UNETR(1, 2, [32, 48], **SMALL_UNETR)
    with pytest.raises(ValueError, match="the image is 32 x 32 and this network .* 32 x 48 alone: give it patches"):
        network(torch.randn(1, 1, 32, 32))
    with pytest.raises(
        OtherPatchError, match="another patch: vit.* holds 6 positions, and a patch of 32 x 32 has 4; build"
    ):
        UNETR(1, 2, [32, 32], **SMALL_UNETR).load_state_dict(network.state_dict())


def test_recomputed_stages_of_swin_unetr_give_the_same_gradients():
    plain, saving = (SwinUNETR(1, 2, 2, feature_size=12, drop_rate=0.0, checkpointing=on) for on in (False, True))
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(1, 1, 64, 32)
    for network in (plain, saving):
        network(x).square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_plan_gives_its_strides_and_the_published_widths():
    strides = [[1, 1], *[[2, 2]] * 5]
    given = MonaiUNet.from_plan({"strides": strides, "kernel_sizes": [[3, 3]] * 6}, (64, 64))
    assert given == {"strides": strides, "features_per_stage": [16, 32, 64, 128, 256, 256], "spatial_dims": 2}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MonaiUNet(1, 2, [1, 2], [4, 8, 8], 2), "strides has 2 entries and features_per_stage 3"),
        (lambda: MonaiUNet(1, 2, [2, 2], [4, 8], 2), r"the first stride is \(2, 2\)"),
        (lambda: MonaiUNet(1, 2, [1, (2, 2, 2)], [4, 8], 2), r"strides\[1\] is \(2, 2, 2\)"),
        (lambda: MonaiUNet(1, 2, [1, 2], [4, 8], 4), "spatial_dims is 4; 2 or 3 is needed"),
        (lambda: MonaiUNet(1, 2, [1, 2], [4, 8], 2, dropout=-1), "dropout is -1"),
        (lambda: MonaiUNet(1, 2, [1, 2], [4, 8], 2, deep_supervision=True), "deep_supervision needs several outputs"),
        (lambda: MonaiUNet(1, 2, [1, 2], [4, 8], 2)(torch.randn(1, 1, 2, 1)), "2 x 1 voxels is too small .* 3 x 1"),
        (lambda: UNETR(1, 2, [32]), r"patch_size is \[32\]; 2 or 3 sides are needed"),
        (lambda: UNETR(1, 2, 32), "patch_size is 32; a list"),
        (lambda: UNETR(1, 2, [32, 32], hidden_size=25), "hidden_size is 25; a multiple of num_heads, 12"),
        (lambda: UNETR(1, 2, [32, 32], dropout_rate=1), "dropout_rate is 1"),
        (lambda: SwinUNETR(1, 2, 2, feature_size=16), "feature_size is 16; a multiple of 12"),
        (lambda: SwinUNETR(1, 2, 2, drop_rate="0.1"), "drop_rate is '0.1'"),
        (lambda: SwinUNETR(1, 2, 2, img_size=64), "'img_size'"),
        (lambda: SwinUNETR(1, 2, 2, feature_size=12)(torch.randn(1, 1, 32, 9)), "32 x 9 voxels is too small .* 33 x 9"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()
