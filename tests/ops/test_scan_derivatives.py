"""Every derivative that torch offers is right through the scan: forward, repeated, per sample, and mixed."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_matches_reference
from scan_cases import PLAIN, nothing_fades, random_arguments, run, run_with_gradients, upstream
from torch import nn
from torch.autograd import forward_ad, functional
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from nnunet_logvmamba.networks import LoGVMambaSwinUNet, LoGVMambaUNet
from nnunet_logvmamba.ops import selective_scan, selective_scan_fn, selective_scan_with_state
from nnunet_logvmamba.ops.scan import composed, reference, rows

ALL_ARGUMENTS = random_arguments(length=7, channels=4, state=2, extra=2, shuffled=True)
ORDER = ALL_ARGUMENTS.pop("order")
NAMES = tuple(ALL_ARGUMENTS)
POINT = tuple(ALL_ARGUMENTS.values())
DIRECTION = tuple(value.flip(0) for value in POINT)
SOME = (NAMES.index("u"), NAMES.index("A"), NAMES.index("B"))


def scan_of(backend):
    return lambda *x: selective_scan_with_state(**dict(zip(NAMES, x)), order=ORDER, backend=backend)


def printed(*x):
    """The recurrence as printed, which torch differentiates by itself."""
    rows = dict(zip(NAMES, x))
    length = rows["u"].shape[1]
    rows["u"] = torch.cat((rows["u"], rows.pop("context")), dim=1)
    rows |= {name: rows[name][:, ORDER] for name in ("u", "delta", "B", "C")}
    y, last_state = reference.forward(*(rows[name] for name in PLAIN), True)
    return y[:, ORDER.argsort()][:, :length], last_state


def summed(scan):
    def loss(*x):
        y, last_state = scan(*x)
        return y.sin().sum() + last_state.square().sum()

    return loss


def assert_same(actual, expected, backend=""):
    for one, other in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        assert_matches_reference(one, other, backend=backend)


def with_dual_numbers(scan, x=POINT, direction=DIRECTION):
    with forward_ad.dual_level():
        outputs = scan(*map(forward_ad.make_dual, x, direction))
        return [forward_ad.unpack_dual(output).tangent for output in pytree.tree_leaves(outputs)]


def backwards_with_dual_numbers(scan):
    with forward_ad.dual_level():
        leaves = [x.clone().requires_grad_() for x in POINT]
        gradients = torch.autograd.grad(summed(scan)(*map(forward_ad.make_dual, leaves, DIRECTION)), leaves)
        return [forward_ad.unpack_dual(gradient).tangent for gradient in gradients]


def dual_gradient_of_output(scan):
    leaves = [x.clone().requires_grad_() for x in POINT]
    outputs = scan(*leaves)
    with forward_ad.dual_level():
        weights = [forward_ad.make_dual(x.detach(), x.detach().cos()) for x in outputs]
        return [forward_ad.unpack_dual(g).tangent for g in torch.autograd.grad(outputs, leaves, weights)]


def linearized(scan):
    output, push_forward = linearize(scan, *POINT)
    return output, push_forward(*DIRECTION)


def pulled_back(scan):
    output, pull_back = vjp(scan, *POINT)
    return output, pull_back(tuple(x.cos() for x in output))


def third(scan):
    loss = summed(scan)
    return grad(lambda *x: grad(lambda *x: grad(loss, 2)(*x).sum(), 1)(*x).sum(), 0)(*POINT)


SAMPLES = tuple(torch.stack((x, x.flip(0), x / 2)) for x in POINT)
SHARED = tuple(None if name in ("A", "D", "delta_bias") else 0 for name in NAMES)
MIXED = tuple(x if dim is None else samples for x, samples, dim in zip(POINT, SAMPLES, SHARED))

# What is asked for, by name; `scan` gives output and last state.
DERIVATIVES = {
    "jvp": lambda scan: jvp(scan, POINT, DIRECTION),
    "jacfwd": lambda scan: jacfwd(scan, SOME)(*POINT),
    "dual numbers": with_dual_numbers,
    "dual numbers in one argument": lambda scan: with_dual_numbers(
        lambda A: scan(*POINT[:2], A, *POINT[3:]), POINT[2:3], DIRECTION[2:3]
    ),
    "linearize": linearized,
    "vjp": pulled_back,
    "grad": lambda scan: grad(summed(scan), tuple(range(len(NAMES))))(*POINT),
    "jacrev": lambda scan: jacrev(scan, SOME)(*POINT),
    "hessian": lambda scan: hessian(summed(scan), SOME)(*POINT),
    "jacrev of jacfwd": lambda scan: jacrev(jacfwd(summed(scan), 0), 2)(*POINT),
    "third derivative": third,
    "forward over backward": backwards_with_dual_numbers,
    "tangent of the output's gradient": dual_gradient_of_output,
    "functional.hessian": lambda scan: functional.hessian(lambda A: summed(scan)(*POINT[:2], A, *POINT[3:]), POINT[2]),
    "functional.jvp": lambda scan: functional.jvp(scan, POINT, DIRECTION),
    "vmap": lambda scan: vmap(scan)(*SAMPLES),
    "vmap of grad": lambda scan: vmap(grad(summed(scan), tuple(range(len(NAMES)))), SHARED)(*MIXED),
    "vmap of jvp": lambda scan: vmap(lambda *x: jvp(scan, x, DIRECTION))(*SAMPLES),
    "vmap of hessian": lambda scan: vmap(hessian(summed(scan), 2), SHARED)(*MIXED),
    "jvp of vmap": lambda scan: jvp(vmap(scan), SAMPLES, SAMPLES),
    "grad of vmap": lambda scan: grad(lambda A: vmap(summed(scan), SHARED)(*MIXED[:2], A, *MIXED[3:]).sum())(POINT[2]),
}


@pytest.mark.parametrize("asked", DERIVATIVES)
def test_derivative_equals_that_of_the_recurrence_as_printed(asked, backend):
    assert_same(DERIVATIVES[asked](scan_of(backend)), DERIVATIVES[asked](printed), backend)


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["jvp", "hessian", "vmap of grad", "forward over backward"])
def test_derivative_by_the_gpu_kernels_does_so_too(asked):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the arguments are on the CPU")
    assert_same(DERIVATIVES[asked](scan_of("triton")), DERIVATIVES[asked](printed), "triton")


@pytest.mark.parametrize("absent", [(), PLAIN[5:]], ids=str)
def test_gradcheck_passes_forwards_and_twice(absent, backend):
    arguments = random_arguments(length=5, channels=2, state=2, absent=absent)
    names, leaves = tuple(arguments), tuple(x.requires_grad_() for x in arguments.values())

    def scan(*x):
        return selective_scan_with_state(**dict(zip(names, x)), backend=backend)

    options = {"check_batched_grad": True, "fast_mode": True}
    assert torch.autograd.gradcheck(scan, leaves, check_forward_ad=True, check_batched_forward_grad=True, **options)
    assert torch.autograd.gradgradcheck(scan, leaves, check_fwd_over_rev=True, check_rev_over_rev=True, **options)


def test_jvp_agrees_with_finite_differences(backend):
    scan = scan_of(backend)
    (ahead, _), (behind, _) = (scan(*(x + s * 1e-6 * d for x, d in zip(POINT, DIRECTION))) for s in (1, -1))
    _, (tangent, _) = jvp(scan, POINT, DIRECTION)
    assert_matches_reference(tangent, (ahead - behind) / 2e-6, tolerance=1e-7)


@pytest.mark.parametrize("constant", [True, False])
def test_selective_scan_fn_has_the_same_derivatives(constant):
    given = random_arguments(length=6, channels=4, state=2, groups=1, absent=("initial_state",))
    gate = given["u"].flip(0).transpose(1, 2)
    B = given["B"][0, 0].expand(4, 2) if constant else given["B"][:, :, 0].transpose(1, 2)
    order = ("A", "D", "delta_bias")

    def with_mamba_order(u, delta, A, D, bias):
        return selective_scan_fn(u.mT, delta.mT, A, B, given["C"][:, :, 0].mT, D, gate, bias, True).mT

    def as_printed(u, delta, A, D, bias):
        weights = B[None, None].expand(2, 6, 4, 2) if constant else given["B"].expand(2, 6, 1, 2)
        y, _ = reference.forward(u, delta, A, weights, given["C"].expand(2, 6, 1, 2), D, bias, None, True)
        return y * nn.functional.silu(gate.mT)

    point = (given["u"], given["delta"], *(given[name] for name in order))
    for derivative in (lambda f: jvp(f, point, point), lambda f: jacfwd(jacrev(f, 2), 2)(*point)):
        assert_same(derivative(with_mamba_order), derivative(as_printed))


def test_compiled_and_exported_jvp_is_right():
    scan = scan_of("reference")
    expected = jvp(printed, POINT, DIRECTION)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: jvp(scan, x, DIRECTION), fullgraph=True, backend="aot_eager")
    assert_same(compiled(*POINT), expected)
    assert_same(jvp(torch.compile(scan, backend="aot_eager"), POINT, DIRECTION), expected)
    inside = torch.compile(lambda *x: with_dual_numbers(scan, x), backend="aot_eager")
    assert_same(inside(*POINT), expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["hessian", "vmap of grad"])
def test_compiled_and_traced_derivatives_are_right(asked):
    derivative = {"hessian": lambda f: hessian(f, 2), "vmap of grad": lambda f: vmap(grad(f, 2))}[asked]
    point = SAMPLES if asked == "vmap of grad" else POINT
    asked, expected = derivative(summed(scan_of("reference"))), derivative(summed(printed))(*point)
    torch._dynamo.reset()
    assert_same(torch.compile(asked, backend="aot_eager")(*point), expected)
    assert_same(make_fx(asked)(*point)(*point), expected)


def test_a_second_derivative_of_compiled_code_is_refused_by_torch():
    leaves = [x.clone().requires_grad_() for x in POINT]
    torch._dynamo.reset()
    loss = torch.compile(summed(scan_of("reference")), backend="aot_eager")(*leaves)
    (gradient,) = torch.autograd.grad(loss, leaves[2], create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        gradient.sum().backward()


def test_a_first_gradient_with_create_graph_is_still_one_op(backend):
    names = []

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    leaves = [x.clone().requires_grad_() for x in POINT]
    loss = summed(scan_of(backend))(*leaves)
    with Names():
        torch.autograd.grad(loss, leaves, create_graph=True)
    assert names.count("nnunet_logvmamba.selective_scan_backward.default") == 1
    assert not [name for name in names if "exp" in name and "expand" not in name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_tangent_has_the_dtype_of_its_output(dtype):
    arguments = random_arguments(length=20, dtype=torch.float32, absent=("initial_state",))
    for name in ("u", "delta", "B", "C"):
        arguments[name] = arguments[name].to(dtype)
    names, point = tuple(arguments), tuple(arguments.values())

    def scan(*x):
        return selective_scan(**dict(zip(names, x)))

    exact = [x.double() for x in point]
    _, expected = jvp(scan, tuple(exact), tuple(exact))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, tangent = jvp(scan, point, point)
    assert output.dtype == tangent.dtype == dtype
    assert_matches_reference(tangent, expected)


def test_an_order_that_is_no_permutation_is_refused_in_forward_mode():
    order = ORDER.clone()
    order[0] = order[1]
    with pytest.raises(RuntimeError, match="order is not a permutation of 0 to 8"):
        jvp(lambda *x: selective_scan_with_state(**dict(zip(NAMES, x)), order=order), POINT, DIRECTION)


# The composition that all this rests on


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 40, 257, 300])
@pytest.mark.parametrize("absent", [(), PLAIN[5:]], ids=str)
def test_composition_gives_outputs_and_gradients_at_every_length(length, absent):
    arguments = random_arguments(length=length, absent=absent)
    grads = upstream(arguments)
    expected = run_with_gradients(arguments, *grads, backend="chunked")
    given = [arguments.get(name) for name in PLAIN]
    found = [*composed.forward(*given, True), *composed.backward(*grads, *given, True)]
    present = [x for x in found if x is not None]
    for (name, value), one in zip(expected.items(), present, strict=True):
        assert_matches_reference(one, value, what=name)


def test_composition_stays_finite_where_decays_underflow():
    arguments = random_arguments(length=300, dtype=torch.float32)
    arguments["A"] = arguments["A"] * 1e4
    grads = upstream(arguments)
    given = [arguments[name] for name in PLAIN]
    gradients = rows.backward(composed, *grads, *given, None, None, True)
    assert all(torch.isfinite(x).all() for x in gradients if x is not None)


def test_tangents_are_finite_where_nothing_fades_a_state_of_zero():
    arguments = nothing_fades()
    given = [arguments.get(name) for name in PLAIN]
    for one, other in zip(composed.forward(*given, True), run(arguments, backend="reference")):
        assert_matches_reference(one, other, what="output or last state")
    u = arguments["u"]
    scan = lambda u: selective_scan(**{**arguments, "u": u}, delta_softplus=True)  # noqa: E731
    value, tangent = jvp(scan, (u,), (u,))
    assert_matches_reference(tangent, value, what="tangent, of what is linear in u")


def test_composition_needs_operations_by_the_logarithm_of_the_length():
    def count(length):
        arguments = random_arguments(batch=1, length=length, channels=2, state=2, groups=1)
        graph = make_fx(composed.forward)(*(arguments[name] for name in PLAIN), True).graph
        return len(graph.nodes)

    assert count(16**3) - count(16**2) < 60
    assert count(16**3) == count(16**3 - 7)


# Whole networks


def small_unet(spatial_dims, **options):
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
    return LoGVMambaUNet(1, 3, [8, 8, 8], convolution, 3, [1, 2, 2], 2, squeeze=8, **options)


NETWORKS = {
    "2d": (lambda: small_unet(2, directions=2), (16, 16)),
    "3d": (lambda: small_unet(3), (8, 8, 8)),
    "swin": (
        lambda: LoGVMambaSwinUNet(1, 3, [8, 8, 16], [1, 4, 2], 2, [1, 1], 1),
        (16, 16),
    ),
}


@pytest.fixture(params=NETWORKS)
def network_and_images(request):
    make, size = NETWORKS[request.param]
    torch.manual_seed(0)
    return make().double().eval(), torch.randn(2, 1, *size, dtype=torch.float64)


def test_tangents_of_a_network_agree_with_finite_differences(network_and_images):
    network, images = network_and_images
    direction = torch.randn_like(images)
    _, tangent = jvp(network, (images,), (direction,))
    with torch.no_grad():
        difference = (network(images + 1e-7 * direction) - network(images - 1e-7 * direction)) / 2e-7
    assert_matches_reference(tangent, difference, tolerance=1e-5)
    assert_matches_reference(with_dual_numbers(network, (images,), (direction,))[0], tangent)


def test_per_sample_gradients_of_a_network_are_those_of_each_sample(network_and_images):
    network, images = network_and_images
    parameters = {name: value.detach() for name, value in network.named_parameters()}

    def loss(parameters, image):
        return functional_call(network, parameters, (image[None],)).square().mean()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, images)
    for index in range(2):
        value = network(images[index : index + 1]).square().mean()
        expected = torch.autograd.grad(value, list(network.parameters()), allow_unused=True, materialize_grads=True)
        largest = max(x.abs().max() for x in expected)  # some are zero but for rounding
        for gradient, value in zip(found.values(), expected):
            assert (gradient[index] - value).abs().max() <= 1e-10 * largest


def test_a_product_with_the_hessian_of_a_network_is_the_same_by_two_ways(network_and_images):
    network, images = network_and_images
    parameters = {name: value.detach() for name, value in network.named_parameters() if name.startswith("encoder")}
    direction = {name: torch.randn_like(value) for name, value in parameters.items()}

    def loss(parameters):
        return functional_call(network, parameters, (images,)).square().mean()

    forward_over_reverse = jvp(grad(loss), (parameters,), (direction,))[1]
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    options = {"allow_unused": True, "materialize_grads": True}
    gradients = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True, **options)
    along = sum((g * d).sum() for g, d in zip(gradients, direction.values()))
    reverse_over_reverse = torch.autograd.grad(along, list(leaves.values()), **options)
    largest = max(x.abs().max() for x in reverse_over_reverse)
    for one, other in zip(forward_over_reverse.values(), reverse_over_reverse):
        assert (one - other).abs().max() <= 1e-10 * largest
