"""U-Mamba: published sizes, the patch that channel tokens are tied to, odd sizes, and half precision."""

import json
from math import prod
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from nnunet_logvmamba.layers import MambaLayer
from nnunet_logvmamba.networks import UMambaBot, UMambaEnc
from nnunet_logvmamba.networks.costs import summarize

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


def published() -> dict[str, dict]:
    """The published sizes, by name, of the file beside the golden ones; none where there is none."""
    path = Path(__file__).resolve().parents[3] / "shared" / "golden" / "peers" / "counts_umamba_swin.json"
    if not path.is_file():
        return {}
    return {name: entry for name, entry in json.loads(path.read_text()).items() if name.startswith("umamba_")}


def of_plan(plan: dict, channels: int, classes: int, enc: bool, **options) -> UMambaBot | UMambaEnc:
    names = (
        "n_stages",
        "features_per_stage",
        "kernel_sizes",
        "strides",
        "n_conv_per_stage",
        "n_conv_per_stage_decoder",
    )
    if enc:
        options["patch_size"] = plan["patch_size"]
    return (UMambaEnc if enc else UMambaBot)(
        input_channels=channels,
        num_classes=classes,
        conv_op=CONVOLUTIONS[len(plan["patch_size"])],
        **{name: plan[name] for name in names},
        **options,
    )


SIZES = [(name, entry) for name, entry in published().items() if "plan" in entry]


@pytest.mark.parametrize(("name", "entry"), SIZES, ids=[name for name, _ in SIZES])
def test_parameters_multiply_adds_and_states_are_the_published_ones(name, entry):
    _, channels, *patch = entry["input"]
    with torch.device("meta"):
        network = of_plan(entry["plan"], channels, entry["outputs"][0][1], "_enc_" in name, deep_supervision=True)
    parts = {
        part: sum(p.numel() for p in network.get_submodule(part).parameters()) for part in entry["parameters_by_module"]
    }
    assert parts == entry["parameters_by_module"]
    assert network.blocks == entry["plan"]["blocks_per_stage_encoder_used"]
    assert network.blocks_up == entry["plan"]["blocks_per_stage_decoder_used_from_bottom"]
    summary = summarize(network, channels, patch, batch_size=1)
    assert summary.parameters == entry["total"]
    assert summary.state_updates == entry["scan_state_updates"]
    # Theirs convolves after up-sampling, on as many more voxels, and causally on three more tokens.
    published = entry["macs_by_module"]
    spared = sum(
        published[f"decoder.upsample_layers.{step}"] * (1 - 1 / prod(stride))
        for step, stride in enumerate(reversed(network.strides[1:]))
    )
    inner = [layer.mamba.out_proj.in_features for layer in network.modules() if isinstance(layer, MambaLayer)]
    assert summary.multiply_adds + spared + 3 * 4 * sum(inner) == entry["macs_conv_and_matmul"]


def small(enc: bool = True, dims: int = 3, patch=(16, 16, 16), **options) -> UMambaBot | UMambaEnc:
    """Three stages; the last has 64 voxels for the usual patch and 64 channels."""
    if enc:
        options = {"patch_size": patch} | options
    return (UMambaEnc if enc else UMambaBot)(
        1, 3, [8, 16, 64], CONVOLUTIONS[dims], 3, [[1] * dims, [2] * dims, [2] * dims], 2, **options
    )


def test_channel_tokens_are_where_a_map_has_no_more_voxels_than_channels():
    assert small().tied == [2]
    assert small(patch=(16, 16, 17)).tied == []  # 4 x 4 x 5 voxels, as the convolutions leave them
    assert small(channel_tokens=False).tied == []
    assert small().is_of_one_patch
    assert not small(channel_tokens=False).is_of_one_patch
    assert small(patch=None, channel_tokens=False).tied == []


def test_another_patch_than_the_one_it_was_made_for_is_refused_in_one_sentence():
    network = small().eval()
    words = "made for patches of 16 x 16 x 16, since the tokens of its stage 2 are channels of maps of that size"
    with torch.no_grad():
        for size in ((16, 16, 32), (8, 32, 16)):  # the second has as many voxels
            with pytest.raises(ValueError, match=words):
                network(torch.zeros(1, 1, *size))
        assert network(torch.zeros(1, 1, 15, 16, 13)).shape[2:] == (15, 16, 13)
        assert small(channel_tokens=False)(torch.zeros(1, 1, 16, 16, 32)).shape[2:] == (16, 16, 32)
    for other in (small(patch=(32, 16, 16)), small(channel_tokens=False)):
        with pytest.raises(ValueError, match="for another patch: the Mamba layer of its stage 2 has tokens of"):
            network.load_state_dict(other.state_dict() if other.tied else small(patch=(8, 16, 16)).state_dict())
    with pytest.raises(ValueError, match="patch_size is None; channel tokens need it"):
        small(patch=None)
    with pytest.raises(ValueError, match="one whole number for each of 3 axes"):
        small(patch=(16, 16))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("enc", [False, True])
def test_sizes_that_the_strides_do_not_divide_come_back_as_they_were(enc, dims):
    size = (13, 16, 15)[:dims]
    network = small(enc, dims, patch=size, deep_supervision=True)
    outputs = network(torch.randn(1, 1, *size))
    assert [tuple(output.shape[2:]) for output in outputs] == [size, (6, 8, 8)[:dims]]
    with pytest.raises(ValueError, match=f"of {' x '.join('4' * dims)} voxels is too small .* at least 5 x 4"):
        small(enc, dims, patch=(4,) * dims)(torch.zeros(1, 1, *[4] * dims))


