"""The unfold against PyTorch's own, its adjoint, its border and its refusals."""

import pytest
import torch
import torch.nn.functional as F

from nnunet_logvmamba.layers import ConvTokens, LocalTokens


@pytest.mark.parametrize("window", [1, 3, 5])
def test_2d_unfold_equals_im2col(window):
    tokens = LocalTokens(8, 2, squeeze=4, window=window)
    x = torch.randn(2, 2, 5, 6)
    expected = F.unfold(x, window, padding=window // 2).unflatten(2, (5, 6))
    assert torch.equal(tokens.unfold(x), expected)


def test_3d_unfold_puts_the_window_fastest_and_zeros_outside():
    x = torch.arange(1.0, 25.0).view(1, 1, 2, 3, 4)
    unfolded = LocalTokens(16, 3, squeeze=16).unfold(x)
    assert unfolded.shape == (1, 27, 2, 3, 4)
    for window, (a, b, c) in enumerate(torch.cartesian_prod(*[torch.arange(3)] * 3).tolist()):
        d, h, w = 1 + a - 1, 1 + b - 1, 2 + c - 1  # neighbour of voxel (1, 1, 2)
        expected = x[0, 0, d, h, w].item() if d < 2 and h < 3 and w < 4 else 0.0
        assert unfolded[0, window, 1, 1, 2].item() == expected, (a, b, c)


def test_fold_of_the_gradient_is_the_adjoint_of_the_unfold():
    tokens = LocalTokens(32, 3, squeeze=16)
    x = torch.randn(1, 2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, 54, 3, 4, 3, dtype=torch.float64)
    (folded,) = torch.autograd.grad((tokens.unfold(x) * y).sum(), x)
    assert torch.allclose((folded * x).sum(), (y * tokens.unfold(x)).sum())


def test_output_is_one_dense_block_with_the_width_innermost():
    y = LocalTokens(32, 3, squeeze=16)(torch.randn(2, 32, 4, 3, 5))
    assert y.shape == (2, 54, 4, 3, 5)
    assert y.movedim(1, -1).is_contiguous()


def test_indivisible_channels_and_even_windows_are_refused():
    with pytest.raises(ValueError, match="24 channels are not divisible by squeeze 16"):
        LocalTokens(24, 3, squeeze=16)
    with pytest.raises(ValueError, match="window is 2"):
        LocalTokens(32, 3, squeeze=16, window=2)


def test_one_dimensional_images_are_refused():
    with pytest.raises(ValueError, match="spatial_dims is 1"):
        ConvTokens(8, 1)
