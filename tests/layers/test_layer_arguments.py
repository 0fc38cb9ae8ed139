"""What the constructors of layers say to values that do not fit, in one sentence each."""

import numpy as np
import pytest
import torch

from nnunet_logvmamba.layers import (
    ConvTokens,
    GlobalTokens,
    LoGVMambaBlock,
    Mamba,
    MambaLayer,
    SelectiveSSM,
    SkipOnly,
    listed,
    per_axis,
)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mamba(8, ("sideways",)), "directions has 'sideways'; valid are 'forward', 'backward', 'slices'"),
        (lambda: Mamba(8, "forward"), "directions is 'forward'; a list of words"),
        (lambda: Mamba(8, ()), "directions is empty; valid are 'forward', 'backward', 'slices'"),
        (lambda: Mamba(8, drawn_steps=("forwards",)), "drawn_steps has 'forwards'; valid are 'forward'"),
        (lambda: MambaLayer("8"), "width is '8'"),
        (lambda: MambaLayer(8, slices=0), "slices is 0; a whole number of at least 1"),
        (lambda: MambaLayer(8, residual="no"), "residual is 'no'; True or False"),
        (lambda: SelectiveSSM(4, directions=0), "directions is 0"),
        (lambda: SelectiveSSM(4, directions="2"), "directions is '2'"),
        (lambda: SelectiveSSM(4, step_rank=0), "step_rank is 0"),
        (lambda: SelectiveSSM(4.0), "channels is 4.0"),
        (lambda: SkipOnly(4, 0), "directions is 0"),
        (lambda: ConvTokens(2.0, 2), "channels is 2.0"),
        (lambda: GlobalTokens(8, 2, 2.0, 1, (4, 4)), "global stride is 2.0"),
        (lambda: GlobalTokens(8, 2, (2,), 1, (4, 4)), r"global stride is \(2,\)"),
        (lambda: GlobalTokens(8, 2, 2, "1", (4, 4)), "channels_per_token is '1'"),
        (lambda: GlobalTokens(8, 2, 2, 1, (4.0, 4)), r"canonical_grid is \(4.0, 4\)"),
        (lambda: LoGVMambaBlock(16, 2, canonical_grid="3"), "canonical_grid is '3'"),
        (lambda: LoGVMambaBlock(16, 2, canonical_grid=(4, 4), directions=2.0), "directions is 2.0; valid are 1, 2, 4"),
        (lambda: listed("strides", torch.tensor(2), "of them"), r"strides is tensor\(2\); a list of them"),
        (lambda: per_axis("window", torch.tensor(2), 2), r"window is tensor\(2\); a whole number"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_a_single_number_is_one_for_all_axes_and_may_be_numpys():
    block = LoGVMambaBlock(16, 2, canonical_grid=np.int64(3), global_stride=np.int64(2))
    assert block.global_tokens.canonical_grid == (3, 3)
    assert block.global_tokens.conv.stride == (2, 2)
