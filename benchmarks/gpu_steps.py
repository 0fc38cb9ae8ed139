"""The steps of the proof on a GPU, run one after the other by ``gpu_proof.py``: ``gpu_steps.py STEP... --out FOLDER``.

A step is a function that yields its rows, each as soon as it is known, so that it can be stopped between any two. What
is wrong stands in a row under ``wrong``. With ``--device cpu --tiny`` it is a size that a CPU manages.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import gpu_journal
import torch
from correctness import DTYPES, compared, errors_of_backends, scan_arguments
from gpu_proof import end
from measure import circumstances, on_gpu, peak_on_gpu, timing
from torch import Tensor
from torch.autograd import DeviceType
from workloads import BRATS, HIPPOCAMPUS, PICTURES, SCANS, STATE_SIZE, NetworkPlan, ScanSize

from nnunet_logvmamba.interrupts import unwinding
from nnunet_logvmamba.ops import ahead, available_backends, backends, selective_scan_with_state

ROOT = Path(__file__).resolve().parents[1]
VOLUMES = replace(BRATS, name="brats-training", batch_size=2, training=True)
SLICES = replace(PICTURES, batch_size=8)
TINY_VOLUMES = replace(VOLUMES, features=(8, 16, 16), patch_size=(16,) * 3, batch_size=1)
TINY_SLICES = replace(SLICES, features=(8, 16, 16), patch_size=(32,) * 2, batch_size=1)
TRAINERS = ("nnUNetTrainerLoGVMamba", "nnUNetTrainerNoSSM", "nnUNetTrainer")
# Batch, length, channels, states, groups, rows of context: what no block is even with, and two stages of networks.
ODD = ((3, 261, 70, 16, 1, 3), (1, 97, 108, 16, 3, 1))
REAL = ((2, 32768, 108, 16, 1, 108), (2, 16384, 216, 16, 1, 216))
TIMED = (SCANS[0], SCANS[1], SCANS[5], SCANS[2], SCANS[8])
Rows = Generator[dict[str, object], None, None]


@dataclass(frozen=True)
class Setting:
    """Where and how large, where rows go, of which commit, and when the step that runs must end."""

    device: str
    tiny: bool
    out: Path
    commit: str
    deadline: float = float("inf")

    @property
    def work(self) -> Path:
        """Where what was prepared lies unpacked."""
        return Path(os.environ.get("GPU_PROOF_WORK", self.out))


class StepStoppedError(Exception):
    """Why a step cannot go on."""


# --- What is here -----------------------------------------------------------------------------------------------------


def checks(setting: Setting) -> Rows:
    """The device, what can be imported, and which backends nothing speaks against."""
    row: dict[str, object] = {"processors": os.cpu_count()}
    if setting.device == "cuda":
        found = torch.cuda.get_device_properties(0)
        row |= {"gpu": found.name, "capability": [found.major, found.minor], "memory_bytes": found.total_memory}
        row |= {"multiprocessors": found.multi_processor_count}
    yield row
    yield {"backends": {name: backends.obstacle(name, setting.device) for name in backends.BACKENDS}}
    for package in ("dynamic_network_architectures", "SimpleITK", "nnunetv2", "selective_scan_cuda"):
        yield {"package": package, "found": importlib.util.find_spec(package) is not None}


def warm(setting: Setting) -> Rows:
    """Compile or load all kernels at once; registers, spills, and programs that a multiprocessor has room for."""
    begin = time.perf_counter()
    scans = scans_of_all_steps(setting.device, setting.tiny)
    yield {"scans": len(scans), "seconds_to_list": time.perf_counter() - begin}
    if setting.device == "cuda":
        from nnunet_logvmamba.ops.scan import triton_launch

        begin = time.perf_counter()
        kernels = triton_launch.compile_ahead(scans, torch.device("cuda"))
        yield {"kernels": len(kernels), "seconds_to_compile": time.perf_counter() - begin}
        for kernel in kernels:
            room = 4 * (16384 // (32 * 8 * -(-kernel.n_regs // 8)))
            yield {"kernel": kernel.metadata.name, "registers": kernel.n_regs, "spills": kernel.n_spills, "room": room}
    begin = time.perf_counter()
    yield {"auto": backends.automatic(*device_and_index(setting.device)), "seconds": time.perf_counter() - begin}


def scans_of_all_steps(device: str, tiny: bool) -> list[tuple]:
    """Arguments of every scan of the proof, without data."""
    scans = [ahead.scan_of_check()]
    for name, dtype in DTYPES.items():
        if name in {"float32", "float16"}:
            for shape in ODD:
                tensors = scan_arguments(*shape[:5], dtype, "cpu", shape[5])
                scans.append(arguments_of(tensors))
    scans.append(arguments_of(scan_arguments(1, 40, 54, STATE_SIZE, 1, torch.float16, "cpu")))
    if importlib.util.find_spec("dynamic_network_architectures") is not None:
        import bench_network

        for case in (TINY_VOLUMES, TINY_SLICES) if tiny else (replace(VOLUMES, patch_size=(64,) * 3), SLICES):
            for build in networks_of(case).values():
                network, shape = build(case).to(device), (case.batch_size, case.input_channels, *case.patch_size)
                found = ahead.scans_of(network, shape, torch.device(device))
                scans += [tuple(arguments) for *arguments, _ in found]
        del network, bench_network
    return scans


def arguments_of(tensors: dict[str, Tensor]) -> tuple:
    """Arguments in the order of a backend's ``forward``, without data."""
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias", "initial_state", "context", "order")
    return (*(tensors[name].to("meta") if name in tensors else None for name in names), True)


