"""The adapter to mamba-ssm: its kernel needs a GPU, so here one in plain PyTorch with its interface stands for it."""

import importlib.util
import sys
import types

import pytest
import torch
from numerics import assert_matches_reference
from scan_cases import expected_with_gradients, random_arguments, upstream

from nnunet_logvmamba.ops import backends, selective_scan
from nnunet_logvmamba.ops.scan import reference


def _ours(u, delta, A, B, C, D, bias):
    """From (batch, channels, length) and (batch, groups, state, length) to our axes."""
    assert all(x is None or x.is_contiguous() for x in (u, delta, A, B, C, D, bias))
    assert {x.dtype for x in (u, delta, B, C)} == {u.dtype}
    assert all(x is None or x.dtype == torch.float32 for x in (A, D, bias))
    u, delta = (x.float().transpose(1, 2) for x in (u, delta))
    B, C = (x.float().permute(0, 3, 1, 2) for x in (B, C))
    return u, delta, A, B, C, D, bias, None


def _fwd(u, delta, A, B, C, D, z, bias, softplus):
    assert z is None
    y, state = reference.forward(*_ours(u, delta, A, B, C, D, bias), softplus)
    ends = torch.zeros(*state.shape[:2], 1, 2 * state.shape[2])
    ends[:, :, -1, 1::2] = state
    return [y.to(u.dtype).transpose(1, 2), ends]


def _bwd(u, delta, A, B, C, D, z, bias, grad, ends, out, grad_z, softplus, recompute):
    assert (z, out, grad_z, recompute) == (None, None, None, False)
    assert grad.dtype == u.dtype
    ours = _ours(u, delta, A, B, C, D, bias)
    nothing = torch.zeros(u.shape[0], *A.shape)  # the kernel knows no gradient of the last state
    found = reference.backward(grad.float().transpose(1, 2), nothing, *ours, softplus)
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias, _ = found
    series = [x.transpose(1, 2).contiguous().to(u.dtype) for x in (grad_u, grad_delta)]
    return [*series, grad_A, grad_B.permute(0, 2, 3, 1), grad_C.permute(0, 2, 3, 1), grad_D, grad_bias]


@pytest.fixture
def vendor(monkeypatch):
    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_cuda = types.SimpleNamespace(fwd=_fwd, bwd=_bwd)
    ops, package = types.ModuleType("mamba_ssm.ops"), types.ModuleType("mamba_ssm")
    ops.selective_scan_interface, package.ops = interface, ops
    for name, module in (("mamba_ssm", package), ("mamba_ssm.ops", ops), (interface.__name__, interface)):
        monkeypatch.setitem(sys.modules, name, module)
    entry = backends.BACKENDS["mamba_ssm"]
    here = backends.Backend(entry.module, lambda device: None, made_for="cuda", complete=False)
    monkeypatch.setitem(backends.BACKENDS, "mamba_ssm", here)
    monkeypatch.delitem(sys.modules, entry.module, raising=False)
    yield interface
    sys.modules.pop(entry.module, None)


def results(arguments, grads, delta_softplus):
    leaves = {name: value.detach().requires_grad_(value.is_floating_point()) for name, value in arguments.items()}
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias", "initial_state", "context", "order")
    op = torch.ops.nnunet_logvmamba.selective_scan
    y, state = op(*(leaves.get(name) for name in names), delta_softplus, "mamba_ssm")
    wanted = {name: value for name, value in leaves.items() if value.requires_grad}
    found = torch.autograd.grad((y, state), list(wanted.values()), grads)
    return {"y": y, "last_state": state} | {f"grad {name}": g for name, g in zip(wanted, found)}


