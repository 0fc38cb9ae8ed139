"""Does training stay finite and follow float32 in half precision, also on inputs that nobody would choose?"""

import itertools

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from nnunet_logvmamba.layers import LoGVMambaBlock
from nnunet_logvmamba.networks import LoGVMambaUNet

STEPS = 300
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def volume(shared) -> torch.Tensor:
    """The middle of a hippocampus scan, (1, 1, 16, 16, 16), as nnU-Net normalises it, and its labels."""
    folder = shared / "data" / "hippocampus"
    image = sorted((folder / "imagesTr").glob("*.nii*"))[0]
    label = folder / "labelsTr" / image.name
    crops = []
    for path in (image, label):
        data = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
        middle = tuple(slice(size // 2 - 8, size // 2 + 8) for size in data.shape)
        crops.append(torch.from_numpy(data[middle].copy())[None, None])
    image, label = crops
    return torch.cat(((image - image.mean()) / image.std(), label), dim=1)


def small_block(**settings) -> LoGVMambaBlock:
    torch.manual_seed(0)
    settings = {"canonical_grid": (4, 4, 4), "global_stride": 2} | settings
    return LoGVMambaBlock(16, 3, **settings)


def train(model: nn.Module, x: torch.Tensor, target: torch.Tensor, dtype: torch.dtype, steps: int) -> list[float]:
    """Losses of a training with autocast to ``dtype``, scaled as nnU-Net scales float16."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    losses = []
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = model(x)
        loss = nn.functional.mse_loss(y.float(), target)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all() or dtype == torch.float16, (
                f"gradient of {name} in step {len(losses)}"
            )
        nn.utils.clip_grad_norm_(model.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return losses


def assert_follows(losses: list[float], single: list[float]) -> None:
    """The same way down: what is left at the end differs by less than a twentieth of what was gained."""
    assert np.isfinite(losses).all()
    gained = single[0] - np.mean(single[-20:])
    assert gained > 0.2 * single[0], "float32 learns nothing here, so there is nothing to follow"
    assert abs(np.mean(losses[-20:]) - np.mean(single[-20:])) < gained / 20


@pytest.fixture(scope="module")
def in_single(volume) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Input and target of the block, and the losses of its training in float32, which every half is to follow."""
    torch.manual_seed(2)
    image, label = volume[:, :1, 4:12, 4:12, 4:12], volume[:, 1:, 4:12, 4:12, 4:12]
    x = image * torch.randn(1, 16, 1, 1, 1)
    target = label * torch.randn(1, 16, 1, 1, 1)
    return x, target, train(small_block(), x, target, torch.float32, STEPS)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_block_trains_for_300_steps_in_half_precision_as_in_single(dtype, in_single):
    x, target, single = in_single
    assert_follows(train(small_block(), x, target, dtype, STEPS), single)


def small_network() -> LoGVMambaUNet:
    torch.manual_seed(0)
    return LoGVMambaUNet(
        1,
        3,
        [16, 16, 32],
        nn.Conv3d,
        3,
        [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        1,
        drop_path=0.0,
        seg_heads="last",
    )


def test_the_network_trains_in_bfloat16_at_16_cubed_as_in_single(volume):
    image, label = volume[:, :1], volume[:, 1:]
    single = train(small_network(), image, label, torch.float32, 60)
    assert_follows(train(small_network(), image, label, torch.bfloat16, 60), single)


def constant(x: torch.Tensor) -> torch.Tensor:
    return torch.full_like(x, 3.0)


def zero(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x)


def outlier(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x.view(-1)[7], x.view(-1)[-9] = 1e6, -1e6
    return x


@pytest.mark.parametrize("spoil", [constant, zero, outlier], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_network_stays_finite_on_images_that_nobody_would_choose(dtype, spoil, volume):
    losses = train(small_network(), spoil(volume[:, :1]), volume[:, 1:], dtype, 15)
    assert np.isfinite(losses).all()


def set_decay(model: LoGVMambaBlock, log_decay: float) -> None:
    nn.init.constant_(model.ssm.A_log, log_decay)


def set_step(model: LoGVMambaBlock, bias: float) -> None:
    nn.init.constant_(model.ssm.dt_bias, bias)


EXTREMES = {
    "decay near 0": lambda model: set_decay(model, -40.0),
    "decay near minus infinity": lambda model: set_decay(model, 80.0),
    "steps near 0": lambda model: set_step(model, -100.0),
    "steps where softplus is linear": lambda model: set_step(model, 100.0),
    "steps and decays both": lambda model: (set_step(model, 30.0), set_decay(model, 20.0)),
    "nothing": lambda model: None,
}


@pytest.mark.parametrize(("extreme", "dtype"), list(itertools.product(EXTREMES, [torch.float32, *HALVES])), ids=str)
@pytest.mark.parametrize("spoil", [constant, zero, outlier, torch.clone], ids=lambda f: f.__name__)
@pytest.mark.parametrize("backend", ["numba", "chunked"])
def test_a_block_stays_finite_at_the_ends_of_its_parameters(backend, spoil, extreme, dtype):
    torch.manual_seed(3)
    model = small_block(backend=backend)
    EXTREMES[extreme](model)
    x = spoil(torch.randn(2, 16, 5, 6, 7))
    if dtype == torch.float16:
        x = x.clamp(-6e4, 6e4)  # the largest that float16 can hold
    x.requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = model(x)
    assert y.isfinite().all()
    y.float().square().mean().backward()
    assert x.grad.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
