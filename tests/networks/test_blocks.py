"""Norms and interpolation by other kernels on a CPU, and blocks that recompute: the numbers are those of torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_logvmamba.layers import nothing_recomputed
from nnunet_logvmamba.networks.blocks.interpolation import interpolate
from nnunet_logvmamba.networks.blocks.norms import INSTANCE_NORMS, faster
from nnunet_logvmamba.networks.blocks.residual import ResidualBlock

TORCHS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("options", [{}, {"affine": True}, {"affine": True, "track_running_stats": True}], ids=str)
@pytest.mark.parametrize("spatial", [(9, 7), (4, 6, 5)])
def test_an_instance_norm_gives_torchs_outputs_and_gradients(spatial, options):
    dims = len(spatial)
    torch.manual_seed(0)
    ours, torchs = INSTANCE_NORMS[dims](3, eps=1e-3, **options), TORCHS[dims](3, eps=1e-3, **options)
    assert type(ours) is faster(TORCHS[dims])
    assert isinstance(ours, TORCHS[dims])
    for weight in ours.parameters():
        nn.init.normal_(weight)
    torchs.load_state_dict(ours.state_dict())
    for training in (True, False):
        x = (5 + 2 * torch.randn(2, 3, *spatial)).requires_grad_()
        found = []
        for norm in (ours.train(training), torchs.train(training)):
            y = norm(x)
            found.append([y, *torch.autograd.grad(y.sin().sum(), [x, *norm.parameters()])])
        assert all(relative(one, other) < 1e-5 for one, other in zip(*found, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), torchs.state_dict().values(), strict=True))
    assert relative(ours(x[0]), torchs(x[0])) < 1e-5  # without a batch axis


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_an_instance_norm_has_torchs_dtype_under_autocast(dtype):
    x = torch.randn(2, 3, 4, 6, 5)
    ours, torchs = INSTANCE_NORMS[3](3, affine=True), nn.InstanceNorm3d(3, affine=True)
    with torch.autocast("cpu", dtype=dtype):
        for given in (x, x.to(dtype)):
            one, other = ours(given), torchs(given)
            assert one.dtype is other.dtype
            assert relative(one.float(), other.float()) < 2 * torch.finfo(other.dtype).eps


def test_what_is_exported_is_an_instance_norm_and_an_interpolation():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = INSTANCE_NORMS[3](3, affine=True)

        def forward(self, x):
            return interpolate(self.norm(x), (8, 9, 10))

    module, x = Both(), torch.randn(1, 3, 4, 6, 5)
    graph = str(torch.export.export(module, (x,)).graph)
    assert "instance_norm" in graph
    assert "upsample_trilinear3d" in graph
    assert relative(torch.export.export(module, (x,)).module()(x), module(x)) < 1e-5


@pytest.mark.parametrize(
    ("before", "after"), [((5, 4), (10, 8)), ((5, 4, 3), (10, 8, 6)), ((5, 4, 3), (9, 4, 7)), ((1, 6), (2, 5))], ids=str
)
def test_interpolation_is_torchs_up_and_down(before, after):
    x = torch.randn(2, 3, *before, dtype=torch.float64, requires_grad=True)
    mode = "bilinear" if len(before) == 2 else "trilinear"
    found = []
    for y in (interpolate(x, after), F.interpolate(x, size=after, mode=mode, align_corners=False)):
        found.append((y, *torch.autograd.grad(y.sin().sum(), x)))
    assert all(torch.allclose(one, other, rtol=1e-12, atol=1e-12) for one, other in zip(*found, strict=True))
    assert found[0][0].is_contiguous()
    half = x.detach().bfloat16()
    assert torch.equal(interpolate(half, after), F.interpolate(half, size=after, mode=mode, align_corners=False))


def test_a_default_device_of_another_kind_leaves_interpolation_where_the_map_is():
    x = torch.randn(1, 2, 3, 4)
    expected = interpolate(x, (6, 8))
    with torch.device("meta"):
        assert torch.equal(interpolate(x, (6, 8)), expected)


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d, nn.Identity])
@pytest.mark.parametrize(
    ("nonlin", "options"),
    [(nn.LeakyReLU, {"inplace": True}), (nn.ReLU, {}), (nn.RReLU, {}), (nn.Dropout, {"p": 0.5})],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_residual_block_has_the_gradients_of_one_that_recomputes_nothing(nonlin, options, norm):
    block = ResidualBlock(
        nn.Conv2d, 2, 3, (3, 3), 1, project=True, conv_bias=True, norm_op=norm, norm_op_kwargs={}, nonlin=nonlin,
        nonlin_kwargs=options,
    )  # fmt: skip
    x = torch.randn(1, 2, 8, 8)

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(0)
        return torch.autograd.grad(block(x).square().sum(), list(block.parameters()))

    found = gradients()
    with nothing_recomputed():
        expected = gradients()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