def device_and_index(device: str) -> tuple[str, int | None]:
    """As ``backends.automatic`` wants it."""
    return device, torch.cuda.current_device() if device == "cuda" else None


# --- The scan ---------------------------------------------------------------------------------------------------------


def correctness(setting: Setting) -> Rows:
    """Backends in float32 and float16 against float64: odd shapes with the recurrence, real ones by ``chunked``."""
    names = [name for name in available_backends(setting.device) if name not in {"reference", "chunked"}]
    if "mamba_ssm" in names and (why := backends.what_fails("mamba_ssm", setting.device)):
        names.remove("mamba_ssm")
        yield {"left_out": "mamba_ssm", "because": why}
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # a forgotten store is then NaN
    try:
        for shape in ODD[:1] if setting.tiny else (*ODD, *REAL):
            small, real = ([shape], []) if shape in ODD else ([], [shape])
            for dtype in ("float32", "float16"):
                for name in names:
                    rows, wrong = errors_of_backends([name], setting.device, small, real, dtypes=(dtype,))
                    yield from (row | {"wrong": wrong} for row in rows)
    finally:
        torch.use_deterministic_algorithms(False)


def scan(setting: Setting) -> Rows:
    """Ceilings, then float16 beside mamba-ssm, in its own layout and with the transposes that ours needs for it."""
    ceilings = measured_ceilings(setting)
    yield {"ceilings": ceilings}
    wait_for_mamba(setting)
    for case in [ScanSize("tiny", 1, 54, 40)] if setting.tiny else TIMED:
        tensors = scan_arguments(case.batch, case.length, case.channels, STATE_SIZE, 1, torch.float16, setting.device)
        row: dict[str, object] = {"source": case.source, "batch": case.batch, "channels": case.channels}
        row |= {"length": case.length, "state": STATE_SIZE, "floor_s": floors(case, 2, ceilings)}
        for name, (forward, both) in scan_candidates(tensors, setting.device).items():
            # Backward, the adapter asks the device whether anybody wants the gradient of the last state.
            graph = name != "mamba-ssm, transposed"
            row[name] = {"forward": timed(forward, setting), "forward_backward": timed(both, setting, graph=graph)}
        yield row


def wait_for_mamba(setting: Setting) -> None:
    """Where mamba-ssm's kernel is being built beside us, give it the first half of this step."""
    begun, ended, patience = setting.work / "mamba.log", setting.work / "mamba.ended", time.time() + 30
    while begun.exists() and not ended.exists() and time.time() < patience:
        time.sleep(1)
    importlib.invalidate_caches()