def test_the_plan_is_left_as_it_was_and_says_how_many_blocks_there_are():
    counts = {"n_conv_per_stage": [2, 3, 3], "n_conv_per_stage_decoder": [2, 2]}
    network = small(**counts)
    assert counts == {"n_conv_per_stage": [2, 3, 3], "n_conv_per_stage_decoder": [2, 2]}
    assert (network.blocks, network.blocks_up) == ([2, 3, 1], [2, 2])
    assert [stage.name for stage in network.costs_by_stage()][:4] == [
        "stem, 2 blocks",
        "encoder 0, 2 blocks",
        "encoder 1, 3 blocks",
        "encoder 2, 1 block",
    ]
    residual = {"n_blocks_per_stage": (1, 3, 4), "n_conv_per_stage_decoder": (1, 1)}
    assert UMambaBot.from_plan(residual, [16, 16, 16])["n_conv_per_stage"] == (1, 3, 4)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"conv_op": nn.Linear}, "conv_op is .*Linear"),
        ({"features_per_stage": [8, 16]}, "features_per_stage has 2 entries for 3 stages; 3 are needed"),
        ({"n_conv_per_stage_decoder": [1, 1, 1]}, "n_conv_per_stage_decoder has 3 entries for 3 stages; 2 are needed"),
        ({"strides": [[2] * 3] * 3}, "stride"),
        ({"kernel_sizes": 2}, r"kernel_sizes\[0\] is 2; an odd number"),
        ({"deep_supervision": "no"}, "deep_supervision is 'no'"),
        ({"backend": "fast"}, "Unknown scan backend 'fast'"),
        ({"norm_op": nn.BatchNorm3d}, "'norm_op'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(wrong, words):
    arguments = {
        "input_channels": 1,
        "n_stages": 3,
        "features_per_stage": 8,
        "conv_op": nn.Conv3d,
        "kernel_sizes": 3,
        "strides": [[1] * 3, [2] * 3, [2] * 3],
        "num_classes": 2,
    }
    with pytest.raises(ValueError, match=words):
        UMambaBot(**arguments | wrong)


def test_single_numbers_may_be_numpys():
    network = UMambaBot(1, 2, np.int64(8), nn.Conv3d, np.int64(3), [[1] * 3, [2] * 3], 2)
    assert network.encoder.stages[1][0].conv1.weight.shape == (8, 8, 3, 3, 3)


def test_every_weight_is_stored_once():
    network = small()
    assert len({tensor.data_ptr() for tensor in network.state_dict().values()}) == len(network.state_dict())


@pytest.fixture(scope="module")
def crops(shared) -> tuple[torch.Tensor, torch.Tensor]:
    """The middle of some hippocampus scans, (cases, 1, 8, 8, 8), normalised, and which voxels are hippocampus."""
    folder = shared / "data" / "hippocampus"
    images, labels = [], []
    for path in sorted((folder / "imagesTr").glob("*.nii*"))[:24]:
        for source, kept in ((path, images), (folder / "labelsTr" / path.name, labels)):
            data = torch.from_numpy(np.asarray(nibabel.load(source).dataobj, dtype=np.float32))
            kept.append(data[tuple(slice(size // 2 - 4, size // 2 + 4) for size in data.shape)][None])
    x = torch.stack(images)
    return (x - x.mean((1, 2, 3, 4), keepdim=True)) / x.std((1, 2, 3, 4), keepdim=True), torch.stack(labels) > 0


def train(network: nn.Module, crops: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype, steps: int) -> list[float]:
    """Losses of a training by nnU-Net's recipe, Dice and cross-entropy on batches of two, in mixed precision."""
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.99, nesterov=True, weight_decay=3e-5)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    criterion = DC_and_CE_loss(
        {"batch_dice": False, "do_bg": False, "smooth": 1e-5}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    batches = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        cases = torch.randperm(len(crops[0]), generator=batches)[:2]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = network(crops[0][cases])
            loss = criterion(logits, crops[1][cases].float())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    return losses


@pytest.fixture(scope="module")
def single(crops) -> dict[bool, list[float]]:
    """Losses in single precision, of Bot and Enc."""
    return {enc: train(seeded(enc), crops, torch.float32, 300) for enc in (False, True)}


def seeded(enc: bool) -> nn.Module:
    """Two stages, so that the deepest map has 4 x 4 x 4 voxels: on a CPU, oneDNN 3.12 leaves memory that nobody has
    written in the bfloat16 gradient of kernels over 2 x 2 x 2.
    """
    torch.manual_seed(0)
    options = {"patch_size": [8, 8, 8]} if enc else {}
    network = (UMambaEnc if enc else UMambaBot)(1, 2, [8, 64], nn.Conv3d, 3, [[1] * 3, [2] * 3], 2, **options)
    assert not enc or network.tied == [1]
    return network


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("enc", [False, True], ids=["Bot", "Enc"])
def test_training_in_half_precision_stays_finite_for_300_steps_and_follows_single(enc, dtype, crops, single):
    losses = train(seeded(enc), crops, dtype, 300)
    assert np.isfinite(losses).all()
    end, expected = np.mean(losses[-50:]), np.mean(single[enc][-50:])
    assert end == pytest.approx(expected, abs=0.1 * abs(expected))
