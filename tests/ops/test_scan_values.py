"""Does every backend compute what the recurrence says, outputs and gradients?"""

import pytest
import torch
from numerics import assert_matches_reference
from scan_cases import expected_with_gradients, nothing_fades, random_arguments, run, run_with_gradients, upstream

from nnunet_logvmamba.ops import available_backends, selective_scan, selective_scan_with_state
from nnunet_logvmamba.ops.scan import chunked


def assert_all_match(arguments, backend, *, delta_softplus=True):
    grads = upstream(arguments)
    expected = expected_with_gradients(arguments, *grads, delta_softplus=delta_softplus)
    actual = run_with_gradients(arguments, *grads, delta_softplus=delta_softplus, backend=backend)
    for key, value in expected.items():
        assert_matches_reference(actual[key], value, what=key, backend=backend)


LANE = chunked.LANE_LENGTH


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 2, LANE - 1, LANE, LANE + 1, 3 * LANE - 1, 3 * LANE, 97])
def test_outputs_and_gradients_match_float64_reference(length, dtype, backend):
    assert_all_match(random_arguments(length=length, dtype=dtype), backend)


# With four steps per lane and a workspace of 1000 elements, five lanes of 2 x 6 x 4 states fit into a piece.
@pytest.mark.usefixtures("small_workspace")
@pytest.mark.parametrize("length", [1, 3, 4, 5, 19, 20, 21, 39, 40, 41, 43, 101])
def test_every_cut_into_lanes_and_pieces_gives_the_same(length):
    assert_all_match(random_arguments(length=length), "chunked")


@pytest.mark.parametrize("lane_length", [1, 2, 7, 64])
@pytest.mark.parametrize("workspace", [1, 3000, 10**6])
def test_output_does_not_depend_on_chunk_size(lane_length, workspace, monkeypatch):
    monkeypatch.setattr(chunked, "LANE_LENGTH", lane_length)
    monkeypatch.setattr(chunked, "WORKSPACE_ELEMENTS", workspace)
    assert_all_match(random_arguments(length=83), "chunked")


