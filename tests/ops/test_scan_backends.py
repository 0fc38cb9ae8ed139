"""Who computes, who may refuse, and how much memory it takes."""

import subprocess
import sys

import pytest
import torch
from scan_cases import BACKENDS, GPU_BACKENDS, PLAIN, random_arguments, upstream
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_logvmamba.ops import available_backends, backends, selective_scan, selective_scan_with_state
from nnunet_logvmamba.ops.scan import chunked, reference


def test_both_portable_backends_run_on_the_cpu():
    assert {"chunked", "reference"} <= set(available_backends("cpu"))
    assert {"chunked", "reference"} <= set(available_backends(torch.device("cuda")))


def test_every_backend_is_tested():
    assert {*BACKENDS, *GPU_BACKENDS} == set(backends.BACKENDS)


def test_auto_means_the_first_available_backend():
    device = torch.device("cpu")
    assert backends.choose("auto", device) is backends.choose(available_backends(device)[0], device)


@pytest.mark.parametrize("name", BACKENDS)  # test_scan_triton.py has the others
def test_a_default_device_of_another_kind_does_not_make_a_backend_fail(name):
    with torch.device("meta"):
        assert backends.what_fails(name, "cpu") is None


def test_memory_that_was_short_for_a_moment_is_no_fault_of_a_backend(monkeypatch):
    """Auto would take the slow one from then on; nnU-Net tries again on the CPU, and goes on."""
    works = chunked.forward

    def out_of_memory(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    known = {"fast": backends.Backend(chunked.__name__, lambda device: None, "cpu")}
    monkeypatch.setattr(backends, "BACKENDS", known | {"reference": backends.BACKENDS["reference"]})
    backends.automatic.cache_clear()
    try:
        monkeypatch.setattr(chunked, "forward", out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            backends.automatic("cpu")
        monkeypatch.setattr(chunked, "forward", works)
        assert backends.automatic("cpu") == "fast"
    finally:
        backends.automatic.cache_clear()


def test_auto_on_the_cpu_is_never_the_slow_reference():
    assert available_backends("cpu")[-1] == "reference"
    assert backends.choose("auto", torch.device("cpu")) is not reference


@pytest.mark.parametrize("scan", [selective_scan, selective_scan_with_state])
def test_unknown_backend_is_refused_with_the_valid_names(scan):
    with pytest.raises(ValueError, match=r"Unknown scan backend 'warp'; choose one of: auto, .*chunked.*reference\."):
        scan(**random_arguments(absent=("initial_state",)), backend="warp")


def test_backend_that_cannot_run_on_the_device_says_why_and_what_can(monkeypatch):
    def only_on_cuda(device):
        return None if device.type == "cuda" else "It needs a CUDA device."

    entry = backends.Backend("nnunet_logvmamba.ops.scan.chunked", only_on_cuda)
    monkeypatch.setitem(backends.BACKENDS, "picky", entry)
    monkeypatch.setattr(backends, "BACKEND_NAMES", ("auto", *backends.BACKENDS))
    assert "picky" not in available_backends("cpu")
    assert "picky" in available_backends("cuda")
    message = (
        r"Scan backend 'picky' cannot run on device cpu: It needs a CUDA device\. Available here: .*chunked, reference"
    )
    with pytest.raises(ValueError, match=message):
        selective_scan(**random_arguments(absent=("initial_state",)), backend="picky")


def test_a_backend_is_loaded_only_when_it_is_asked_for():
    script = (
        "import sys, nnunet_logvmamba.ops\n"
        "assert 'nnunet_logvmamba.ops.scan.chunked' not in sys.modules\n"
        "assert 'numba' not in sys.modules and 'mamba_ssm' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


GOOD = {"batch": 2, "length": 5, "channels": 6, "state": 4, "groups": 2}
BAD_SHAPES = [
    ("delta", (2, 4, 6), r"delta has shape \(2, 4, 6\) but u has shape \(2, 5, 6\)"),
    ("A", (5, 4), r"A has shape \(5, 4\) but u has shape \(2, 5, 6\)"),
    ("A", (6,), r"A has shape \(6,\) and u has shape \(2, 5, 6\); A must be \(channels, state\)"),
    ("B", (2, 5, 2, 3), r"B has shape \(2, 5, 2, 3\) but A has shape \(6, 4\)"),
    ("B", (2, 4, 2, 4), r"B has shape \(2, 4, 2, 4\) but u has shape \(2, 5, 6\)"),
    ("B", (2, 5, 4), r"B has shape \(2, 5, 4\) and u has shape \(2, 5, 6\)"),
    ("B", (2, 5, 4, 4), r"u has shape \(2, 5, 6\) and B has shape \(2, 5, 4, 4\).*6 channels.*4 equal groups"),
    ("C", (2, 5, 1, 4), r"C has shape \(2, 5, 1, 4\) but B has shape \(2, 5, 2, 4\)"),
    ("D", (4,), r"D has shape \(4,\) but u has shape \(2, 5, 6\)"),
    ("delta_bias", (6, 1), r"delta_bias has shape \(6, 1\) and u has shape \(2, 5, 6\)"),
    ("initial_state", (2, 6, 3), r"initial_state has shape \(2, 6, 3\) but A has shape \(6, 4\)"),
    ("initial_state", (1, 6, 4), r"initial_state has shape \(1, 6, 4\) but u has shape \(2, 5, 6\)"),
    ("u", (2, 0, 6), r"u has shape \(2, 0, 6\); the selective scan needs at least one step"),
]


@pytest.mark.parametrize(("name", "shape", "message"), BAD_SHAPES)
def test_shapes_that_disagree_are_named_with_both_tensors(name, shape, message):
    arguments = random_arguments(**GOOD) | {name: torch.zeros(shape, dtype=torch.float64)}
    with pytest.raises(ValueError, match=message):
        selective_scan_with_state(**arguments)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_numbers_that_are_not_real_floating_point_are_refused(dtype):
    arguments = random_arguments(**GOOD, absent=("initial_state",))
    arguments["A"] = arguments["A"].to(dtype)
    with pytest.raises(ValueError, match=rf"A has dtype {dtype}; the selective scan takes real floating-point"):
        selective_scan(**arguments)


@pytest.mark.parametrize("name", ["u", "A", "D", "delta_bias", "order"])
def test_what_is_no_tensor_is_refused_by_name(name):
    arguments = random_arguments(**GOOD, absent=("initial_state",))
    with pytest.raises(ValueError, match=f"{name} is a list; a tensor is needed"):
        selective_scan(**arguments | {name: [1.0]})


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C"])
def test_what_is_needed_is_not_none(name):
    arguments = random_arguments(**GOOD, absent=("initial_state",))
    with pytest.raises(ValueError, match=f"{name} is None; a tensor is needed"):
        selective_scan(**arguments | {name: None})


def test_tensors_on_two_devices_are_refused():
    arguments = random_arguments(**GOOD, absent=("initial_state",))
    arguments["C"] = arguments["C"].to("meta")
    with pytest.raises(ValueError, match="C is on meta but u is on cpu"):
        selective_scan(**arguments)


class LargestTensor(TorchDispatchMode):
    """Remember the largest memory behind any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


@pytest.mark.parametrize("groups", [1, 4])
def test_chunked_backend_never_holds_a_state_for_every_step(groups, monkeypatch):
    monkeypatch.setattr(chunked, "WORKSPACE_ELEMENTS", 2**16)
    batch, length, channels, state = 1, 2053, 32, 16
    every_state = batch * length * channels * state
    arguments = random_arguments(batch, length, channels, state, groups, dtype=torch.float32)
    in_order = [arguments[name] for name in PLAIN]
    largest_argument = max(x.numel() for x in in_order)
    with LargestTensor() as largest, torch.no_grad():
        chunked.forward(*in_order, True)
    assert 0 < largest.elements <= max(chunked.WORKSPACE_ELEMENTS, largest_argument) < every_state / 7
    with LargestTensor() as largest, torch.no_grad():
        chunked.backward(*upstream(arguments), *in_order, True)
    entries = (length // chunked.LANE_LENGTH + 1) * batch * channels * state
    assert 0 < largest.elements <= max(chunked.WORKSPACE_ELEMENTS, largest_argument, entries) < every_state / 7


def test_memory_check_would_notice_a_state_for_every_step():
    arguments = random_arguments()
    with LargestTensor() as largest, torch.no_grad():
        reference.backward(*upstream(arguments), *(arguments[name] for name in PLAIN), True)
    assert largest.elements >= arguments["B"].numel() // 2 * 6
