"""The causal convolution: values, derivatives, rows in any order, half precision, and life inside torch."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_matches_reference

from nnunet_logvmamba.ops import causal_conv1d
from nnunet_logvmamba.ops.causal_conv import backends

OP = torch.ops.nnunet_logvmamba.causal_conv1d.default
BACKWARD_OP = torch.ops.nnunet_logvmamba.causal_conv1d_backward.default


def arguments(length=9, channels=5, kernel=4, bias=True, shuffled=False, dtype=torch.float64, requires_grad=False):
    x, weight = torch.randn(2, length, channels, dtype=dtype), torch.randn(channels, kernel, dtype=dtype)
    tensors = [x, weight, torch.randn(channels, dtype=dtype) if bias else None]
    for tensor in tensors:
        if tensor is not None:
            tensor.requires_grad_(requires_grad)
    return [*tensors, torch.randperm(length) if shuffled else None]


def as_written(x, weight, bias, order, silu):
    """Step by step, as the docstring says."""
    length, kernel = x.shape[1], weight.shape[1]
    order = torch.arange(length) if order is None else order
    rows = [None] * length
    for t in range(length):
        y = torch.zeros_like(x[:, 0]) if bias is None else bias.expand_as(x[:, 0])
        for j in range(kernel):
            if t - (kernel - 1) + j >= 0:
                y = y + weight[:, j] * x[:, order[t - (kernel - 1) + j]]
        rows[order[t]] = F.silu(y) if silu else y
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(
    ("length", "kernel", "bias"), [(9, 4, True), (2, 4, True), (1, 4, False), (7, 1, True), (5, 6, 0)]
)
def test_values_and_gradients_are_those_of_the_equation(length, kernel, bias, shuffled, silu):
    *tensors, order = arguments(length, kernel=kernel, bias=bias, shuffled=shuffled, requires_grad=True)
    expected = as_written(*tensors, order, silu)
    found = causal_conv1d(*tensors, order=order, silu=silu)
    assert_matches_reference(found, expected)
    leaves, upstream = [t for t in tensors if t is not None], torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(expected, leaves, upstream)
    ):
        assert one.is_contiguous()
        assert_matches_reference(one, other)


@pytest.mark.parametrize("shuffled", [False, True])
def test_derivatives_of_every_kind_are_right(shuffled):
    *tensors, order = arguments(5, 3, shuffled=shuffled, requires_grad=True)
    derivatives_are_right(*tensors, order)


def test_derivatives_of_a_kernel_longer_than_the_sequence_are_right():
    derivatives_are_right(*arguments(2, 3, kernel=4, requires_grad=True))


def derivatives_are_right(x, weight, bias, order):
    tensors = x, weight, bias
    compute = lambda *tensors: causal_conv1d(*tensors, order=order, silu=True)  # noqa: E731
    assert torch.autograd.gradcheck(compute, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(compute, tensors)
    x, weight, bias = (t.detach() for t in tensors)
    each = torch.func.vmap(torch.func.grad(lambda x: compute(x[None], weight, bias).square().sum()))(x)
    assert torch.allclose(each, torch.func.grad(lambda x: compute(x, weight, bias).square().sum())(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_are_single_precision_whatever_the_input_and_autocast_say(dtype):
    x, weight, bias, _ = arguments(64, 16, dtype=torch.float32)
    expected = causal_conv1d(x.to(dtype), weight, bias, silu=True)
    assert expected.dtype == dtype
    exact = causal_conv1d(x.to(dtype).double(), weight.double(), bias.double(), silu=True)
    assert_matches_reference(expected, exact)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(causal_conv1d(x, weight, bias, silu=True), causal_conv1d(x, weight, bias, silu=True))
        assert_matches_reference(
            causal_conv1d(x, weight, bias), causal_conv1d(x.double(), weight.double(), bias.double())
        )


def test_derivatives_of_every_kind_are_those_without_autocast():
    *tensors, _ = arguments(30, kernel=4, dtype=torch.float32)

    def found() -> list[torch.Tensor]:
        compute = lambda *tensors: causal_conv1d(*tensors, silu=True)  # noqa: E731
        value, tangent = torch.func.jvp(compute, tuple(tensors), tuple(tensors))
        first = torch.func.grad(lambda x: compute(x, *tensors[1:]).square().sum())
        _, second = torch.func.jvp(first, (tensors[0],), (tensors[0],))
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        grads = torch.autograd.grad(compute(*leaves).square().sum(), leaves, create_graph=True)
        return [value, tangent, second, *torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)]

    expected = found()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for one, other in zip(found(), expected):
            assert torch.equal(one, other)


@pytest.mark.parametrize("mixed", [(0,), (1, 2), (2,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_have_the_dtypes_that_a_compiler_is_told(dtype, mixed):
    """As under autocast, where images are in half precision and a bias is not."""
    *tensors, order = arguments(dtype=torch.float32)
    tensors = [tensor.to(dtype) if place in mixed else tensor for place, tensor in enumerate(tensors)]
    inputs = (torch.randn_like(tensors[0]), *tensors, order, True, "auto")
    torch.library.opcheck(BACKWARD_OP, inputs, rtol=1e-2, atol=1e-2)
    with torch._subclasses.FakeTensorMode() as mode:
        told = BACKWARD_OP(*(mode.from_tensor(i) if isinstance(i, torch.Tensor) else i for i in inputs))
    for one, fake, tensor in zip(BACKWARD_OP(*inputs), told, tensors):
        assert (one.dtype, one.shape) == (fake.dtype, fake.shape) == (tensor.dtype, tensor.shape)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shuffled", [False, True])
def test_opcheck_passes_forwards_and_backwards(shuffled, bias):
    inputs = arguments(bias=bias, shuffled=shuffled, dtype=torch.float32, requires_grad=True)
    torch.library.opcheck(OP, (*inputs, True, "auto"))
    inputs = [None if t is None else t.detach() for t in inputs]
    torch.library.opcheck(BACKWARD_OP, (torch.randn_like(inputs[0]), *inputs, True, "auto"))


def test_it_stays_one_node_in_compiled_and_exported_graphs():
    class Layer(torch.nn.Module):
        def forward(self, x, weight, bias):
            return causal_conv1d(x, weight, bias, order=torch.arange(x.shape[1]).flip(0), silu=True)

    inputs = tuple(arguments(dtype=torch.float32)[:3])
    torch._dynamo.reset()
    compiled = torch.compile(Layer(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), Layer()(*inputs))
    exported = torch.export.export(Layer(), inputs)
    assert [node.target for node in exported.graph.nodes].count(OP) == 1
    assert torch.allclose(exported.run_decompositions().module()(*inputs), Layer()(*inputs), atol=1e-6)


def test_arguments_that_do_not_fit_are_named():
    x, weight, bias, _ = arguments()
    for wrong, words in (
        ({"x": x[0]}, "x is .batch, length, channels."),
        ({"weight": weight[:2]}, r"as many channels.*weight \(2, 4\)"),
        ({"bias": bias[:2]}, r"as many channels.*bias \(2,\)"),
        ({"x": x[:, :0]}, "at least one step"),
        ({"x": x[..., :0], "weight": weight[:0], "bias": bias[:0]}, "at least one step and channel"),
        ({"x": None}, "x is None; a tensor is needed"),
        ({"weight": weight.tolist()}, "weight is a list; a tensor is needed"),
        ({"order": [0, 1]}, "order is a list; a tensor is needed"),
        ({"weight": weight.long()}, "weight has dtype torch.int64"),
        ({"bias": bias.to("meta")}, "bias is on meta but x is on cpu"),
        ({"order": torch.zeros(9)}, "order is torch.float32"),
        ({"order": torch.zeros(9, dtype=torch.int64)}, "not a permutation of 0 to 8"),
        ({"backend": "numba"}, "Unknown convolution backend 'numba'; choose one of: auto, torch, causal_conv1d"),
        ({"backend": "causal_conv1d"}, "'causal_conv1d' cannot run: It runs on CUDA devices only. Choose 'torch'"),
    ):
        with pytest.raises(ValueError, match=words):
            causal_conv1d(**{"x": x, "weight": weight, "bias": bias} | wrong)


class _TheirConvolution(torch.autograd.Function):
    """In plain torch what the package computes in CUDA: sums in float32, gradients in the dtype of each input."""

    @staticmethod
    def forward(ctx, x, weight, bias, silu):
        assert x.stride(2) == 1 or (x.stride(1) == 1 and x.shape[1] % 8 == 0)
        assert (weight.dtype, weight.is_contiguous()) == (torch.float32, True)
        ctx.save_for_backward(x, weight, bias)
        ctx.silu = silu
        return _TheirConvolution.compute(x.float(), weight, bias, silu).to(x.dtype)

    @staticmethod
    def compute(x, weight, bias, silu):
        y = F.conv1d(F.pad(x, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=weight.shape[0])
        return F.silu(y) if silu else y

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias = ctx.saved_tensors
        assert grad.stride(2) == 1 or grad.stride(1) == 1
        present = [t for t in (x, weight, bias) if t is not None]

        def compute(x, weight, bias=None):
            return _TheirConvolution.compute(x.float(), weight, bias, ctx.silu)

        grads = torch.func.vjp(compute, *present)[1](grad.float())
        return *grads, *[None] * (4 - len(grads))


@pytest.fixture
def package(monkeypatch):
    """What stands for ``causal-conv1d``, whose kernel needs a GPU, on the CPU."""
    module = types.ModuleType("causal_conv1d")
    module.causal_conv1d_fn = lambda x, weight, bias=None, activation=None: _TheirConvolution.apply(
        x, weight, bias, activation == "silu"
    )
    monkeypatch.setitem(sys.modules, "causal_conv1d", module)
    monkeypatch.delitem(sys.modules, backends.BACKENDS["causal_conv1d"], raising=False)
    monkeypatch.setattr(backends, "obstacle", lambda x, weight, bias=None: None)
    backends.works.cache_clear()
    yield module
    backends.works.cache_clear()
    sys.modules.pop(backends.BACKENDS["causal_conv1d"], None)


@pytest.mark.parametrize("channels", [5, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_packages_kernel_gives_what_torch_gives(channels, dtype, bias, package):
    *tensors, order = arguments(channels=channels, bias=bias, shuffled=True, dtype=torch.float32, requires_grad=True)
    leaves, results = [t for t in tensors if t is not None], []
    for backend in ("causal_conv1d", "torch", "auto"):
        x, *others = tensors
        y = causal_conv1d(x.to(dtype), *others, order=order, silu=True, backend=backend)
        results.append([y, *torch.autograd.grad(y.float().square().sum(), leaves)])
    for theirs, ours, chosen in zip(*results, strict=True):
        assert torch.equal(theirs, chosen)
        assert torch.allclose(theirs, ours, rtol=1e-2 if dtype == torch.float16 else 1e-5, atol=1e-5)


def test_a_package_that_does_not_work_is_told_once_and_left(package):
    package.causal_conv1d_fn = lambda x, *_, **__: torch.zeros_like(x)
    x, weight, bias, _ = arguments(dtype=torch.float32)
    with pytest.warns(RuntimeWarning, match="not with the installed causal-conv1d"):
        found = causal_conv1d(x, weight, bias)
    assert torch.equal(found, causal_conv1d(x, weight, bias, backend="torch"))