def scan_candidates(tensors: dict[str, Tensor], device: str) -> dict[str, tuple[Callable, Callable]]:
    """Forward without gradients, and forward with all gradients."""
    found = {}
    ours = [name for name in available_backends(device) if name not in {"reference", "chunked", "mamba_ssm"}]
    calls = {name: (tensors, lambda x, name=name: selective_scan_with_state(**x, backend=name)[0]) for name in ours}
    if backends.obstacle("mamba_ssm", device) is None and backends.what_fails("mamba_ssm", device) is None:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        native = {name: x.transpose(1, 2).contiguous() if name in {"u", "delta"} else x for name, x in tensors.items()}
        native |= {name: tensors[name].permute(0, 2, 3, 1).contiguous() for name in ("B", "C")}
        calls["mamba-ssm"] = (native, lambda x: selective_scan_fn(**x, delta_softplus=True))
        calls["mamba-ssm, transposed"] = (tensors, lambda x: selective_scan_with_state(**x, backend="mamba_ssm")[0])
    for name, (inputs, call) in calls.items():
        leaves = {key: x.detach().requires_grad_() for key, x in inputs.items()}
        with torch.no_grad():
            upstream = torch.randn_like(call(inputs))

        def forward(call=call, inputs=inputs) -> Tensor:
            with torch.no_grad():
                return call(inputs)

        def both(call=call, leaves=leaves, upstream=upstream) -> tuple[Tensor, ...]:
            return torch.autograd.grad(call(leaves), list(leaves.values()), upstream)

        found[name] = (forward, both)
    return found


def timed(call: Callable[[], object], setting: Setting, *, graph: bool = True) -> dict[str, object]:
    """Seconds, how they were taken, and peak bytes; ``graph`` as in ``on_gpu``."""
    if setting.device == "cuda":
        found, how = on_gpu(call, graph=graph)
        return found | {"how": how, "peak_bytes": peak_on_gpu(call)}
    begin = time.perf_counter()
    call()
    return timing([time.perf_counter() - begin]) | {"how": "clock", "peak_bytes": None}


def floors(case: ScanSize, itemsize: int, ceilings: dict[str, float]) -> dict[str, float]:
    """No scan is faster: each input read and each output written once, or one exponential for every state and step.

    Backward the exponentials are computed once more.
    """
    per_channel = case.batch * case.length * case.channels * itemsize
    per_state = case.batch * case.length * STATE_SIZE * itemsize
    forward = (3 * per_channel + 2 * per_state) / ceilings["bytes_per_s"]
    backward = (5 * per_channel + 4 * per_state) / ceilings["bytes_per_s"]
    exponentials = case.states / ceilings["exponentials_per_s"]
    return {
        "forward": max(forward, exponentials),
        "forward_backward": max(forward, exponentials) + max(backward, exponentials),
    }