@pytest.mark.parametrize("delta_softplus", [True, False])
@pytest.mark.parametrize("with_D", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
def test_optional_arguments_may_be_absent(with_D, with_bias, with_state, delta_softplus, backend):
    present = {"D": with_D, "delta_bias": with_bias, "initial_state": with_state}
    arguments = random_arguments(length=37, absent=tuple(name for name, wanted in present.items() if not wanted))
    if not delta_softplus:
        arguments["delta"] = arguments["delta"].abs()
    assert_all_match(arguments, backend, delta_softplus=delta_softplus)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("state", [1, 5])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_number_of_groups_states_and_batch_entries(groups, state, batch, backend):
    assert_all_match(random_arguments(batch=batch, length=35, state=state, groups=groups), backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_non_contiguous_arguments_give_the_same(dtype, backend):
    plain = random_arguments(length=37, dtype=dtype)
    views = {
        name: value.movedim(1, -1).contiguous().movedim(-1, 1) if value.dim() > 2 else value.repeat_interleave(2)[::2]
        for name, value in plain.items()
        if name != "A"
    }
    views = {"A": plain["A"].T.contiguous().T} | views
    assert not any(view.is_contiguous() for view in views.values())
    grads = upstream(plain)
    expected = run_with_gradients(plain, *grads, backend=backend)
    actual = run_with_gradients(views, *grads, backend=backend)
    for key, value in expected.items():
        assert_matches_reference(actual[key], value, what=key, backend=backend)
        assert actual[key].is_contiguous() or key.startswith("grad"), f"{key} is not contiguous"


def test_expanded_arguments_and_upstream_gradients_are_read_not_overwritten(backend):
    arguments = random_arguments(length=21)
    arguments["B"] = arguments["B"][:, :1].expand(-1, 21, -1, -1)
    before = {name: value.clone() for name, value in arguments.items()}
    leaves = {name: value.requires_grad_() for name, value in arguments.items()}
    y, _ = run(leaves, backend=backend)
    y.sum().backward()  # the upstream gradient is a single number, expanded
    for name, value in before.items():
        assert torch.equal(arguments[name], value), f"{name} was changed"
    grads = torch.ones_like(y), torch.zeros_like(arguments["initial_state"])
    expected = expected_with_gradients(before, *grads)
    assert_matches_reference(leaves["u"].grad, expected["grad u"], what="grad u", backend=backend)


def test_steps_beyond_the_softplus_threshold_are_linear(backend):
    arguments = random_arguments(length=33)
    arguments["delta"] = arguments["delta"] * 30.0  # about half of them above 20, decays that underflow to zero
    assert (arguments["delta"] > 20).any()
    assert_all_match(arguments, backend)


def test_decay_that_underflows_in_float32_keeps_values_finite_and_right(backend):
    arguments = random_arguments(length=70, dtype=torch.float32)
    arguments["A"] = arguments["A"] * 200.0
    assert (torch.exp(arguments["A"] * 2) == 0).any()
    assert_all_match(arguments, backend)


def test_where_nothing_fades_a_state_of_zero_stays_zero(backend):
    """Decays above 1 overflow over parts of the sequence, and infinity times a state of zero would be NaN."""
    arguments = nothing_fades()
    expected = run(arguments, backend="reference")
    assert all(value.isfinite().all() for value in expected)
    for one, other in zip(run(arguments, backend=backend), expected):
        assert_matches_reference(one, other, what="output or last state", backend=backend)


def assert_chunked_matches_written_reference(arguments):
    # Autograd through the recurrence takes time quadratic in the length; the reference's own backward does not.
    grads = upstream(arguments)
    in_float64 = {name: value.double() for name, value in arguments.items()}
    expected = run_with_gradients(in_float64, *(g.double() for g in grads), backend="reference")
    actual = run_with_gradients(arguments, *grads, backend="chunked")
    for key, value in expected.items():
        assert_matches_reference(actual[key], value, what=key, backend="chunked")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_long_sequence_stays_accurate(dtype):
    assert_chunked_matches_written_reference(
        random_arguments(batch=1, length=4001, channels=4, state=16, groups=1, dtype=dtype)
    )


def test_sequence_that_overflows_the_default_workspace_matches():
    lanes = chunked.WORKSPACE_ELEMENTS // (2 * 64 * 64 * LANE)
    assert lanes > 1
    assert_chunked_matches_written_reference(
        random_arguments(length=(lanes + 1) * LANE + 5, channels=64, state=64, dtype=torch.float32)
    )


def test_single_output_function_gives_the_output_of_the_other(backend):
    arguments = random_arguments(absent=("initial_state",))
    y, _ = selective_scan_with_state(**arguments, backend=backend)
    assert torch.equal(selective_scan(**arguments, backend=backend), y)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", available_backends("cuda"))
def test_backends_match_on_the_gpu(dtype, backend):
    without_state = backend == "mamba_ssm"
    if without_state and dtype == torch.float64:
        pytest.skip("mamba-ssm has no float64")
    absent = ("initial_state",) if without_state else ()
    arguments = random_arguments(length=97, extra=5, shuffled=True, dtype=dtype, absent=absent)
    grads = upstream(arguments)
    expected = expected_with_gradients(arguments, *grads)
    on_gpu = {name: value.cuda() for name, value in arguments.items()}
    actual = run_with_gradients(on_gpu, *(g.cuda() for g in grads), backend=backend)
    for key, value in expected.items():
        assert_matches_reference(actual[key].cpu(), value, what=key, backend=backend)


def test_empty_tensors_are_poisoned_in_these_tests():
    assert torch.empty(5).isnan().all()
    assert torch.ones(2, dtype=torch.float64).new_empty((2, 3)).isnan().all()
    assert torch.empty_like(torch.ones(3, dtype=torch.bfloat16)).isnan().all()