@pytest.mark.parametrize("delta_softplus", [True, False])
@pytest.mark.parametrize("absent", [(), ("D", "delta_bias")], ids=str)
@pytest.mark.parametrize("with_last_state", [True, False])
@pytest.mark.usefixtures("vendor")
def test_outputs_and_gradients_match_the_reference(with_last_state, absent, delta_softplus):
    absent = (*absent, "initial_state")
    arguments = random_arguments(length=13, extra=2, shuffled=True, dtype=torch.float32, absent=absent)
    if not delta_softplus:
        arguments["delta"] = arguments["delta"].abs()
        if "delta_bias" in arguments:
            arguments["delta_bias"] = arguments["delta_bias"].abs()
    grad_y, grad_state = upstream(arguments)
    grads = (grad_y, grad_state * with_last_state)
    expected = expected_with_gradients(arguments, *grads, delta_softplus=delta_softplus)
    for key, value in results(arguments, grads, delta_softplus).items():
        assert_matches_reference(value, expected[key], what=key, backend="mamba_ssm")


@pytest.mark.usefixtures("vendor")
def test_a_large_gradient_of_the_last_state_survives_half_precision():
    arguments = random_arguments(length=9, dtype=torch.float16, absent=("initial_state",))
    for name in ("A", "D", "delta_bias"):
        arguments[name] = arguments[name].float()
    grad_y, grad_state = upstream(arguments)
    grads = (grad_y, grad_state.float() * 1e5)
    expected = expected_with_gradients(arguments, *grads)
    actual = results(arguments, grads, True)
    for key in ("grad A", "grad delta_bias"):
        assert_matches_reference(actual[key], expected[key], what=key, backend="mamba_ssm")


REFUSED = [
    ({"dtype": torch.float32}, "cannot start from a given state"),
    ({"absent": ("initial_state",)}, "has no float64"),
    ({"dtype": torch.float32, "absent": ("initial_state",), "state": 257}, "takes 1 to 256 states, A has 257"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
@pytest.mark.usefixtures("vendor")
def test_what_the_kernel_cannot_do_is_refused_in_a_sentence(options, message):
    arguments = random_arguments(length=3, **options)
    with pytest.raises(ValueError, match=message):
        results(arguments, upstream(arguments), True)


def test_the_kernel_is_looked_for_not_the_package(tmp_path, monkeypatch):
    """mamba-ssm's main installs without it unless it is told to build it."""
    monkeypatch.syspath_prepend(tmp_path)
    if importlib.util.find_spec("mamba_ssm") is None:
        reason = backends.obstacle("mamba_ssm", "cuda")
        assert reason.startswith("mamba-ssm is not installed; it is the extra [cuda]")
        assert "MAMBA_KEEP_CUDA_BUILD=TRUE pip install" in reason
        (tmp_path / "mamba_ssm.py").touch()
        importlib.invalidate_caches()
    if importlib.util.find_spec("selective_scan_cuda") is None:
        reason = backends.obstacle("mamba_ssm", "cuda")
        assert reason.startswith("mamba-ssm was built without its kernel: MAMBA_KEEP_CUDA_BUILD=TRUE pip install")
        (tmp_path / "selective_scan_cuda.py").touch()
        importlib.invalidate_caches()
    assert backends.obstacle("mamba_ssm", "cuda") is None


def test_a_build_without_the_kernel_is_refused(vendor):
    vendor.selective_scan_cuda = None
    arguments = random_arguments(length=3, dtype=torch.float32, absent=("initial_state",))
    with pytest.raises(
        ValueError, match="mamba_ssm.*cannot be imported.*without the CUDA kernel.*MAMBA_KEEP_CUDA_BUILD=TRUE"
    ):
        selective_scan(**arguments, backend="mamba_ssm")


@pytest.mark.usefixtures("vendor")
def test_it_passes_the_check_but_is_never_automatic():
    assert backends.what_fails("mamba_ssm", "cpu") is None
    assert not backends.BACKENDS["mamba_ssm"].complete
    assert importlib.import_module("nnunet_logvmamba.ops.backends").automatic("cpu") == "numba"
