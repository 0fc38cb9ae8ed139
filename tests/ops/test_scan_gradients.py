"""Are the hand-written backward passes the derivative of the forward pass?"""

import itertools

import pytest
import torch
from numerics import assert_matches_reference
from scan_cases import PLAIN, random_arguments, run, run_with_gradients, upstream

from nnunet_logvmamba.ops import backends
from nnunet_logvmamba.ops.scan import reference, rows


@pytest.mark.parametrize("absent", [(), ("D",), ("delta_bias",), ("initial_state",), PLAIN[5:]], ids=str)
@pytest.mark.parametrize("delta_softplus", [True, False])
def test_written_backward_equals_autograd_through_the_reference_forward(backend, delta_softplus, absent):
    arguments = random_arguments(length=19, absent=absent)
    leaves = {name: value.requires_grad_() for name, value in arguments.items()}
    grads = upstream(arguments)
    in_order = [leaves.get(name) for name in PLAIN]
    outputs = reference.forward(*in_order, delta_softplus)
    expected = dict(zip(leaves, torch.autograd.grad(outputs, list(leaves.values()), grads)))
    compute = backends.choose(backend, torch.device("cpu"))
    with torch.no_grad():
        gradients = rows.backward(compute, *grads, *in_order, None, None, delta_softplus)
    for name, gradient in zip(PLAIN, gradients):
        if name in absent:
            assert gradient is None
        else:
            assert_matches_reference(gradient, expected[name], what=f"gradient of {name}", backend=backend)


@pytest.mark.usefixtures("small_workspace")
@pytest.mark.parametrize("delta_softplus", [True, False])
@pytest.mark.parametrize("absent", [(), PLAIN[5:]], ids=str)
def test_gradcheck_passes(absent, delta_softplus, backend):
    # Nine steps are two lanes of four and a remainder.
    arguments = random_arguments(batch=2, length=9, channels=2, state=2, groups=2, absent=absent)
    if not delta_softplus:  # negative steps make the state explode, and with it the error of finite differences
        arguments |= {name: arguments[name].abs() for name in ("delta", "delta_bias") if name in arguments}
    leaves = {name: value.requires_grad_() for name, value in arguments.items()}

    def scan(*tensors):
        return run(dict(zip(leaves, tensors)), delta_softplus=delta_softplus, backend=backend)

    assert torch.autograd.gradcheck(scan, tuple(leaves.values()))


@pytest.mark.parametrize("wanted", [*itertools.combinations(PLAIN, 1), ("u", "B"), ("A", "D"), PLAIN[3:]], ids=str)
def test_any_mix_of_arguments_may_require_a_gradient(wanted, backend):
    arguments = random_arguments()
    grads = upstream(arguments)
    everything = run_with_gradients(arguments, *grads, backend=backend)
    leaves = {name: value.detach().requires_grad_(name in wanted) for name, value in arguments.items()}
    torch.autograd.backward(run(leaves, backend=backend), grads)
    for name, leaf in leaves.items():
        if name in wanted:
            assert torch.equal(leaf.grad, everything[f"grad {name}"]), f"gradient of {name} depends on who else asks"
        else:
            assert leaf.grad is None


def test_outputs_need_no_gradient_when_no_argument_does(backend):
    y, last_state = run(random_arguments(), backend=backend)
    assert not y.requires_grad
    assert not last_state.requires_grad


@pytest.mark.parametrize("output", [0, 1])
def test_one_of_the_two_outputs_may_be_left_unused(output, backend):
    arguments = random_arguments()
    grads = list(upstream(arguments))
    leaves = {name: value.requires_grad_() for name, value in arguments.items() if name not in ("C", "D")}
    rest = {name: arguments[name] for name in ("C", "D")}
    run(leaves | rest, backend=backend)[output].backward(grads[output])
    grads[1 - output] = torch.zeros_like(grads[1 - output])
    expected = run_with_gradients(arguments, *grads, backend=backend)
    for name, leaf in leaves.items():
        assert_matches_reference(leaf.grad, expected[f"grad {name}"], what=f"gradient of {name}", backend=backend)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_each_gradient_has_the_dtype_of_its_argument(dtype, backend):
    arguments = random_arguments(dtype=torch.float32)
    for name in ("u", "B"):
        arguments[name] = arguments[name].to(dtype)
    results = run_with_gradients(arguments, *upstream(arguments), backend=backend)
    for name, value in arguments.items():
        assert results[f"grad {name}"].dtype == value.dtype, name
    assert results["y"].dtype == dtype
    assert results["last_state"].dtype == torch.promote_types(dtype, torch.float32)
