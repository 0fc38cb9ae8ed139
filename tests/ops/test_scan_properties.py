"""What must hold for any numbers: causality, carried states, independence."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numerics import assert_matches_reference
from scan_cases import BACKENDS, random_arguments, run

# Cut points of the chunked backend are met at lengths up to 70: lanes have 16 steps.
problems = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "length": st.integers(1, 70),
        "channels": st.sampled_from([2, 4, 6]),
        "state": st.integers(1, 5),
        "groups": st.integers(1, 2),
        "seed": st.integers(0, 2**16),
    }
)
backends = st.sampled_from(BACKENDS)
# The poison of tests/ops/conftest.py is the same for every example.
for_any = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
ALONG_LENGTH = ("u", "delta", "B", "C")


def part(arguments, start, stop):
    return {name: value[:, start:stop] if name in ALONG_LENGTH else value for name, value in arguments.items()}


@for_any
@given(problems, backends, st.data())
def test_output_depends_on_the_past_only(problem, backend, data):
    arguments = random_arguments(**problem)
    cut = data.draw(st.integers(0, problem["length"]), label="cut")
    other = random_arguments(**problem | {"seed": problem["seed"] + 1})
    changed = {
        name: torch.cat([value[:, :cut], other[name][:, cut:]], 1) if name in ALONG_LENGTH else value
        for name, value in arguments.items()
    }
    before, after = run(arguments, backend=backend)[0], run(changed, backend=backend)[0]
    assert torch.equal(before[:, :cut], after[:, :cut])
    if cut < problem["length"]:
        assert not torch.equal(before[:, cut:], after[:, cut:])


@for_any
@given(problems, backends, st.data())
def test_whole_sequence_is_two_halves_with_carried_state(problem, backend, data):
    problem = problem | {"length": problem["length"] + 1}
    arguments = random_arguments(**problem)
    cut = data.draw(st.integers(1, problem["length"] - 1), label="cut")
    whole, last = run(arguments, backend=backend)
    first, middle_state = run(part(arguments, 0, cut), backend=backend)
    second, end_state = run(part(arguments, cut, None) | {"initial_state": middle_state}, backend=backend)
    assert_matches_reference(torch.cat([first, second], 1), whole, what="two halves", backend=backend)
    assert_matches_reference(end_state, last, what="last state", backend=backend)


@for_any
@given(problems, backends)
def test_batch_entries_do_not_mix(problem, backend):
    arguments = random_arguments(**problem)
    per_entry = (*ALONG_LENGTH, "initial_state")
    y, last = run(arguments, backend=backend)
    for b in range(problem["batch"]):
        alone = {name: value[b : b + 1] if name in per_entry else value for name, value in arguments.items()}
        y_alone, last_alone = run(alone, backend=backend)
        assert_matches_reference(y_alone[0], y[b], what=f"output of entry {b} alone", backend=backend)
        assert_matches_reference(last_alone[0], last[b], what=f"state of entry {b} alone", backend=backend)


@for_any
@given(problems, backends, st.data())
def test_channels_do_not_mix_and_belong_to_their_group(problem, backend, data):
    arguments = random_arguments(**problem)
    channel = data.draw(st.integers(0, problem["channels"] - 1), label="channel")
    group = channel // (problem["channels"] // problem["groups"])
    one = slice(channel, channel + 1)
    alone = {
        "u": arguments["u"][..., one],
        "delta": arguments["delta"][..., one],
        "A": arguments["A"][one],
        "B": arguments["B"][:, :, group : group + 1],
        "C": arguments["C"][:, :, group : group + 1],
        "D": arguments["D"][one],
        "delta_bias": arguments["delta_bias"][one],
        "initial_state": arguments["initial_state"][:, one],
    }
    y, last = run(arguments, backend=backend)
    y_alone, last_alone = run(alone, backend=backend)
    # Relative to the largest magnitude of all channels: a single one can be tiny.
    assert (y_alone - y[..., one]).abs().max() <= 1e-12 * y.abs().max()
    assert (last_alone - last[:, one]).abs().max() <= 1e-12 * last.abs().max()


@for_any
@given(problems, backends)
def test_zero_step_keeps_the_state(problem, backend):
    arguments = random_arguments(**problem, absent=("delta_bias",))
    arguments["delta"] = torch.zeros_like(arguments["delta"])
    _, last = run(arguments, delta_softplus=False, backend=backend)
    assert torch.equal(last, arguments["initial_state"])


@for_any
@given(problems, backends, st.floats(-3, 3))
def test_output_is_linear_in_input_and_state_together(problem, backend, factor):
    arguments = random_arguments(**problem)
    scaled = arguments | {name: arguments[name] * factor for name in ("u", "initial_state")}
    y, last = run(arguments, backend=backend)
    y_scaled, last_scaled = run(scaled, backend=backend)
    assert (y_scaled - factor * y).abs().max() <= 1e-11 * y.abs().max()
    assert (last_scaled - factor * last).abs().max() <= 1e-11 * last.abs().max()


@pytest.mark.parametrize("length", [1, 16, 33])
def test_input_of_zeros_gives_zeros(length, backend):
    arguments = random_arguments(length=length, absent=("initial_state",))
    arguments["u"] = torch.zeros_like(arguments["u"])
    y, last = run(arguments, backend=backend)
    assert not y.any()
    assert not last.any()
