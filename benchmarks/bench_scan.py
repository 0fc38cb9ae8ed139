"""Time the backends of the selective scan side by side on the CPU; for a GPU there is ``gpu_proof.sh``.

``python benchmarks/bench_scan.py [--quick]`` writes ``benchmarks/results/scan_cpu.json``. With ``mambapy`` installed
(``pip install --no-deps mambapy``) its parallel scan is measured too. ``--quick`` runs the two smallest shapes, to see
that everything works.
"""

import argparse
import functools
import sys
from collections.abc import Callable

import torch
from correctness import checked, scan_arguments
from measure import Timing, save, side_by_side
from torch import Tensor
from workloads import LENGTH_BATCH, LENGTH_CHANNELS, LENGTHS, SCAN_AT_2048, SCANS, STATE_SIZE, ScanSize

from nnunet_logvmamba.ops import available_backends, selective_scan

# What must fit into memory: mambapy keeps several tensors of one number for every state and step, and pads the length.
LARGEST_FOR_MAMBAPY = 2**27
LONGEST_FOR_REFERENCE = 2**16
# Autograd touches all of u once for every step of the loop.
LARGEST_BACKWARD_OF_REFERENCE = 5 * 10**8


def ours(tensors: dict[str, Tensor], backend: str) -> Tensor:
    """The registered op."""
    return selective_scan(**tensors, backend=backend)


def reference_in_autograd(tensors: dict[str, Tensor]) -> Tensor:
    """The sequential algorithm that mamba-ssm publishes, differentiated by autograd as there."""
    from nnunet_logvmamba.ops.scan import reference

    return reference.forward(*tensors.values(), None, None, True)[0]


def mambapys(tensors: dict[str, Tensor]) -> Tensor:
    """The same result by mambapy's parallel scan, as its own block calls it."""
    from mambapy.pscan import pscan

    u, delta, A, B, C, D = tensors.values()
    step = torch.nn.functional.softplus(delta).unsqueeze(-1)
    states = pscan(torch.exp(step * A), step * B * u.unsqueeze(-1))
    return (states @ C.squeeze(2).unsqueeze(-1)).squeeze(-1) + D * u


def forward_and_backward(scan: Callable[[dict[str, Tensor]], Tensor], tensors: dict[str, Tensor]) -> None:
    """Gradients of all inputs."""
    y = scan(tensors)
    torch.autograd.grad(y, list(tensors.values()), torch.ones_like(y))


def with_threads(threads: int, call: Callable[[], object]) -> None:
    """Call with that many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        call()
    finally:
        torch.set_num_threads(before)


def exponentials(case: ScanSize) -> Callable[[], None]:
    """torch.exp into warm memory over as many numbers as the scan has exponentials, 64k at a time."""
    x = -torch.rand(2**16)
    y = torch.empty_like(x)
    whole, rest = divmod(case.states, x.numel())

    def run() -> None:
        for _ in range(whole):
            torch.exp(x, out=y)
        if rest:
            torch.exp(x[:rest], out=y[:rest])

    return run


def candidates(case: ScanSize, grad: bool, mambapy: bool) -> dict[str, Callable[[], object]]:
    """Everything that can compute this case, under the name of its row."""
    made = scan_arguments(case.batch, case.length, case.channels, STATE_SIZE, 1, torch.float32, "cpu")
    tensors = {name: tensor.requires_grad_(grad) for name, tensor in made.items() if name != "delta_bias"}
    wrap = forward_and_backward if grad else lambda scan, tensors: scan(tensors)
    found: dict[str, Callable[[], object]] = {}
    for backend in available_backends("cpu"):
        if backend not in ("reference", "triton"):  # on a CPU, Triton's kernels run in its interpreter, if at all
            found[backend] = functools.partial(wrap, functools.partial(ours, backend=backend), tensors)
    touched = case.batch * case.channels * case.length**2
    if touched <= LARGEST_BACKWARD_OF_REFERENCE if grad else case.length <= LONGEST_FOR_REFERENCE:
        call = functools.partial(wrap, reference_in_autograd, tensors)
        for threads in sorted({1, torch.get_num_threads()}):
            found[f"reference, {threads} thread{'s' * (threads > 1)}"] = functools.partial(with_threads, threads, call)
    if mambapy and case.states <= LARGEST_FOR_MAMBAPY:
        found["mambapy"] = functools.partial(wrap, mambapys, tensors)
    return found


def shown(timings: dict[str, Timing]) -> dict[str, str]:
    """The medians, to watch."""
    return {name: f"{timing['seconds'] * 1e3:.2f} ms" for name, timing in timings.items()}


def measured(case: ScanSize, mambapy: bool) -> dict[str, object]:
    """Seconds of every candidate, forward and forward + backward."""
    forward = candidates(case, False, mambapy)
    forward["exponentials"] = exponentials(case)
    with torch.no_grad():
        seconds = side_by_side(forward)
    both = side_by_side(candidates(case, True, mambapy))
    print(case.name, shown(seconds), flush=True)
    print(" " * len(case.name), shown(both), flush=True)
    shape = {"batch": case.batch, "channels": case.channels, "length": case.length, "state": STATE_SIZE}
    return {"source": case.source, **shape, "forward_s": seconds, "forward_backward_s": both}


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the two smallest shapes, saved under another name")
    args = parser.parse_args()
    try:
        import mambapy.pscan  # noqa: F401 - only asks whether it is there
    except ImportError:
        mambapy = False
        print("mambapy is not installed and is left out: pip install --no-deps mambapy", file=sys.stderr)
    else:
        mambapy = True
    correctness = checked("cpu")
    growth = [ScanSize(f"length {length}", LENGTH_BATCH, LENGTH_CHANNELS, length) for length in LENGTHS]
    cases = [*SCANS, SCAN_AT_2048]
    if args.quick:
        cases, growth = sorted(SCANS, key=lambda case: case.states)[:2], growth[:1]
    results = {
        "scans": [measured(case, mambapy) for case in cases],
        "growth": [measured(case, mambapy) for case in growth],
    }
    print(save(f"scan_cpu{'_quick' * args.quick}", results, correctness))


if __name__ == "__main__":
    main()
