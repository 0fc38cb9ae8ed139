"""Timing side by side, and what a figure must carry to be repeatable."""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles

import torch
from checkout import commit_of_checkout

from nnunet_logvmamba.files import replace_text
from nnunet_logvmamba.plugin.environment import version_of

RESULTS = Path(__file__).resolve().parent / "results"
Timing = dict[str, "float | list[float]"]


def side_by_side(
    candidates: dict[str, Callable[[], object]], *, rounds: int = 5, slow_rounds: int = 3, device: str = "cpu"
) -> dict[str, Timing]:
    """Seconds of each candidate, taken in turns in one run so that whatever else goes on hits all alike.

    The first call of each is not counted. Candidates slower than a second get ``slow_rounds``.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    slow = set()
    for name, candidate in candidates.items():
        if _seconds(candidate, device) > 1:
            slow.add(name)
    for turn in range(rounds):
        for name, candidate in candidates.items():
            if name not in slow or turn < slow_rounds:
                seconds[name].append(_seconds(candidate, device))
    return {name: timing(values) for name, values in seconds.items()}


def timing(rounds: list[float]) -> Timing:
    """The median of all rounds as ``seconds``, their quartiles, and the rounds themselves in the order of the run."""
    first, middle, third = quantiles(rounds, method="inclusive") if len(rounds) > 1 else rounds * 3
    return {"seconds": middle, "quartiles": [first, third], "rounds": rounds}


def on_gpu(
    call: Callable[[], object], *, graph: bool = True, rounds: int = 7, milliseconds: float = 30
) -> tuple[Timing, str]:
    """Seconds of one call on the current CUDA device, and how they were taken.

    The call is recorded as a CUDA graph, so that what the processor does between kernels does not count; if that cannot
    be, events stand around repeated calls, and the second value says so. A call that waits for the device is known not
    to be one (``graph=False``): torch 2.11 records nothing more in a process where that was tried.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    run, kind = call, "events (the call waits for the device)"
    if graph:
        recorded = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(recorded):
                call()
            run, kind = recorded.replay, "graph"
        except RuntimeError as error:
            kind = f"events ({str(error).splitlines()[0]})"
            torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def took(times: int) -> float:
        begin.record()
        for _ in range(times):
            run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / times

    times = max(1, min(1000, int(milliseconds / 1e3 / max(took(1), 1e-6))))
    return timing([took(times) for _ in range(rounds)]), kind


def peak_on_gpu(call: Callable[[], object]) -> int:
    """Bytes that a call allocates at most beyond what was there before, its results included."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak


def peak_of_tensors(call: Callable[[], object]) -> int:
    """Bytes that tensors hold at most while a call makes and drops them, on the CPU, as torch's profiler counts them.

    A process holds more, since its allocator keeps what was freed in pieces.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        seen.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]")


def _seconds(candidate: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    candidate()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def circumstances(correctness: dict | None, commit: str | None = None) -> dict[str, object]:
    """Class of the machine, versions, commit and whether that computes what it should; nothing that names the machine.

    Args:
        correctness: ``commit`` and what was ``wrong`` there, see ``correctness.checked``; None for what is no figure.
        commit: For copies of the project that are not a checkout.
    """
    return {
        "processor": _processor(),
        "cores": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in _DISTRIBUTIONS},
        "commit": commit or commit_of_checkout(),
    } | ({"correctness": correctness} if correctness else {})


_DISTRIBUTIONS = ("torch", "numba", "triton", "mambapy", "mamba-ssm", "dynamic-network-architectures", "nnunetv2")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    vectors = next((kind for flag, kind in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), None)
    return f"{name} ({vectors})" if vectors else name


def save(
    name: str,
    results: dict[str, object],
    correctness: dict | None,
    *,
    folder: Path = RESULTS,
    commit: str | None = None,
) -> Path:
    """Write results with their circumstances to ``benchmarks/results/<name>.json``, or another folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {"circumstances": circumstances(correctness, commit)} | results
    replace_text(path, json.dumps(content, indent=2) + "\n")
    return path
