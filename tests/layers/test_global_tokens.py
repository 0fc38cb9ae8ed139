"""Global tokens on their canonical grid, on any other, and what is refused."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from nnunet_logvmamba.layers import GLOBAL_STRIDES, GlobalTokens
from nnunet_logvmamba.layers.global_tokens import resampling


@pytest.mark.parametrize("patch", [(16, 16, 16), (11, 8, 9), (5, 7, 5), (2, 3, 2), (1, 1, 1), (24, 16, 32)])
def test_a_constant_map_gives_the_same_tokens_on_any_grid(patch):
    tokens = GlobalTokens(6, 3, stride=1, channels_per_token=2, canonical_grid=(8, 8, 8)).double()
    constant = torch.randn(1, 6, 1, 1, 1, dtype=torch.float64)
    canonical = tokens(constant.expand(1, 6, 8, 8, 8))
    assert torch.allclose(tokens(constant.expand(1, 6, *patch)), canonical, rtol=1e-10)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_on_a_multiple_of_the_grid_weights_are_interpolated_and_scaled(factor):
    weight = torch.randn(1, 5, 8, dtype=torch.float64)
    expected = F.interpolate(weight, size=8 * factor, mode="linear", align_corners=False) / factor
    assert torch.allclose(weight @ resampling(8, 8 * factor).T, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("canonical", "actual"), [(32, 48), (32, 100), (8, 11), (32, 256), (32, 7)])
def test_in_half_precision_weights_are_resampled_as_exactly_as_it_can_tell(canonical, actual, dtype):
    assert torch.equal(resampling(canonical, actual, dtype), resampling(canonical, actual, torch.float32).to(dtype))


def test_on_a_coarser_grid_every_weight_counts():
    for actual in range(1, 8):
        matrix = resampling(8, actual)
        assert torch.allclose(matrix.sum(dim=0), torch.ones(8, dtype=torch.float64))
        assert torch.allclose(matrix, matrix.flip(0, 1))  # left and right alike


@pytest.mark.parametrize(("spatial_dims", "sizes"), [(2, range(1, 20)), (3, (1, 2, 3, 5, 9))])
def test_every_stride_takes_every_map(spatial_dims, sizes):
    for stride, size in itertools.product(GLOBAL_STRIDES, sizes):
        tokens = GlobalTokens(4, spatial_dims, stride, 2, (2,) * spatial_dims)
        y = tokens(torch.randn(1, 4, *[size] * spatial_dims))
        assert y.shape == (1, 2, 4)
        assert y.isfinite().all(), (stride, size)


def test_gradients_reach_the_weights_through_the_resampling():
    tokens = GlobalTokens(4, 2, 2, 1, (8, 8))
    tokens(torch.randn(1, 4, 10, 6)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in tokens.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 3}, r"global stride is \(3, 3, 3\)"),
        ({"stride": (1, 2)}, r"global stride is \(1, 2\); .* each of 3 axes"),
        ({"channels_per_token": 4}, "6 token channels are not divisible by channels_per_token 4"),
        ({"canonical_grid": (8, 8)}, "canonical_grid is"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    good = {"stride": 2, "channels_per_token": 2, "canonical_grid": (4, 4, 4)}
    with pytest.raises(ValueError, match=message):
        GlobalTokens(6, 3, **(good | arguments))
