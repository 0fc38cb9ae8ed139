"""The compiled CPU backend: threads, segments, vectors, memory, and where its code is kept."""

import math
import os
import platform
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import njit
from numerics import assert_matches_reference
from scan_cases import nothing_fades, random_arguments, run, run_with_gradients, upstream

from nnunet_logvmamba.ops import backends
from nnunet_logvmamba.ops.scan import numba_kernels, numba_launch, numba_threads, numba_vectors
from nnunet_logvmamba.ops.scan.numba_vectors import LANES


@pytest.fixture
def threads():
    """Set torch's number of threads, and set it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def eager_to_split(monkeypatch):
    """Give even small problems to all threads and cut even short sequences into segments."""
    monkeypatch.setattr(numba_launch, "_STATES_PER_TASK", 1)
    monkeypatch.setattr(numba_launch, "_CHUNKS_PER_SEGMENT", 1)


CHUNK = numba_kernels.CHUNK


@pytest.mark.usefixtures("eager_to_split")
@pytest.mark.parametrize("number", [2, 3, 8])
@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK - 1, 331])
def test_segments_side_by_side_give_what_one_thread_gives(length, number, threads):
    arguments = random_arguments(1, length, 3, 5, 1, extra=4, shuffled=True)
    grads = upstream(arguments)
    threads(1)
    expected = run_with_gradients(arguments, *grads, backend="numba")
    threads(number)
    actual = run_with_gradients(arguments, *grads, backend="numba")
    for key, value in expected.items():
        assert_matches_reference(actual[key], value, what=key, backend="numba")


@pytest.mark.usefixtures("eager_to_split")
def test_a_long_single_sequence_is_cut_into_segments(threads, monkeypatch):
    used = []
    plain = numba_launch._Problem.segments
    monkeypatch.setattr(
        numba_launch._Problem, "segments", lambda self, tasks: used.append(plain(self, tasks)) or used[-1]
    )
    threads(4)
    run(random_arguments(1, 40 * CHUNK, 2, 4, 1), backend="numba")
    assert used == [4]


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("channels", [LANES - 1, LANES, 3 * LANES + 5])
def test_twice_the_same_is_the_same_to_the_last_bit(channels, number, threads, monkeypatch):
    monkeypatch.setattr(numba_launch, "_STATES_PER_TASK", 1)
    threads(number)
    arguments = random_arguments(3, 301, channels, 16, 1, dtype=torch.float32)
    grads = upstream(arguments)
    first = run_with_gradients(arguments, *grads, backend="numba")
    second = run_with_gradients(arguments, *grads, backend="numba")
    for key, value in first.items():
        assert torch.equal(second[key], value), key


def test_number_of_threads_changes_rounding_at_most(threads):
    arguments = random_arguments(2, 1200, 70, 16, 2, dtype=torch.float32)
    grads = upstream(arguments)
    threads(1)
    expected = run_with_gradients(arguments, *grads, backend="numba")
    threads(7)
    actual = run_with_gradients(arguments, *grads, backend="numba")
    for key, value in expected.items():
        assert_matches_reference(actual[key], value, what=key, backend="numba")


def test_several_python_threads_may_scan_at_once(threads):
    threads(2)
    arguments = random_arguments(2, 900, 40, 16, 1, dtype=torch.float32)
    expected = run(arguments, backend="numba")[0]
    results = [None] * 6

    def scan(index):
        results[index] = run(arguments, backend="numba")[0]

    workers = [threading.Thread(target=scan, args=(index,)) for index in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(result, expected) for result in results)


@pytest.fixture(params=["torch's team", "pool"])
def kind_of_threads(request, monkeypatch):
    """Both kinds of threads; the team only where torch brings one."""
    if request.param == "pool":
        monkeypatch.setattr(numba_threads, "_torchs_team", lambda: None)
    elif numba_threads._torchs_team() is None:
        pytest.skip("this torch brings no GNU OpenMP")


@pytest.mark.usefixtures("kind_of_threads")
def test_work_runs_in_several_threads_and_all_are_waited_for():
    barrier, seen = threading.Barrier(2, timeout=60), set()

    def work():
        barrier.wait()  # passes only when both threads are here at once
        seen.add(threading.get_ident())

    numba_threads.run(work, 2)
    assert len(seen) == 2
    assert threading.get_ident() in seen


@pytest.mark.usefixtures("kind_of_threads")
def test_an_error_in_any_thread_is_raised():
    def work():
        raise ZeroDivisionError("as intended")

    with pytest.raises(ZeroDivisionError, match="as intended"):
        numba_threads.run(work, 2)


@pytest.mark.usefixtures("kind_of_threads", "eager_to_split")
def test_both_kinds_of_threads_give_the_same_bits(threads):
    arguments = random_arguments(2, 301, 40, 16, 1, dtype=torch.float32)
    grads = upstream(arguments)
    threads(2)
    actual = run_with_gradients(arguments, *grads, backend="numba")
    team = numba_threads._torchs_team
    numba_threads._torchs_team = lambda: None
    try:
        expected = run_with_gradients(arguments, *grads, backend="numba")
    finally:
        numba_threads._torchs_team = team
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


@pytest.mark.usefixtures("eager_to_split")
def test_where_nothing_fades_a_state_of_zero_stays_zero_in_every_segment(threads):
    arguments = nothing_fades()
    expected = run(arguments, backend="reference")
    threads(4)
    for one, other in zip(run(arguments, backend="numba"), expected):
        assert_matches_reference(one, other, what="output or last state", backend="numba")


def test_an_interrupt_that_the_team_told_to_nobody_is_told(monkeypatch):
    """One that comes as a thread enters the callback; ctypes has nowhere to raise it."""
    monkeypatch.setattr(numba_threads, "_torchs_team", lambda: lambda work, *_: None)
    with pytest.raises(KeyboardInterrupt):
        numba_threads.run(lambda: None, 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_makes_threads_of_its_own():
    # The child only waits for its threads: torch's own operations may hang there, as after any fork.
    script = (
        "import os, sys, threading, torch\n"
        "from nnunet_logvmamba.ops import selective_scan\n"
        "from nnunet_logvmamba.ops.scan import numba_threads\n"
        "torch.set_num_threads(2)\n"
        "x, w = torch.rand(2, 2000, 64), torch.rand(2, 2000, 1, 16)\n"
        "selective_scan(x, x, -torch.rand(64, 16) - 0.1, w, w, backend='numba')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    numba_threads.run(threading.Barrier(2, timeout=60).wait, 2)\n"
        "    os._exit(0)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr


def applied(function, x: torch.Tensor) -> torch.Tensor:
    """A function of vectors on every element; the number of elements must be a multiple of the lanes."""

    @njit
    def loop(source, target):
        for start in range(0, source.size, LANES):
            numba_vectors.store(target, start, function(numba_vectors.load(source, start)))

    result = torch.empty_like(x)
    loop(x.numpy(), result.numpy())
    return result


def slope(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 20, 1.0, torch.sigmoid(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("name", "torchs", "low", "high"),
    [
        ("exp2", torch.exp2, -125, 126),
        ("exp", torch.exp, -86, 88),
        ("softplus", torch.nn.functional.softplus, -60, 60),
        ("softplus_slope", slope, -60, 60),
    ],
)
def test_functions_of_vectors_have_the_accuracy_of_their_type(name, torchs, low, high, dtype):
    x = torch.linspace(low, high, 2**16, dtype=torch.float64).to(dtype)
    expected = torchs(x.double())
    error = (applied(getattr(numba_vectors, name), x).double() / expected - 1).abs()
    assert error.max() <= 5 * torch.finfo(dtype).eps


def test_decays_close_to_one_are_not_biased():
    x = -torch.logspace(-7, -2, 2**14, dtype=torch.float64).float()
    error = applied(numba_vectors.exp2, x).double() / torch.exp2(x.double()) - 1
    assert error.abs().max() < 1.2e-7
    assert error.mean().abs() < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_functions_of_vectors_at_the_ends_of_the_numbers(dtype):
    special = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e4, -1e4, 20.0]
    x = torch.tensor(special + [0.0] * (LANES - len(special)), dtype=dtype)
    for name, torchs in (
        ("exp2", torch.exp2),
        ("exp", torch.exp),
        ("softplus", torch.nn.functional.softplus),
        ("softplus_slope", torch.sigmoid),
    ):
        torch.testing.assert_close(applied(getattr(numba_vectors, name), x), torchs(x), equal_nan=True)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "delta_bias", "initial_state"])
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_what_is_not_a_number_is_not_hidden(name, value):
    arguments = random_arguments(length=9, dtype=torch.float32)
    arguments[name].view(-1)[0] = value
    expected = run(arguments, backend="reference")[0]
    actual = run(arguments, backend="numba")[0]
    if not expected.isfinite().all():
        assert not actual.isfinite().all()
    assert torch.equal(actual.isnan(), expected.isnan())


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks for instructions of x86-64")
def test_the_compiler_used_vector_instructions():
    # What comes from the cache has no listing, so this compiles anew.
    kernel = njit(nogil=True, error_model="numpy")(numba_kernels.forward.py_func)
    numba_launch_kernel = numba_kernels.forward
    try:
        numba_kernels.forward = kernel
        run(random_arguments(length=3, dtype=torch.float32), backend="numba")
    finally:
        numba_kernels.forward = numba_launch_kernel
    listing = kernel.inspect_asm(kernel.signatures[0])
    packed = len(re.findall(r"\b(?:vfn?m\w+ps|v?mulps)\b", listing))
    assert packed >= 20
    assert "expf" not in listing


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the memory of a process as Linux gives it")
def test_memory_beyond_arguments_and_results_is_less_than_theirs():
    script = (
        "import torch\n"
        "from nnunet_logvmamba.ops.scan import numba_launch\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM')) * 1024\n"
        "torch.set_num_threads(2)\n"
        "def arguments(length):\n"
        "    return [torch.rand(2, length, 64), torch.rand(2, length, 64), -torch.rand(64, 16) - 0.1,\n"
        "            torch.rand(2, length, 1, 16), torch.rand(2, length, 1, 16), torch.rand(64), torch.rand(64),\n"
        "            None, None, None]\n"
        "def scan(length):\n"
        "    a = arguments(length)\n"
        "    y, state = numba_launch.forward(*a, True)\n"
        "    between = peak()\n"
        "    g = numba_launch.backward(torch.rand_like(y), state, *a, True)\n"
        "    size = sum(x.numel() * 4 for x in [*a, *g, y, y, state, state] if x is not None)\n"
        "    return between, size, sum(x.numel() * 4 for x in [*a, y, state] if x is not None)\n"
        "scan(100)\n"  # compiled code and libraries are there from now on
        "before = peak()\n"
        "between, size, forward_size = scan(200_000)\n"
        "print((between - before - forward_size) / forward_size, (peak() - before - size) / size)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    forward, backward = map(float, result.stdout.split())
    assert -0.1 < forward < 0.2
    assert -0.1 < backward < 1.0


SCAN_ONCE = (
    "import torch\n"
    "from nnunet_logvmamba.ops import selective_scan\n"
    "x = torch.rand(1, 5, 2, requires_grad=True)\n"
    "w = torch.rand(1, 5, 1, 4)\n"
    "y = selective_scan(x, x, -torch.rand(2, 4), w, w, backend='numba')\n"
    "y.sum().backward() if {backward} else None\n"
    "from nnunet_logvmamba.ops.scan import numba_kernels as k\n"
    "print(sum(sum(f.stats.cache_misses.values()) for f in (k.forward, k.backward)),\n"
    "      sum(sum(f.stats.cache_hits.values()) for f in (k.forward, k.backward)))\n"
)


def scan_in_a_new_process(before="", *, backward=False, **variables):
    """Numbers of kernels that were compiled and taken from the cache, and what was said; to compile takes seconds."""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | variables
    result = subprocess.run(
        [sys.executable, "-c", before + SCAN_ONCE.format(backward=backward)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return tuple(map(int, result.stdout.split())), result.stderr


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names the cache folder as Linux does")
def test_compiled_code_is_kept_in_the_users_cache_folder(tmp_path):
    compiled, _ = scan_in_a_new_process(backward=True, XDG_CACHE_HOME=str(tmp_path))
    assert compiled == (2, 0)
    (folder,) = (tmp_path / "nnunet_logvmamba").iterdir()
    assert folder.name.startswith("numba-")
    assert list(folder.rglob("*.nbc"))
    again, _ = scan_in_a_new_process(backward=True, XDG_CACHE_HOME=str(tmp_path))
    assert again == (0, 2)


def test_a_folder_that_the_user_names_for_numba_is_used(tmp_path):
    scan_in_a_new_process(NUMBA_CACHE_DIR=str(tmp_path / "mine"), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert list((tmp_path / "mine").rglob("*.nbc"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="this system sets no such limit")
def test_a_full_disk_costs_compiled_code_its_place_and_a_damaged_index_is_begun_anew(tmp_path):
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
    compiled, said = scan_in_a_new_process(full, NUMBA_CACHE_DIR=str(tmp_path))
    assert compiled == (1, 0)
    assert "cannot be kept and is compiled anew in every process ([Errno 27] File too large)" in said
    assert scan_in_a_new_process(NUMBA_CACHE_DIR=str(tmp_path))[0] == (1, 0)
    (index,) = tmp_path.rglob("*.nbi")
    index.write_bytes(b"")
    for expected in ((1, 0), (0, 1)):
        assert scan_in_a_new_process(NUMBA_CACHE_DIR=str(tmp_path)) == (expected, "")


def test_compiled_code_is_kept_nowhere_if_not_in_a_folder_of_this_version():
    beside = Path(numba_kernels.__file__).parent / "__pycache__"
    compiled, said = scan_in_a_new_process(NUMBA_CACHE_DIR="/proc/nowhere")
    assert compiled == (1, 0)
    assert re.search("compiled anew in every process .*/proc/nowhere/.* cannot be written to", said)
    assert not list(beside.glob("*.nb[ic]"))


def test_automatic_choice_on_the_cpu_is_numba():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.automatic("cpu") == "numba"


@pytest.mark.parametrize("failure", ["ImportError('no llvm')", "OSError('no library')", "RuntimeError('no cache')"])
def test_a_broken_numba_is_reported_once_and_replaced(tmp_path, failure):
    (tmp_path / "numba.py").write_text(f"raise {failure}\n")
    script = (
        "import warnings, torch\n"
        "from nnunet_logvmamba.ops import selective_scan\n"
        "x, w = torch.rand(1, 5, 2), torch.rand(1, 5, 1, 4)\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(3):\n"
        "        selective_scan(x, x, -torch.rand(2, 4), w, w)\n"
        "ours = [str(w.message) for w in seen if 'selective scan' in str(w.message)]\n"
        "assert len(ours) == 1, ours\n"
        "print(ours[0])\n"
        "try:\n"
        "    selective_scan(x, x, -torch.rand(2, 4), w, w, backend='numba')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "TRITON_INTERPRET": "0"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    warning, refusal = result.stdout.splitlines()
    assert "slow portable backend 'chunked'" in warning
    assert failure.split("'")[1] in warning
    assert re.search(r"Scan backend 'numba' cannot run on device cpu: .* Available here: chunked, reference\.", refusal)


def test_results_own_their_memory():
    arguments = random_arguments(length=40, dtype=torch.float32)
    y, state = run(arguments, backend="numba")
    assert y.untyped_storage().nbytes() == y.numel() * 4
    assert state.untyped_storage().nbytes() == state.numel() * 4
    assert isinstance(y.numpy(), np.ndarray)