def measured_ceilings(setting: Setting) -> dict[str, float]:
    """Bytes per second of a large copy, read and written, and exponentials per second of the special-function units."""
    size = 2**16 if setting.tiny else 2**30
    source = torch.randn(size // 4, device=setting.device)
    target = torch.empty_like(source)
    copy = timed(lambda: target.copy_(source), setting)["seconds"]
    rounds = 4 if setting.tiny else 512
    values = torch.rand(2**12 if setting.tiny else 2**22, device=setting.device)
    if setting.device == "cuda":
        from exponentials import repeated_exponentials

        seconds = timed(lambda: repeated_exponentials(values, rounds), setting)["seconds"]
    else:
        seconds = timed(lambda: [torch.exp2(values) for _ in range(rounds)], setting)["seconds"]
    return {"bytes_per_s": 2 * size / copy, "exponentials_per_s": values.numel() * rounds / seconds}


# --- The network ------------------------------------------------------------------------------------------------------


def networks_of(case: NetworkPlan) -> dict[str, Callable[[NetworkPlan], torch.nn.Module]]:
    """What is compared on a case."""
    from functools import partial

    import bench_network

    from nnunet_logvmamba.networks import catalogue

    if len(case.patch_size) == 2:
        names = ("LoG-VMamba, Swin lineage", "VMamba, Swin lineage", "LoG-VMamba", "PlainConvUNet")
        return {name: bench_network.BUILDERS_2D[name] for name in names}
    return {name: bench_network.BUILDERS[name] for name in ("LoG-VMamba", "NoSSM", "PlainConvUNet")} | {
        "U-Mamba-Enc": partial(bench_network.of_the_catalogue, catalogue.row("UMambaEnc"))
    }


def network(setting: Setting) -> Rows:
    """Training steps at 128³ in mixed precision, beside nnU-Net's network and U-Mamba's."""
    return training_steps(setting, TINY_VOLUMES if setting.tiny else VOLUMES)


def network_2d(setting: Setting) -> Rows:
    """The same at 512²."""
    return training_steps(setting, TINY_SLICES if setting.tiny else SLICES)


def training_steps(setting: Setting, case: NetworkPlan) -> Rows:
    """Peak memory of two steps of each network, then rounds in which each takes a step in turn."""
    import bench_network

    yield {"case": case.name, "what": "training step", "patch": case.patch_size, "batch": case.batch_size}
    steps, cuda = {}, setting.device == "cuda"
    for name, build in networks_of(case).items():
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        steps[name], parameters = bench_network.step(build, case, setting.device)
        for _ in range(2):
            steps[name]()
        peak = torch.cuda.max_memory_allocated() - before if cuda else 0
        yield {"network": name, "parameters": parameters, "peak_bytes": peak}
    if cuda:
        torch.cuda.synchronize()  # else the first turn waits for the steps above
    for turn in range(2 if setting.tiny else 15):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if cuda:
                torch.cuda.synchronize()
            yield {"network": name, "turn": turn, "seconds": time.perf_counter() - begin}


def memory(setting: Setting) -> Rows:
    """Peak memory of two small steps of each network, estimated without computing anything, and measured on a GPU."""
    import bench_network

    from nnunet_logvmamba.plugin.memory import count_step

    cases = (TINY_VOLUMES, TINY_SLICES) if setting.tiny else (replace(VOLUMES, patch_size=(96,) * 3), SLICES)
    cuda = setting.device == "cuda"
    for case in cases:
        shape = (case.batch_size, case.input_channels, *case.patch_size)
        checkpointed = {"LoG-VMamba, checkpointing": bench_network.log_vmamba_checkpointed}
        for name, build in {**networks_of(case), **checkpointed}.items():
            with torch.device("meta"):
                network = build(case)
            # The loss and the optimizer of the step below: squares, and SGD with one running mean.
            found = count_step(network, shape, bench_network.mean_square, copies=3)
            row: dict[str, object] = {"case": case.name, "patch": case.patch_size, "batch": case.batch_size}
            row |= {"network": name, "estimated_bytes": found.peak, "kept_bytes": found.kept, "peak_bytes": None}
            if cuda:
                torch.cuda.empty_cache()
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
            step, _ = bench_network.step(build, case, setting.device)
            for _ in range(2):
                step()
            if cuda:
                torch.cuda.synchronize()
                row["peak_bytes"] = torch.cuda.max_memory_allocated() - before
                row["reserved_bytes"] = torch.cuda.memory_reserved()
            del step
            yield row


def profile(setting: Setting) -> Rows:
    """Where a training step of LoG-VMamba spends its time."""
    import bench_network

    case = TINY_VOLUMES if setting.tiny else VOLUMES
    step, _ = bench_network.step(bench_network.log_vmamba, case, setting.device)
    step()
    with torch.profiler.profile() as seen:
        step()
    yield from shares(seen.key_averages(), setting.device)


def shares(events: list, device: str, most: int = 25) -> Rows:
    """Averaged events that took most of a device's time, each with its share of the whole.

    Of a GPU's time only kernels and copies count: the same time stands once more in the operations that launched them,
    and a third time in annotations around these.
    """
    kind = DeviceType.CUDA if device == "cuda" else DeviceType.CPU
    which = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    found = [
        (getattr(event, which), event)
        for event in events
        if event.device_type == kind and not (device == "cuda" and event.is_user_annotation)
    ]
    total = sum(took for took, _ in found)
    for took, event in sorted(found, key=lambda pair: -pair[0])[:most]:
        yield {"operation": event.key[:80], "calls": event.count, "us": took, "share": took / total}


def amp(setting: Setting) -> Rows:
    """100 steps in float16 with nnU-Net's own scaling, beside the same in float32: finite, and the loss follows.

    The scaler skips steps until gradients fit into float16. Losses are those of steps that were taken, so that the two
    are compared after as many updates.
    """
    from nnunet_logvmamba.networks import catalogue

    steps, side = (3, 16) if setting.tiny else (100, 32)
    case = replace(HIPPOCAMPUS, features=(16, 32, 32) if setting.tiny else (32, 64, 128), patch_size=(side,) * 3)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, side, side, side, generator=generator).to(setting.device)
    smooth = torch.nn.functional.avg_pool3d(x, 5, stride=1, padding=2)[:, 0]
    target = (smooth > 0).long() + (smooth > 0.1).long()
    losses: list[list[float]] = []
    for name in ("float32", "float16"):
        torch.manual_seed(0)
        network = catalogue.row("LoGVMambaUNet").load()(**case.plan, deep_supervision=False).to(setting.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        half = name == "float16"
        scaler = torch.amp.GradScaler(setting.device, enabled=half)
        losses.append([])
        finite, skipped = True, 0
        while len(losses[-1]) < steps and skipped <= 16:  # halved so often, the scale of 65,536 is 1
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(setting.device, torch.float16, enabled=half):
                logits = network(x)
            loss = torch.nn.functional.cross_entropy(logits.float(), target)
            scaler.scale(loss).backward()
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            finite = finite and bool(loss.isfinite())
            if scaler.get_scale() < before:
                skipped += 1
            else:
                losses[-1].append(loss.item())
        finite = finite and all(parameter.isfinite().all() for parameter in network.parameters())
        taken = len(losses[-1])
        wrong = [] if finite else [f"amp: a loss or a parameter is not finite after {taken} steps in {name}"]
        wrong += [] if taken == steps else [f"amp: only {taken} of {steps} steps in {name} had finite gradients"]
        yield {"dtype": name, "steps": taken, "losses": losses[-1], "skipped_steps": skipped, "wrong": wrong}
    apart = max((abs(a - b) for a, b in zip(*losses)), default=float("nan")) / losses[0][0]
    wrong = [f"amp: the losses come apart by {apart:.2f} of the first one"] if not apart <= 0.1 else []
    yield {"largest_difference": apart, "wrong": wrong}


def compiled(setting: Setting) -> Rows:
    """The network under torch.compile, nnU-Net's default on CUDA: same gradients, no graph break."""
    from torch._dynamo.utils import counters

    from nnunet_logvmamba.networks import catalogue

    side = 16 if setting.tiny else 48
    case = replace(HIPPOCAMPUS, features=(16, 16, 32) if setting.tiny else (32, 64, 128))
    torch.manual_seed(0)
    options = {"deep_supervision": False, "drop_path": 0.0}  # both passes would draw their own
    network = catalogue.row("LoGVMambaUNet").load()(**case.plan, **options).to(setting.device)
    torch._dynamo.reset()
    counters.clear()
    # Without a GPU only the graph is proven; generated C++ would prove nothing about Triton.
    fast = torch.compile(network, backend="inductor" if setting.device == "cuda" else "aot_eager")
    x = torch.randn(1, 1, side, side, side, device=setting.device)
    begin = time.perf_counter()
    gradients = []
    for model in (network, fast):
        found = torch.autograd.grad(model(x).square().mean(), list(network.parameters()), allow_unused=True)
        gradients.append([gradient for gradient in found if gradient is not None])  # heads of other scales
    # Of the largest of all: convolutions ahead of a norm have biases whose gradients are nothing but rounding.
    largest = max(gradient.abs().max().item() for gradient in gradients[0])
    difference = max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True)) / largest
    breaks = {str(reason): count for reason, count in counters["graph_break"].items()}
    wrong = (
        [] if difference < 0.05 else [f"compile: gradients at side {side} differ by {difference:.1e} of the largest"]
    )
    wrong += [f"compile: the graph breaks: {breaks}"] if breaks else []
    row = {"side": side, "difference": difference, "seconds": time.perf_counter() - begin, "graph_breaks": breaks}
    yield row | {"graphs": counters["stats"].get("unique_graphs"), "wrong": wrong}


