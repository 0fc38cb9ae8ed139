"""Global tokens on their canonical grid, on any other, and what is refused."""

import itertools

import pytest
import torch

from nnunet_logvmamba.layers import GLOBAL_STRIDES, GlobalTokens


@pytest.mark.parametrize("patch", [(16, 16, 16), (32, 32, 32), (24, 16, 32)])
def test_a_constant_map_gives_the_same_tokens_on_a_finer_grid(patch):
    tokens = GlobalTokens(6, 3, stride=1, channels_per_token=2, canonical_grid=(8, 8, 8))
    constant = torch.randn(1, 6, 1, 1, 1)
    canonical = tokens(constant.expand(1, 6, 8, 8, 8))
    assert torch.allclose(tokens(constant.expand(1, 6, *patch)), canonical, atol=1e-5)


def test_equal_weights_give_the_same_tokens_of_a_constant_map_on_any_grid():
    tokens = GlobalTokens(4, 3, stride=1, channels_per_token=1, canonical_grid=(8, 8, 8))
    torch.nn.init.constant_(tokens.fc.weight, 0.01)
    constant = torch.randn(1, 4, 1, 1, 1)
    canonical = tokens(constant.expand(1, 4, 8, 8, 8))
    for patch in ((5, 7, 5), (1, 3, 2), (8, 8, 8), (11, 8, 9)):
        assert torch.allclose(tokens(constant.expand(1, 4, *patch)), canonical, atol=1e-5), patch


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
        ({"stride": (1, 2)}, "3 values"),
        ({"channels_per_token": 4}, "6 token channels are not divisible by channels_per_token 4"),
        ({"canonical_grid": (8, 8)}, "canonical grid"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    good = {"stride": 2, "channels_per_token": 2, "canonical_grid": (4, 4, 4)}
    with pytest.raises(ValueError, match=message):
        GlobalTokens(6, 3, **(good | arguments))
