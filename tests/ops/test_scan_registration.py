"""Does the op behave inside torch: opcheck, compile, export, autocast? None of these says anything about values."""

import pytest
import torch
from numerics import assert_matches_reference
from scan_cases import NAMES, PLAIN, random_arguments, run_with_gradients, upstream
from torch._dynamo.testing import CompileCounterWithBackend

from nnunet_logvmamba.ops import selective_scan, selective_scan_with_state

OP = torch.ops.nnunet_logvmamba.selective_scan.default
BACKWARD_OP = torch.ops.nnunet_logvmamba.selective_scan_backward.default


def op_arguments(backend, *, requires_grad=True, permuted=False, **options):
    arguments = random_arguments(**options)
    if permuted:
        arguments = {
            name: value.movedim(0, -1).contiguous().movedim(-1, 0) if value.dim() > 1 else value
            for name, value in arguments.items()
        }
        assert not arguments["u"].is_contiguous()
    tensors = [arguments.get(name) for name in NAMES]
    return tuple(x.requires_grad_(requires_grad) if x is not None and x.is_floating_point() else x for x in tensors), (
        True,
        backend,
    )


@pytest.mark.parametrize("permuted", [False, True], ids=["contiguous", "permuted"])
@pytest.mark.parametrize("absent", [(), PLAIN[5:]], ids=str)
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("rows", [{}, {"extra": 3, "shuffled": True}], ids=["sequence", "rows"])
def test_opcheck_passes(rows, requires_grad, absent, permuted, backend):
    tensors, rest = op_arguments(backend, requires_grad=requires_grad, permuted=permuted, absent=absent, **rows)
    torch.library.opcheck(OP, (*tensors, *rest))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_opcheck_passes_in_half_precision(dtype, backend):
    tensors, rest = op_arguments(backend, dtype=dtype)
    torch.library.opcheck(OP, (*tensors, *rest), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("permuted", [False, True], ids=["contiguous", "permuted"])
@pytest.mark.parametrize("absent", [(), PLAIN[5:]], ids=str)
@pytest.mark.parametrize("rows", [{}, {"extra": 3, "shuffled": True}], ids=["sequence", "rows"])
def test_opcheck_of_the_backward_op_passes(rows, absent, permuted, backend):
    tensors, rest = op_arguments(backend, requires_grad=False, permuted=permuted, absent=absent, **rows)
    grads = upstream({"u": tensors[0], "A": tensors[2]})
    torch.library.opcheck(BACKWARD_OP, (*grads, *tensors, *rest))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("permuted", [False, True], ids=["contiguous", "permuted"])
def test_outputs_without_data_look_like_the_real_ones(permuted, dtype, backend):
    tensors, rest = op_arguments(backend, requires_grad=False, permuted=permuted, dtype=dtype)
    grads = upstream({"u": tensors[0], "A": tensors[2]})
    for op, arguments in ((OP, tensors), (BACKWARD_OP, (*grads, *tensors))):
        real = op(*arguments, *rest)
        fake = op(*(None if x is None else x.to("meta") for x in arguments), *rest)
        for one, other in zip(real, fake, strict=True):
            assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
            assert one.is_contiguous()


@pytest.mark.parametrize("absent", [("initial_state",), PLAIN[5:]], ids=str)
def test_compiled_without_a_graph_break_for_changing_lengths(absent, backend):
    counter = CompileCounterWithBackend("aot_eager")

    def loss(arguments):
        y = selective_scan(**arguments, backend=backend)
        return (y * torch.arange(y.shape[1], dtype=y.dtype)[:, None]).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for length in (5, 9, 33, 34):
        leaves = {k: v.requires_grad_() for k, v in random_arguments(length=length, absent=absent).items()}
        expected = torch.autograd.grad(loss(leaves), list(leaves.values()))
        actual = torch.autograd.grad(compiled(leaves), list(leaves.values()))
        for name, one, other in zip(leaves, actual, expected):
            assert_matches_reference(one, other, what=f"gradient of {name} at length {length}", backend=backend)
    assert counter.frame_count <= 2, "the length should become dynamic at its first change"


def test_compiled_function_with_state_equals_the_plain_one(backend):
    arguments = random_arguments(dtype=torch.float32)

    def scan(arguments):
        return selective_scan_with_state(**arguments, backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(arguments), scan(arguments)):
        assert torch.equal(one, other)


class Scan(torch.nn.Module):
    def __init__(self, backend: str):
        super().__init__()
        self.backend = backend

    def forward(self, u, delta, A, B, C, D):
        return selective_scan(u, delta, A, B, C, D, backend=self.backend)


def test_exported_program_holds_the_op_and_runs_at_other_lengths(backend):
    names = PLAIN[:6]
    arguments = random_arguments(length=12, absent=PLAIN[6:], dtype=torch.float32)
    length = torch.export.Dim("length", min=2, max=4096)
    dynamic = {name: {1: length} if name in ("u", "delta", "B", "C") else None for name in names}
    program = torch.export.export(
        Scan(backend), tuple(arguments[name] for name in names), dynamic_shapes=dynamic, strict=True
    )
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert OP in targets
    other = random_arguments(length=29, absent=PLAIN[6:], dtype=torch.float32, seed=3)
    expected = selective_scan(**other, backend=backend)
    assert torch.equal(program.module()(*(other[name] for name in names)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_keeps_state_and_sums_in_float32(dtype, backend):
    arguments = random_arguments(length=200, dtype=torch.float32)
    for name in ("u", "delta", "B", "C"):  # what projections under autocast hand over
        arguments[name] = arguments[name].to(dtype)
    grad_y, grad_state = upstream(arguments)
    rounded = {name: value.float() for name, value in arguments.items()}
    expected = run_with_gradients(rounded, grad_y.float(), grad_state, backend=backend)
    with torch.autocast("cpu", dtype=dtype):
        actual = run_with_gradients(arguments, grad_y, grad_state, backend=backend)
    assert actual["y"].dtype == dtype
    for key, value in expected.items():
        assert torch.equal(actual[key], value.to(actual[key].dtype)), f"{key} was not computed in float32"


def test_float32_arguments_stay_float32_under_autocast(backend):
    arguments = random_arguments(length=50, dtype=torch.float32)
    expected = run_with_gradients(arguments, *upstream(arguments), backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = run_with_gradients(arguments, *upstream(arguments), backend=backend)
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


def test_empty_gradients_stand_for_absent_arguments(backend):
    tensors, rest = op_arguments(backend, requires_grad=False, absent=PLAIN[5:])
    gradients = BACKWARD_OP(*upstream({"u": tensors[0], "A": tensors[2]}), *tensors, *rest)
    assert [g.numel() for g in gradients[5:]] == [0, 0, 0, 0]
    assert [g.shape for g in gradients[:5]] == [x.shape for x in tensors[:5]]
