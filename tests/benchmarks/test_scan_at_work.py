"""The look at a trained network's scan drops what it says it drops, and leaves the network as it was."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_logvmamba.layers import LoGVMambaBlock

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scan_at_work():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import scan_at_work

        yield scan_at_work
    sys.modules.pop("scan_at_work", None)


@pytest.fixture(params=(1, 2), ids="{} directions".format)
def block(request):
    return LoGVMambaBlock(16, 2, squeeze=8, canonical_grid=(6, 8), directions=request.param).eval()


X = torch.randn(2, 16, 6, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_without_states_is_what_no_readout_gives(scan_at_work, block):
    before = block(X)
    with scan_at_work.without("scan", {"block": block}):
        dropped = block(X)
    assert torch.equal(block(X), before)
    block.ssm.x_proj_weight[:, -block.ssm.state_size :] = 0  # C
    torch.testing.assert_close(dropped, block(X))
    assert not torch.allclose(dropped, before)


@torch.no_grad()
def test_without_global_tokens_is_the_block_of_local_tokens(scan_at_work, block):
    local = LoGVMambaBlock(16, 2, squeeze=8, global_tokens=False, directions=block.directions).eval()
    local.load_state_dict({name: value for name, value in block.state_dict().items() if name in local.state_dict()})
    before = block(X)
    with scan_at_work.without("global tokens", {"block": block}):
        torch.testing.assert_close(block(X), local(X))
    assert torch.equal(block(X), before)


@torch.no_grad()
def test_without_blocks_nothing_is_mixed_and_a_control_has_nothing_else_to_drop(scan_at_work, block):
    assert set(scan_at_work.ways({"block": block})) == {"scan", "global tokens", "blocks"}
    with scan_at_work.without("blocks", {"block": block}):
        assert torch.equal(block(X), X)
    assert not torch.equal(block(X), X)
    control = LoGVMambaBlock(16, 2, squeeze=8, states=False).eval()
    assert set(scan_at_work.ways({"control": control})) == {"blocks"}
    found = {"control": []}
    with scan_at_work.watched({"control": control}, found):
        y = control(X)
    assert found["control"] == [{"tokens": 48, "branch_to_input": pytest.approx(float((y - X).norm() / X.norm()))}]


@torch.no_grad()
def test_what_is_seen_of_a_scan_follows_from_its_weights(scan_at_work, block):
    block.ssm.x_proj_weight[:, -block.ssm.state_size :] = 0
    block.ssm.dt_proj_weight.zero_()
    block.ssm.dt_bias.fill_(float(np.log(np.expm1(0.1))))  # so that every step is 0.1
    found = {"block": []}
    with scan_at_work.watched({"block": block}, found):
        block(X)
    block(X)
    (did,) = found["block"]
    assert did["tokens"] == 48
    assert did["states_to_skip"] < 1e-6
    np.testing.assert_allclose(did["steps"], [0.1] * 3, rtol=1e-5)
    # Decays are 1, 2, ..., 16 at the start.
    fades = 10 / np.arange(1, 17)
    np.testing.assert_allclose(did["fade_tokens"], np.percentile(np.tile(fades, 16 // 8 * 9), (5, 50, 95)), rtol=1e-4)