# --- Hippocampus ------------------------------------------------------------------------------------------------------


def hippocampus(setting: Setting) -> Rows:
    """Short trainings of stock nnU-Net on fold 0, all at once; epochs as they end, and at last Dice on the fold."""
    epochs = 1 if setting.tiny else 5
    root = setting.work / "nnunet"
    folders = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    environment = os.environ | folders | {"nnUNet_extTrainer": str(ROOT / "nnunet_logvmamba" / "plugin" / "ext")}
    if not list(Path(folders["nnUNet_preprocessed"]).glob("Dataset004*/nnUNetPlans.json")):
        raise StepStoppedError("no data: prepare has made none")
    if setting.tiny:
        make_small(root)
    workers = max(1, min(4, (os.cpu_count() or 1) // len(TRAINERS) - 1))
    # Compiling three networks would take most of the share; the step "compile" is about that.
    environment |= {"nnUNet_n_proc_DA": str(workers), "nnUNet_def_n_proc": "2", "nnUNet_compile": "f"}
    environment.pop("TRITON_INTERPRET", None)
    training = "from nnunetv2.run.run_training import run_training_entry as e; e()"
    running = {}
    for trainer in TRAINERS[::2] if setting.tiny else TRAINERS:
        name = f"{trainer}_{epochs}epoch{'s' if trainer != 'nnUNetTrainer' or epochs > 1 else ''}"
        command = [sys.executable, "-c", training, "4", "3d_fullres", "0", "-tr", name, "-device", setting.device]
        log = setting.work / f"{name}.log"
        with log.open("w") as file:
            # In a session of its own, so that those who load its data end with it.
            process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=file, stderr=file, start_new_session=True
            )
        running[name] = (process, log, time.time())
    results = Path(folders["nnUNet_results"])
    try:
        while running:
            time.sleep(0.5)
            over = time.time() > setting.deadline
            codes = {name: process.poll() for name, (process, _, _) in running.items()}
            ended = [name for name, code in codes.items() if over or code is not None]
            end(*(running[name][0] for name in ended), patience_s=1)
            for name in ended:
                _, log, begin = running.pop(name)
                yield trained(results, name, time.time() - begin, log, codes[name])
    finally:
        end(*(process for process, _, _ in running.values()), patience_s=1)  # sooner than others end us


def make_small(root: Path) -> None:
    """Make the prepared plans small, for a trial on a CPU."""
    plans = next((root / "nnUNet_preprocessed").glob("Dataset004*/nnUNetPlans.json"))
    content = json.loads(plans.read_text())
    full = content["configurations"]["3d_fullres"]
    full |= {"patch_size": [40, 56, 40], "batch_size": 2}  # a case is then a window or two
    arguments = full["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [8] * arguments["n_stages"]
    full["logvmamba"] = {"num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    plans.write_text(json.dumps(content))


def trained(results: Path, name: str, seconds: float, log: Path, code: int | None) -> dict[str, object]:
    """A row of a training: Dice on the fold where it has ended, and what its log says in any case."""
    row: dict[str, object] = {"trainer": name, "seconds": seconds, "dice": {}, "wrong": []}
    logs = sorted(results.glob(f"Dataset004*/{name}__*/fold_0/training_log*.txt"))
    text = logs[-1].read_text() if logs else ""
    row["epoch_seconds"] = [
        float(x.split("Epoch time:")[1].split()[0]) for x in text.splitlines() if "Epoch time:" in x
    ]
    row["pseudo_dice"] = [x.split("Pseudo dice")[1].strip() for x in text.splitlines() if "Pseudo dice" in x][-1:]
    summaries = list(results.glob(f"Dataset004*/{name}__*/fold_0/validation/summary.json"))
    if summaries:
        row["dice"] = {label: found["Dice"] for label, found in json.loads(summaries[0].read_text())["mean"].items()}
    elif code is None:
        row["stopped"] = True
    else:
        row["wrong"] = [f"hippocampus: {name} ended with exit code {code}: {log.read_text()[-1500:]}"]
    return row


# --- Steps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What a step runs, which packages it cannot do without, and whether it makes figures for the tables of speed."""

    run: Callable[[Setting], Rows]
    needs: tuple[str, ...] = ()
    figures: bool = False


_NETWORKS = ("dynamic_network_architectures",)
STEPS = {
    "checks": Step(checks),
    "warm": Step(warm),
    "correctness": Step(correctness),
    "scan": Step(scan, figures=True),
    "network": Step(network, _NETWORKS, figures=True),
    "profile": Step(profile, _NETWORKS, figures=True),
    "network_2d": Step(network_2d, _NETWORKS, figures=True),
    "memory": Step(memory, _NETWORKS),
    "amp": Step(amp, _NETWORKS),
    "hippocampus": Step(hippocampus, (*_NETWORKS, "nnunetv2", "SimpleITK")),
    "compile": Step(compiled, _NETWORKS),
}


def proven(setting: Setting) -> dict[str, object]:
    """What the step ``correctness`` found at this commit, or a shorter comparison where it has not ended.

    What was wrong stands in it and keeps the figures off the page; they are taken all the same, since a machine with a
    GPU may not be had again soon.
    """
    step = gpu_journal.read(setting.out).get("correctness")
    here = step is not None and step["circumstances"]["commit"] == setting.commit
    if step is None or not here or not (step["wrong"] or step["state"] == "end"):
        return compared(setting.device, setting.commit)
    count = sum("errors" in row for row in step["rows"])
    return {"commit": setting.commit, "checked": count, "wrong": step["wrong"]}


def run(name: str, setting: Setting) -> None:
    """Run a step until it ends or its time is up, and write what it finds as it finds it."""
    step, write = STEPS[name], gpu_journal.write
    missing = [package for package in step.needs if importlib.util.find_spec(package) is None]
    why, about = "", {"circumstances": circumstances(None, setting.commit), "deadline": setting.deadline}
    write(setting.out, name, "begin", **about)
    begin, wrong, count = time.time(), 0, 0
    if missing:
        why = f"not installed: {', '.join(missing)}"
    else:
        try:
            if step.figures:
                about["circumstances"] = circumstances(proven(setting), setting.commit)
                write(setting.out, name, "begin", **about)
            with closing(step.run(setting)) as rows:
                for row in rows:
                    write(setting.out, name, "row", **row)
                    wrong, count = wrong + len(row.get("wrong", ())), count + 1
                    if time.time() > setting.deadline and name != "hippocampus":
                        why = "its share is spent"
                        break
        except StepStoppedError as error:
            why = str(error)
    seconds = time.time() - begin
    write(setting.out, name, "stopped" if why else "end", why=why, seconds=seconds)
    said = f"stopped, {why}" if why else "done"
    print(
        f"gpu_proof: {name}: {said}, {count} rows in {seconds:.0f} s{f', {wrong} WRONG' if wrong else ''}", flush=True
    )


def end_after(parent: int) -> None:
    """End this process, with the trainings it has started, once its parent is gone: nobody else would."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        os._exit(1)  # it is busy in a kernel or a compiler, and does not heed

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Run steps, each in its share of the time and what earlier ones have saved.

    A step with less than half of its share left is not begun, and later ones that are shorter have the time.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="+", choices=STEPS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--until", type=float, default=float("inf"), help="when all must have ended, as Unix time")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="process that this one does not outlive")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a size for seconds")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; to try the script: gpu_proof.sh run --dry-run --out FOLDER")
    torch.backends.cudnn.benchmark = True  # as nnU-Net does
    spare = 0.0
    with unwinding():
        end_after(args.parent)
        for name in args.steps:
            begin = time.time()
            if args.until - begin < gpu_journal.SHARES[name] / 2:
                continue
            share = float("inf") if args.tiny else gpu_journal.SHARES[name] + spare
            run(name, Setting(args.device, args.tiny, args.out, args.commit, min(args.until, begin + share)))
            spare = max(0.0, share - (time.time() - begin))
            if args.device == "cuda":
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
