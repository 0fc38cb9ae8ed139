"""Rows of context and another order: the same numbers as the sequence laid out, whichever backend reads them."""

import pytest
import torch
from numerics import assert_matches_reference
from scan_cases import expected_with_gradients, random_arguments, run, run_with_gradients, upstream

from nnunet_logvmamba.ops import selective_scan


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("extra", "shuffled"), [(0, True), (5, False), (5, True), (1, True)])
@pytest.mark.parametrize("length", [1, 40, 97])
def test_rows_in_any_order_match_the_sequence_laid_out(length, extra, shuffled, dtype, backend):
    arguments = random_arguments(length=length, extra=extra, shuffled=shuffled, dtype=dtype)
    grads = upstream(arguments)
    expected = expected_with_gradients(arguments, *grads)
    actual = run_with_gradients(arguments, *grads, backend=backend)
    assert actual["y"].shape == arguments["u"].shape
    for key, value in expected.items():
        assert_matches_reference(actual[key], value, what=key, backend=backend)


def test_gradcheck_passes_with_context_and_order(backend):
    arguments = random_arguments(batch=2, length=5, channels=2, state=2, extra=2, shuffled=True)
    order = arguments.pop("order")
    leaves = {name: value.requires_grad_() for name, value in arguments.items()}

    def scan(*tensors):
        return run(dict(zip(leaves, tensors)) | {"order": order}, backend=backend)

    assert torch.autograd.gradcheck(scan, tuple(leaves.values()))


@pytest.mark.parametrize("batch", [1, 2])
def test_no_result_shares_its_memory_with_another(batch, backend):
    arguments = random_arguments(batch=batch, length=9, extra=3, shuffled=True)
    results = run_with_gradients(arguments, *upstream(arguments), backend=backend)
    places = [value.untyped_storage().data_ptr() for value in results.values()]
    assert len(set(places)) == len(places)


def test_order_that_reverses_scans_from_the_other_end(backend):
    arguments = random_arguments(length=33)
    flipped = {k: v.flip(1) if k in ("u", "delta", "B", "C") else v for k, v in arguments.items()}
    order = torch.arange(33).flip(0)
    y, last_state = run(arguments | {"order": order}, backend=backend)
    y_flipped, last_flipped = run(flipped, backend=backend)
    assert_matches_reference(y.flip(1), y_flipped, what="output", backend=backend)
    assert_matches_reference(last_state, last_flipped, what="last state", backend=backend)


@pytest.mark.parametrize("order", [[0, 1, 1], [0, 1, 3], [-1, 0, 1]], ids=str)
def test_order_that_is_no_permutation_is_refused(order, backend):
    arguments = random_arguments(length=3) | {"order": torch.tensor(order)}
    with pytest.raises(ValueError, match="order is not a permutation of 0 to 2"):
        run(arguments, backend=backend)


BAD = [
    ("order", torch.zeros(4, dtype=torch.int64), r"order has shape \(4,\) but context has shape \(2, 3, 6\)"),
    ("order", torch.zeros(14, dtype=torch.int32), "order has dtype torch.int32; it must be int64"),
    ("context", torch.zeros(2, 3, 5, dtype=torch.float64), r"context has shape \(2, 3, 5\) but u has shape"),
    ("context", torch.zeros(2, 4, 6, dtype=torch.float64), r"delta has shape \(2, 14, 6\) but context has shape"),
    ("B", torch.zeros(2, 11, 2, 4, dtype=torch.float64), r"B has shape \(2, 11, 2, 4\) but context has shape"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_context_and_order_that_do_not_fit_are_named(name, value, message):
    arguments = random_arguments(length=11, extra=3, shuffled=True, absent=("initial_state",)) | {name: value}
    with pytest.raises(ValueError, match=message):
        selective_scan(**arguments)


def test_compiled_with_context_and_order_equals_the_plain_call(backend):
    arguments = random_arguments(length=9, extra=2, shuffled=True, absent=("initial_state",))

    def scan(arguments):
        return selective_scan(**arguments, backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(arguments), scan(arguments))


@pytest.mark.parametrize("empty", [{"batch": 0}, {"channels": 0, "groups": 1}], ids=str)
def test_nothing_gives_nothing_and_gradients_of_zero(empty, backend):
    arguments = random_arguments(**{"length": 5, "extra": 2} | empty)
    results = run_with_gradients(arguments, *upstream(arguments), backend=backend)
    assert results["y"].shape == arguments["u"].shape
    for name, value in arguments.items():
        assert results[f"grad {name}"].shape == value.shape
        assert not results[f"grad {name}"].any()


def test_context_of_a_wider_type_is_not_rounded(backend):
    arguments = random_arguments(length=9, extra=3, dtype=torch.float32)
    arguments["context"] = arguments["context"].double()
    y, last_state = run(arguments, backend=backend)
    assert (y.dtype, last_state.dtype) == (torch.float32, torch.float64)
    exact = {name: value.double() for name, value in arguments.items()}
    assert_matches_reference(last_state, run(exact, backend="reference")[1], what="last state", backend=backend)
