"""Does code written for mamba-ssm's selective_scan_fn run here with the same result?"""

import inspect

import pytest
import torch
from numerics import assert_matches_reference

from nnunet_logvmamba.ops import selective_scan_fn

BATCH, CHANNELS, LENGTH, STATE, GROUPS = 2, 6, 21, 3, 2
WEIGHT_SHAPES = {
    "constant": (CHANNELS, STATE),
    "shared": (BATCH, STATE, LENGTH),
    "grouped": (BATCH, GROUPS, STATE, LENGTH),
}


def arguments(B="shared", C="shared", dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "u": normal(BATCH, CHANNELS, LENGTH),
        "delta": normal(BATCH, CHANNELS, LENGTH),
        "A": -normal(CHANNELS, STATE).abs() - 0.1,
        "B": normal(*WEIGHT_SHAPES[B]),
        "C": normal(*WEIGHT_SHAPES[C]),
        "D": normal(CHANNELS),
        "z": normal(BATCH, CHANNELS, LENGTH),
        "delta_bias": normal(CHANNELS),
    }


def one_number_at_a_time(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """The definition with axes as in mamba-ssm, in differentiable scalar steps."""

    def weight(w, b, c, t):  # -> (state,)
        if w.dim() == 2:
            return w[c]
        return w[b, :, t] if w.dim() == 3 else w[b, c // (CHANNELS // w.shape[1]), :, t]

    outputs, states = [], []
    for b in range(u.shape[0]):
        for c in range(u.shape[1]):
            h = torch.zeros_like(A[c])
            for t in range(u.shape[2]):
                dt = delta[b, c, t] + (0 if delta_bias is None else delta_bias[c])
                dt = torch.nn.functional.softplus(dt) if delta_softplus else dt
                h = torch.exp(dt * A[c]) * h + dt * weight(B, b, c, t) * u[b, c, t]
                y = (weight(C, b, c, t) * h).sum() + (0 if D is None else D[c] * u[b, c, t])
                outputs.append(y if z is None else y * torch.nn.functional.silu(z[b, c, t]))
            states.append(h)
    return torch.stack(outputs).view(u.shape), torch.stack(states).view(*u.shape[:2], -1)


def test_signature_is_that_of_mamba_ssm():
    parameters = inspect.signature(selective_scan_fn).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [
        ("u", inspect.Parameter.empty),
        ("delta", inspect.Parameter.empty),
        ("A", inspect.Parameter.empty),
        ("B", inspect.Parameter.empty),
        ("C", inspect.Parameter.empty),
        ("D", None),
        ("z", None),
        ("delta_bias", None),
        ("delta_softplus", False),
        ("return_last_state", False),
    ]
    assert all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters)


@pytest.mark.parametrize("B", WEIGHT_SHAPES)
@pytest.mark.parametrize("C", WEIGHT_SHAPES)
def test_every_form_of_B_and_C_gives_the_defined_values_and_gradients(B, C):
    leaves = {name: value.requires_grad_() for name, value in arguments(B, C).items()}
    expected, expected_state = one_number_at_a_time(**leaves, delta_softplus=True)
    actual, state = selective_scan_fn(**leaves, delta_softplus=True, return_last_state=True)
    assert_matches_reference(actual, expected, what="output")
    assert_matches_reference(state, expected_state, what="last state")
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected_gradients = torch.autograd.grad(expected, list(leaves.values()), upstream)
    gradients = torch.autograd.grad(actual, list(leaves.values()), upstream)
    for name, one, other in zip(leaves, gradients, expected_gradients):
        assert_matches_reference(one, other, what=f"gradient of {name}")


@pytest.mark.parametrize("absent", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids=str)
@pytest.mark.parametrize("delta_softplus", [True, False])
def test_optional_arguments_may_be_absent(absent, delta_softplus):
    present = {name: value for name, value in arguments().items() if name not in absent}
    present["delta"] = present["delta"].abs()
    expected, _ = one_number_at_a_time(**present, delta_softplus=delta_softplus)
    assert_matches_reference(selective_scan_fn(**present, delta_softplus=delta_softplus), expected, what="output")


def test_last_state_comes_only_when_asked_for():
    given = arguments()
    alone = selective_scan_fn(*given.values(), True)
    with_state = selective_scan_fn(*given.values(), True, True)
    assert isinstance(alone, torch.Tensor)
    assert isinstance(with_state, tuple)
    assert torch.equal(alone, with_state[0])
    assert with_state[1].shape == (BATCH, CHANNELS, STATE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gate_is_applied_before_rounding_to_half_precision(dtype):
    given = arguments(dtype=torch.float32)
    for name in ("u", "delta", "B", "C", "z"):
        given[name] = given[name].to(dtype)
    expected = selective_scan_fn(**{name: value.float() for name, value in given.items()}, delta_softplus=True)
    actual, state = selective_scan_fn(**given, delta_softplus=True, return_last_state=True)
    assert actual.dtype == dtype
    assert state.dtype == torch.float32
    assert torch.equal(actual, expected.to(dtype))


def test_compiles_without_a_graph_break():
    given = arguments()
    torch._dynamo.reset()
    compiled = torch.compile(selective_scan_fn, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*given.values(), True), selective_scan_fn(*given.values(), True))


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_complex_matrices_are_refused(name):
    given = arguments()
    given[name] = given[name].to(torch.complex128)
    with pytest.raises(ValueError, match=f"^{name} is complex; only real A, B and C are supported"):
        selective_scan_fn(**given)


@pytest.mark.parametrize("name", ["u", "A", "B", "z"])
def test_what_is_no_tensor_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"^{name} is a float; a tensor is needed"):
        selective_scan_fn(**arguments() | {name: 1.0})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("u", (CHANNELS, LENGTH), r"u has shape \(6, 21\); it must be \(batch, channels, length\)"),
        ("delta", (CHANNELS, LENGTH), r"delta has shape \(6, 21\); it must be \(batch, channels, length\)"),
        ("z", (BATCH, CHANNELS, 5), r"z has shape \(2, 6, 5\) but u has shape \(2, 6, 21\)"),
        ("B", (5, STATE), r"B has shape \(5, 3\) but u has shape \(2, 6, 21\)"),
        ("C", (STATE,), r"C has shape \(3,\) and u has shape \(2, 6, 21\)"),
        ("B", (BATCH, 4, STATE, LENGTH), "channels cannot be split into 4 equal groups"),
        ("C", (BATCH, STATE, 5), r"C has shape \(2, 5, 1, 3\) but B has shape \(2, 21, 1, 3\)"),
    ],
)
def test_wrong_shapes_are_named(name, shape, message):
    with pytest.raises(ValueError, match=message):
        selective_scan_fn(**arguments() | {name: torch.zeros(shape, dtype=torch.float64)})


def test_group_counts_that_do_not_fit_together_are_named():
    given = arguments(B="grouped")
    given["C"] = torch.zeros(BATCH, 3, STATE, LENGTH, dtype=torch.float64)
    with pytest.raises(ValueError, match="B has 2 groups and its partner 3; one number must divide the other"):
        selective_scan_fn(**given)
