"""The GPU scan: on a GPU if there is one, else in Triton's interpreter, and through the real compiler in any case."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from numerics import assert_matches_reference
from scan_cases import NAMES, PLAIN, expected_with_gradients, random_arguments, run, run_with_gradients, upstream
from torch._dynamo.testing import CompileCounterWithBackend

from nnunet_logvmamba.ops import available_backends, backends, selective_scan

triton = pytest.importorskip("triton", reason="needs triton, which is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OP = torch.ops.nnunet_logvmamba.selective_scan.default
BACKWARD_OP = torch.ops.nnunet_logvmamba.selective_scan_backward.default
SMALL = {"batch": 1, "groups": 1, "channels": 5, "state": 3}


@pytest.fixture
def launch():
    from nnunet_logvmamba.ops.scan import triton_launch

    return triton_launch


@pytest.fixture
def short_chunks(launch, monkeypatch):
    """A chunk is a single tile."""
    monkeypatch.setattr(launch, "TILES_PER_CHUNK", 1)
    monkeypatch.setattr(launch, "_processors", lambda device: 10**6)


@pytest.fixture
def gpu_tiles(launch, monkeypatch):
    """The interpreter, too, takes as many states at a time as a GPU."""
    monkeypatch.setattr(launch, "INTERPRETED_STATES", None)


def on_device(tensors):
    return {name: value.to(DEVICE) for name, value in tensors.items()}


def assert_all_match(arguments, *, delta_softplus=True):
    grads = upstream(arguments)
    expected = expected_with_gradients(arguments, *grads, delta_softplus=delta_softplus)
    actual = run_with_gradients(
        on_device(arguments), *(g.to(DEVICE) for g in grads), delta_softplus=delta_softplus, backend="triton"
    )
    for key, value in expected.items():
        assert_matches_reference(actual[key].cpu(), value, what=key, backend="triton")


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 33])
def test_outputs_and_gradients_match_float64_reference(length):
    assert_all_match(random_arguments(length=length, **SMALL))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes_with_context_and_order(dtype):
    assert_all_match(random_arguments(length=21, extra=3, shuffled=True, dtype=dtype, **SMALL))


@pytest.mark.parametrize(("one", "other"), [(torch.float16, torch.float32), (torch.float32, torch.float16)], ids=str)
def test_a_context_of_another_dtype(one, other):
    arguments = random_arguments(length=11, extra=3, shuffled=True, dtype=torch.float32, **SMALL)
    assert_all_match(arguments | {"u": arguments["u"].to(one), "context": arguments["context"].to(other)})


@pytest.mark.parametrize("delta_softplus", [True, False])
def test_an_order_without_context(delta_softplus):
    arguments = random_arguments(length=21, shuffled=True, **SMALL)
    if not delta_softplus:
        arguments["delta"] = arguments["delta"].abs()
        arguments["delta_bias"] = arguments["delta_bias"].abs()
    assert arguments["order"].tolist() != sorted(arguments["order"].tolist())
    assert_all_match(arguments, delta_softplus=delta_softplus)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize(
    ("extra", "shuffled"), [*(pytest.param(*one, marks=pytest.mark.slow) for one in [(0, True), (2, False)]), (2, True)]
)
def test_more_chunks_than_are_carried_at_once(extra, shuffled):
    # 18 chunks of 16 steps forward, and 35 of 8 backward.
    arguments = random_arguments(
        length=277 - extra, extra=extra, shuffled=shuffled, dtype=torch.float32, **SMALL | {"state": 1}
    )
    assert_all_match(arguments)


def test_a_sequence_fills_the_device_once(launch, monkeypatch):
    monkeypatch.setattr(launch, "_processors", lambda device: 132)
    arguments = random_arguments(batch=2, length=262144, channels=54, state=1, groups=1, dtype=torch.float16)
    tensors = [arguments.get(name) for name in NAMES]
    for tiles in (launch.FORWARD_TILES, launch.BACKWARD_TILES):
        p = launch._Problem(*tensors, True, tiles)
        programs = p.chunks * 2 * p.blocks
        assert 0.9 * 132 * p.tile.programs < programs <= 132 * p.tile.programs
        assert (p.chunks - 1) * p.tiles * p.tile.steps < 262144 <= p.padded


@pytest.mark.usefixtures("gpu_tiles", "short_chunks")
@pytest.mark.parametrize(("channels", "groups"), [(5, 1), (40, 1), (66, 2), (70, 1)])
def test_tiles_of_a_gpu(channels, groups):
    sizes = SMALL | {"channels": channels, "groups": groups}
    assert_all_match(random_arguments(length=19, extra=2, shuffled=True, dtype=torch.float32, **sizes))


@pytest.mark.parametrize(
    ("name", "dtype", "most"), [("LOG1P_8", torch.float32, 3e-7), ("LOG1P_18", torch.float64, 4e-15)]
)
def test_the_polynomials_of_softplus_are_the_logarithm(name, dtype, most):
    from nnunet_logvmamba.ops.scan import triton_kernels

    z = torch.linspace(0, 1, 10001, dtype=torch.float64)[1:]
    found = torch.zeros_like(z, dtype=dtype)
    for coefficient in reversed(getattr(triton_kernels, name).value):
        found = found * z.to(dtype) + coefficient
    assert ((found * z / torch.log1p(z)) - 1).abs().max() < most


@pytest.mark.parametrize("state", [16, 17])
def test_states_that_fill_a_tile_and_that_do_not(state):
    assert_all_match(random_arguments(length=9, **SMALL | {"state": state}))


@pytest.mark.parametrize(("channels", "groups", "batch"), [(70, 1, 1), (66, 2, 2), (6, 6, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_channels_of_several_programs(channels, groups, batch, dtype):
    arguments = random_arguments(batch=batch, length=6, channels=channels, state=2, groups=groups, dtype=dtype)
    assert_all_match(arguments)


@pytest.mark.parametrize("absent", [("D",), ("delta_bias",), ("initial_state",), PLAIN[5:]], ids=str)
@pytest.mark.parametrize("delta_softplus", [True, False])
def test_optional_arguments_may_be_absent(absent, delta_softplus):
    arguments = random_arguments(length=10, absent=absent, **SMALL)
    if not delta_softplus:
        arguments["delta"] = arguments["delta"].abs()
    assert_all_match(arguments, delta_softplus=delta_softplus)


def test_non_contiguous_arguments_give_the_same():
    plain = random_arguments(length=12, extra=2, shuffled=True, **SMALL)
    views = {
        name: value.movedim(1, -1).contiguous().movedim(-1, 1) if value.dim() > 2 else value
        for name, value in plain.items()
    }
    assert not views["u"].is_contiguous()
    assert_all_match(views)


def test_parts_of_wider_tensors_give_the_same():
    """As a network has them: rows are further apart than they are wide, and do not begin at a round address."""
    plain = random_arguments(length=18, extra=2, shuffled=True, **SMALL | {"batch": 2})
    wide = {
        name: torch.nn.functional.pad(value, (3, 4), value=float("nan"))[..., 3:-4] if value.dim() > 2 else value
        for name, value in plain.items()
    }
    assert wide["u"].stride()[1:] == (12, 1)
    grads = upstream(plain)
    expected = expected_with_gradients(plain, *grads)
    wide_grad = torch.nn.functional.pad(grads[0], (1, 1), value=float("nan")).to(DEVICE)[..., 1:-1]
    actual = run_with_gradients(on_device(wide), wide_grad, grads[1].to(DEVICE), backend="triton")
    for key, value in expected.items():
        assert_matches_reference(actual[key].cpu(), value, what=key, backend="triton")


def test_expanded_arguments_and_upstream_gradients_are_right():
    arguments = random_arguments(length=9, **SMALL | {"batch": 2})
    arguments["u"] = arguments["u"][:1].expand(2, -1, -1)
    arguments["B"] = arguments["B"][:, :1].expand(-1, 9, -1, -1)
    grads = torch.ones(1).double().expand(2, 9, 5), torch.zeros(2, 5, 3).double()
    expected = expected_with_gradients(arguments, *grads)
    on_gpu = {name: value.cuda() for name, value in arguments.items()} if DEVICE == "cuda" else arguments
    actual = run_with_gradients(on_gpu, *(g.to(DEVICE) for g in grads), backend="triton")
    for key, value in expected.items():
        assert_matches_reference(actual[key].cpu(), value, what=key, backend="triton")


def test_offsets_of_64_bits_give_the_same(launch, monkeypatch):
    monkeypatch.setattr(launch, "_extent", lambda x, row: 2**31)
    assert_all_match(random_arguments(length=18, extra=2, shuffled=True, **SMALL))


def test_steps_beyond_the_softplus_threshold_are_linear():
    arguments = random_arguments(length=20, **SMALL)
    arguments["delta"] = arguments["delta"] * 30.0
    assert (arguments["delta"] > 20).any()
    assert_all_match(arguments)


@pytest.mark.usefixtures("short_chunks")
def test_decay_that_underflows_in_float32_keeps_values_finite_and_right():
    arguments = random_arguments(length=40, dtype=torch.float32, **SMALL)
    arguments["A"] = arguments["A"] * 200.0
    assert (torch.exp(arguments["A"] * 2) == 0).any()
    assert_all_match(arguments)


@pytest.mark.usefixtures("short_chunks")
def test_where_nothing_fades_a_state_of_zero_stays_zero():
    arguments = random_arguments(length=130, dtype=torch.float32, absent=("initial_state",), **SMALL)
    arguments["A"] = -arguments["A"]
    arguments["u"][:, :125] = 0
    expected = run(arguments, backend="reference")
    assert all(value.isfinite().all() for value in expected)
    for one, other in zip(run(on_device(arguments), backend="triton"), expected):
        assert_matches_reference(one.cpu(), other, what="output or last state", backend="triton")


def test_without_states_there_is_the_direct_path():
    assert_all_match(random_arguments(length=20, extra=2, shuffled=True, **SMALL | {"state": 0}))


@pytest.mark.parametrize("empty", [{"batch": 0}, {"channels": 0}], ids=str)
def test_nothing_gives_nothing_and_gradients_of_zero(empty):
    arguments = random_arguments(length=5, extra=2, **SMALL | empty)
    grads = upstream(arguments)
    results = run_with_gradients(on_device(arguments), *(g.to(DEVICE) for g in grads), backend="triton")
    for name, value in arguments.items():
        assert results[f"grad {name}"].shape == value.shape
        assert not results[f"grad {name}"].any()


def test_two_runs_give_the_same_bits():
    arguments = on_device(random_arguments(length=40, channels=70, state=2, groups=1, batch=1, dtype=torch.float32))
    grads = [g.to(DEVICE) for g in upstream(arguments)]
    one, other = (run_with_gradients(arguments, *grads, backend="triton") for _ in range(2))
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def test_gradcheck_passes():
    arguments = random_arguments(batch=1, length=2, channels=2, state=1, groups=1, extra=1, shuffled=True)
    order = arguments.pop("order").to(DEVICE)
    leaves = [value.to(DEVICE).requires_grad_() for value in arguments.values()]

    def scan(*tensors):
        return torch.ops.nnunet_logvmamba.selective_scan(*tensors, order, True, "triton")

    assert torch.autograd.gradcheck(scan, leaves, fast_mode=True)


@pytest.mark.parametrize("absent", [(), PLAIN[5:]], ids=str)
def test_opcheck_passes_for_both_ops(absent):
    arguments = on_device(random_arguments(length=3, extra=1, shuffled=True, absent=absent, **SMALL))
    tensors = [arguments.get(name) for name in NAMES]
    grads = [g.to(DEVICE) for g in upstream(arguments)]
    torch.library.opcheck(BACKWARD_OP, (*grads, *tensors, True, "triton"))
    leaves = [x.requires_grad_() if x is not None and x.is_floating_point() else x for x in tensors]
    torch.library.opcheck(OP, (*leaves, True, "triton"))


def test_compiled_without_a_graph_break_for_changing_lengths():
    def loss(arguments):
        return selective_scan(**arguments, backend="triton").square().sum()

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for length in (3, 5, 9):
        arguments = on_device(random_arguments(length=length, absent=("initial_state",), **SMALL))
        leaves = {name: value.requires_grad_() for name, value in arguments.items()}
        expected = torch.autograd.grad(loss(leaves), list(leaves.values()))
        actual = torch.autograd.grad(compiled(leaves), list(leaves.values()))
        for name, one, other in zip(leaves, actual, expected):
            assert_matches_reference(one, other, what=f"gradient of {name} at length {length}", backend="triton")
    assert counter.frame_count <= 2, "the length should become dynamic at its first change"


def test_exported_program_holds_the_op_and_runs_at_another_length():
    class Scan(torch.nn.Module):
        def forward(self, u, delta, A, B, C, D):
            return selective_scan(u, delta, A, B, C, D, backend="triton")

    one, other = (
        tuple(on_device(random_arguments(length=length, absent=PLAIN[6:], dtype=torch.float32, **SMALL)).values())
        for length in (6, 11)
    )
    length = torch.export.Dim("length", min=2, max=4096)
    dynamic = tuple({1: length} if place in (0, 1, 3, 4) else None for place in range(6))
    program = torch.export.export(Scan(), one, dynamic_shapes=dynamic, strict=True)
    assert OP in [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.equal(program.module()(*other), Scan()(*other))


def test_autocast_keeps_state_and_sums_in_float32():
    arguments = on_device(random_arguments(length=12, dtype=torch.float32, **SMALL))
    half = torch.float16 if DEVICE == "cuda" else torch.bfloat16
    for name in ("u", "delta", "B", "C"):  # what projections under autocast hand over
        arguments[name] = arguments[name].to(half)
    grads = upstream({name: value.cpu() for name, value in arguments.items()})
    grad_y, grad_state = (g.to(DEVICE) for g in grads)
    rounded = {name: value.float() for name, value in arguments.items()}
    expected = run_with_gradients(rounded, grad_y.float(), grad_state, backend="triton")
    with torch.autocast(DEVICE, dtype=half):
        actual = run_with_gradients(arguments, grad_y, grad_state, backend="triton")
    for key, value in expected.items():
        assert torch.equal(actual[key], value.to(actual[key].dtype)), f"{key} was not computed in float32"


def test_checked_like_auto_checks_it_whatever_the_default_device():
    with torch.device("meta"):
        assert backends.what_fails("triton", DEVICE) is None


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU it runs there")
def test_without_gpu_and_interpreter_it_says_what_it_needs(monkeypatch):
    assert "triton" in available_backends("cpu")
    assert backends.automatic("cpu") != "triton", "an interpreter is no default"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match=r"'triton' cannot run on device cpu: It runs on GPUs.*TRITON_INTERPRET=1"):
        selective_scan(**random_arguments(length=3, absent=("initial_state",)), backend="triton")


def test_threads_that_compile_at_once_leave_the_folder_of_triton_as_it_was(launch, monkeypatch):
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)

    def compile_for(seconds):
        with launch._kept_in("folder"):
            time.sleep(seconds)
            return os.environ["TRITON_CACHE_DIR"]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(compile_for, (0.05, 0.1, 0.05))) == ["folder"] * 3
    assert "TRITON_CACHE_DIR" not in os.environ


@pytest.mark.parametrize(
    ("capability", "channels"),
    [
        (90, ("54", "108", "256")),
        pytest.param(90, ("27", "30"), marks=pytest.mark.slow),
        *(pytest.param(other, ("54",), marks=pytest.mark.slow) for other in (75, 80, 86, 89, 100)),
    ],
)
def test_kernels_compile_for_a_gpu(capability, channels, tmp_path, launch):
    script = os.path.join(os.path.dirname(__file__), "compile_kernels.py")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, script, str(capability), *channels],
        env=env | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("compiling kernels of the selective scan, once") == 1
    assert str(tmp_path) in done.stderr
    compiled = [line.split() for line in done.stdout.splitlines()]
    # Once, however wide the network's stages are; what carries runs in both directions.
    assert len(compiled) == 6
    # Values move between threads only to be summed over channels: 16 of them, with one exchange for each.
    moving = {"finish_chunks_backward": 16}
    # Of a thread, for each step of a state.
    most_instructions = {
        "sum_chunks": 7.8,
        "carry": 0,
        "finish_chunks": 9.2,
        "sum_chunks_backward": 12.0,
        "finish_chunks_backward": 27.5,
    }
    assert {name for name, *_ in compiled} == set(most_instructions)
    # Side by side on a multiprocessor: as many as the launch counts on, else a few would wait for all others.
    programs = dict.fromkeys(("sum_chunks", "finish_chunks"), launch.FORWARD_TILES[0][1].programs)
    programs |= {f"{name}_backward": launch.BACKWARD_TILES[0][1].programs for name in programs}
    for name, size, shared, moves, registers, spilled, beside, instructions in compiled:
        assert int(size) > 1000, f"{name} has no machine code"
        assert int(shared) == 0, f"{name} goes through shared memory"
        assert int(moves) == moving.get(name, 0), f"{name} moves values between threads {moves} times"
        assert int(registers) <= 255
        assert int(spilled) <= (8 if capability == 75 else 0), f"{name} spills {spilled} bytes a thread"
        assert int(beside) >= programs.get(name, 12), f"{name} takes {registers} registers, for {beside} programs"
        if capability == 90 and "27" not in channels:  # fewer channels have another tile
            assert float(instructions) <= most_instructions[name], f"{name} has {instructions} instructions for a step"
