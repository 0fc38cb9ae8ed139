"""One step of what is due on a GPU; ``gpu_proof.sh`` runs them all.

``python benchmarks/gpu_proof.py STEP [--into FOLDER] [--again] [--commit TEXT]`` writes ``gpu_<STEP>.json`` and fails
if something is wrong. ``--device cpu --tiny`` runs the same at a size that a CPU manages, to see that the script works.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from correctness import DTYPES, SMALL, checked, errors_of_backends, scan_arguments
from measure import RESULTS, commit_of_checkout, on_gpu, peak_on_gpu, save, timing
from torch import Tensor
from workloads import BRATS, HIPPOCAMPUS, PICTURES, SCANS, STATE_SIZE, NetworkPlan, ScanSize

from nnunet_logvmamba.ops import available_backends, backends, selective_scan_with_state

ROOT = Path(__file__).resolve().parents[1]
HIPPOCAMPUS_SOURCE = ROOT.parent / "shared" / "data" / "hippocampus"
VOLUMES = replace(BRATS, name="brats-training", batch_size=2, training=True)
TRAINERS = {"log": "nnUNetTrainerLoGVMamba", "no-ssm": "nnUNetTrainerNoSSM", "stock": "nnUNetTrainer"}


@dataclass(frozen=True)
class Setting:
    """Where and how large, and where results go."""

    device: str
    tiny: bool
    into: Path


class WrongResultError(Exception):
    """A step ran and found something wrong."""


# --- The scan ---------------------------------------------------------------------------------------------------------


def correctness(setting: Setting) -> dict[str, object]:
    """Every backend and dtype against float64: small odd shapes with the recurrence, real ones with ``chunked``."""
    small = SMALL[:2] if setting.tiny else SMALL
    real = [] if setting.tiny else [(c.batch, c.length, c.channels, STATE_SIZE, 1, 8) for c in SCANS[1:5]]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # a forgotten store is then NaN
    rows, wrong = errors_of_backends(available_backends(setting.device), setting.device, small, real)
    torch.use_deterministic_algorithms(False)
    default = backends.automatic(*_device_and_index(setting.device))
    print("auto:", default)
    if wrong:
        print("\n".join(wrong[:40]), file=sys.stderr)
    return {"auto": default, "cases": rows, "wrong": wrong}


def _device_and_index(device: str) -> tuple[str, int | None]:
    return device, torch.cuda.current_device() if device == "cuda" else None


def scan(setting: Setting, dtype_name: str) -> dict[str, object]:
    """Seconds and peak memory beside mamba-ssm, and the two floors: bytes and exponentials."""
    dtype = DTYPES[dtype_name]
    ceilings = measured_ceilings(setting)
    cases = [ScanSize("tiny", 1, 5, 40)] if setting.tiny else SCANS
    rows = []
    for case in cases:
        tensors = scan_arguments(case.batch, case.length, case.channels, STATE_SIZE, 1, dtype, setting.device)
        row: dict[str, object] = {"source": case.source, "batch": case.batch, "channels": case.channels}
        row |= {"length": case.length, "state": STATE_SIZE, "floor_s": floors(case, dtype.itemsize, ceilings)}
        for name, (forward, both) in scan_candidates(tensors, setting.device).items():
            row[name] = {"forward": timed(forward, setting), "forward_backward": timed(both, setting)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return {"dtype": dtype_name, "ceilings": ceilings, "scans": rows}


def scan_candidates(tensors: dict[str, Tensor], device: str) -> dict[str, tuple[Callable, Callable]]:
    """Forward without gradients, and forward with all gradients, for ours and, in its own layout, mamba-ssm's."""
    found = {}
    calls = {
        backend: (tensors, lambda x, backend=backend: selective_scan_with_state(**x, backend=backend)[0])
        for backend in available_backends(device)
        if backend not in {"reference", "mamba_ssm"}
    }
    if backends.obstacle("mamba_ssm", device) is None and backends.what_fails("mamba_ssm", device) is None:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        native = {name: x.transpose(1, 2).contiguous() if name in {"u", "delta"} else x for name, x in tensors.items()}
        native |= {name: tensors[name].permute(0, 2, 3, 1).contiguous() for name in ("B", "C")}
        calls["mamba-ssm"] = (native, lambda x: selective_scan_fn(**x, delta_softplus=True))
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


def timed(call: Callable[[], object], setting: Setting) -> dict[str, object]:
    """Seconds, how they were taken, and peak bytes."""
    if setting.device == "cuda":
        found, how = on_gpu(call)
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


def amp(setting: Setting) -> dict[str, object]:
    """300 steps in float16 with a scaled loss, beside the same in float32: finite, and the loss follows."""
    from nnunet_logvmamba.networks import catalogue

    steps, side = (3, 16) if setting.tiny else (300, 32)
    case = replace(HIPPOCAMPUS, features=(16, 32, 32) if setting.tiny else (32, 64, 128), patch_size=(side,) * 3)
    half = torch.float16 if setting.device == "cuda" else torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, side, side, side, generator=generator).to(setting.device)
    smooth = torch.nn.functional.avg_pool3d(x, 5, stride=1, padding=2)[:, 0]
    target = (smooth > 0).long() + (smooth > 0.1).long()
    losses, skipped = {}, 0
    for name, dtype in (("float32", None), (str(half).removeprefix("torch."), half)):
        torch.manual_seed(0)
        network = catalogue.row("LoGVMambaUNet").load()(**case.plan, deep_supervision=False).to(setting.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler(setting.device, enabled=dtype == torch.float16)
        losses[name] = []
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(setting.device, dtype or torch.float16, enabled=dtype is not None):
                logits = network(x)
            loss = torch.nn.functional.cross_entropy(logits.float(), target)
            scaler.scale(loss).backward()
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            skipped += scaler.get_scale() < before
            losses[name].append(loss.item())
        if not all(parameter.isfinite().all() for parameter in network.parameters()):
            raise WrongResultError(f"amp: a parameter is not finite after {steps} steps in {name}")
    exact, rounded = losses.values()
    apart = max(abs(a - b) for a, b in zip(exact, rounded)) / exact[0]
    wrong = []
    if not all(abs(loss) < float("inf") for loss in rounded):
        wrong.append("a loss is not finite")
    if apart > 0.1:
        wrong.append(f"the losses come apart by {apart:.2f} of the first one")
    return {"steps": steps, "losses": losses, "skipped_steps": skipped, "largest_difference": apart, "wrong": wrong}


def compiled(setting: Setting) -> dict[str, object]:
    """The network under torch.compile, nnU-Net's default on CUDA: same gradients, no graph break, few compilations."""
    from torch._dynamo.utils import counters

    from nnunet_logvmamba.networks import catalogue

    sides = (16, 24) if setting.tiny else (32, 48, 64)
    case = replace(HIPPOCAMPUS, features=(16, 16, 32) if setting.tiny else (32, 64, 128))
    torch.manual_seed(0)
    network = catalogue.row("LoGVMambaUNet").load()(**case.plan, deep_supervision=False).to(setting.device)
    torch._dynamo.reset()
    counters.clear()
    # Without a GPU only the graph is proven; generated C++ would prove nothing about Triton.
    fast = torch.compile(network, backend="inductor" if setting.device == "cuda" else "aot_eager")
    rows, wrong = [], []
    for side in sides:
        x = torch.randn(1, 1, side, side, side, device=setting.device)
        begin = time.perf_counter()
        gradients = []
        for model in (network, fast):
            found = torch.autograd.grad(model(x).square().mean(), list(network.parameters()), allow_unused=True)
            gradients.append([gradient for gradient in found if gradient is not None])  # heads of other scales
        # Of the largest of all: convolutions ahead of a norm have biases whose gradients are nothing but rounding.
        largest = max(gradient.abs().max().item() for gradient in gradients[0])
        difference = max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True)) / largest
        rows.append({"side": side, "difference": difference, "seconds": time.perf_counter() - begin})
        if not difference < 0.05:
            wrong.append(f"gradients at side {side} differ by {difference:.1e} of the largest")
    breaks = {str(reason): count for reason, count in counters["graph_break"].items()}
    if breaks:
        wrong.append(f"the graph breaks: {breaks}")
    return {"sizes": rows, "graph_breaks": breaks, "graphs": counters["stats"].get("unique_graphs"), "wrong": wrong}


def peak_of_two_steps(build: Callable[[NetworkPlan], torch.nn.Module], case: NetworkPlan) -> int:
    """Most bytes on the GPU in two training steps: weights, gradients, momentum and activations of one network."""
    import bench_network

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call, _ = bench_network.step(build, case, "cuda")
    call()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def network(setting: Setting, case: NetworkPlan) -> dict[str, object]:
    """Seconds per training step and peak memory in mixed precision, beside nnU-Net's networks."""
    import bench_network

    if setting.tiny:
        side = 16 if len(case.patch_size) == 3 else 32
        case = replace(case, features=(8, 16, 16), patch_size=(side,) * len(case.patch_size), batch_size=1)
    steps, rows = {}, {}
    for name, build in bench_network.builders(case).items():
        peak = peak_of_two_steps(build, case) if setting.device == "cuda" else 0
        steps[name], parameters = bench_network.step(build, case, setting.device)
        rows[name] = {"parameters": parameters, "peak_bytes": peak}
    seconds = bench_network.side_by_side(steps, rounds=1 if setting.tiny else 9, device=setting.device)
    for name, row in rows.items():
        row |= seconds[name] | {"ratio": seconds[name]["seconds"] / seconds["PlainConvUNet"]["seconds"]}
    with torch.profiler.profile() as seen:
        steps["LoG-VMamba" if len(case.patch_size) == 3 else "LoG-VMamba, Swin lineage"]()
    order = "self_cuda_time_total" if setting.device == "cuda" else "self_cpu_time_total"
    profile = seen.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)
    print(profile)
    found = {"case": case.name, "what": "training step", "patch": case.patch_size, "batch": case.batch_size}
    return {"networks": [found | {"networks": rows}], "profile": profile.splitlines()}


# --- Hippocampus ------------------------------------------------------------------------------------------------------


def prepared(setting: Setting) -> dict[str, str]:
    """Folders with the hippocampus data, planned and preprocessed, as nnU-Net's variables; made once."""
    root = setting.into / "nnunet"
    folders = {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
    environment = os.environ | folders | {"nnUNet_extTrainer": str(ROOT / "nnunet_logvmamba" / "plugin" / "ext")}
    environment.pop("TRITON_INTERPRET", None)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if setting.device == "cpu":
        environment |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
    done = root / "prepared"
    if not done.exists():
        for folder in folders.values():
            Path(folder).mkdir(parents=True, exist_ok=True)
        source = few_cases(root / "source") if setting.tiny else HIPPOCAMPUS_SOURCE
        run([sys.executable, "-m", "dataset_conversion.Dataset004_Hippocampus", source], environment)
        planning = (
            "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as e"
        )
        command = [sys.executable, "-c", f"{planning}; e()", "-d", "4", "-c", "3d_fullres", "-np", "2", "-npfp", "2"]
        run(command, environment)
        if setting.tiny:
            plans = next(Path(folders["nnUNet_preprocessed"]).glob("Dataset004*/nnUNetPlans.json"))
            content = json.loads(plans.read_text())
            full = content["configurations"]["3d_fullres"]
            full |= {"patch_size": [40, 56, 40], "batch_size": 2}  # a case is then a window or two
            full["architecture"]["arch_kwargs"]["features_per_stage"] = [8, 8, 8, 8, 8, 8][
                : full["architecture"]["arch_kwargs"]["n_stages"]
            ]
            full["logvmamba"] = {"num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
            plans.write_text(json.dumps(content))
        done.touch()
    return environment


def few_cases(folder: Path) -> Path:
    """A copy of the data with five cases."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for path in sorted((HIPPOCAMPUS_SOURCE / part).glob("*.nii*"))[:5]:
            shutil.copy(path, folder / part)
    return folder


def hippocampus(setting: Setting, trainer: str) -> dict[str, object]:
    """20 epochs of stock nnU-Net on fold 0, in its own way of compiling and mixed precision; Dice on the fold."""
    epochs = 1 if setting.tiny else 20
    environment = prepared(setting)
    name = f"{TRAINERS[trainer]}_{epochs}epoch{'s' if trainer != 'stock' or epochs > 1 else ''}"
    training = "from nnunetv2.run.run_training import run_training_entry as e"
    command = [sys.executable, "-c", f"{training}; e()", "4", "3d_fullres", "0", "-tr", name, "-device", setting.device]
    begin = time.perf_counter()
    run(command, environment)
    seconds = time.perf_counter() - begin
    fold = next(Path(environment["nnUNet_results"]).glob(f"Dataset004*/{name}__*/fold_0"))
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    mean = {label: metrics["Dice"] for label, metrics in summary["mean"].items()}
    log = sorted(fold.glob("training_log*.txt"))[-1].read_text()
    found = [float(line.split("Epoch time:")[1].split()[0]) for line in log.splitlines() if "Epoch time:" in line]
    return {"trainer": name, "dice": mean, "seconds": seconds, "epoch_seconds": found}


def run(command: list, environment: dict[str, str]) -> None:
    """Run a command and show the end of what it says if it fails."""
    done = subprocess.run(
        [str(word) for word in command], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise WrongResultError(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


# --- Steps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What a step runs, which packages it cannot do without, and whether it makes figures for the speed tables."""

    run: Callable[[Setting], dict[str, object]]
    needs: tuple[str, ...] = ()
    figures: bool = False


def _steps() -> dict[str, Step]:
    networks = ("dynamic_network_architectures",)
    steps = {
        "correctness": Step(correctness),
        "scan_float16": Step(lambda setting: scan(setting, "float16"), figures=True),
        "scan_float32": Step(lambda setting: scan(setting, "float32"), figures=True),
        "amp": Step(amp, networks),
        "compile": Step(compiled, networks),
        "network": Step(partial(network, case=VOLUMES), networks, figures=True),
        "network_2d": Step(partial(network, case=replace(PICTURES, batch_size=8)), networks, figures=True),
    }
    for name in TRAINERS:
        step = Step(lambda setting, name=name: hippocampus(setting, name), (*networks, "nnunetv2"))
        steps[f"hippocampus_{name}"] = step
    return steps


def proven(setting: Setting, commit: str | None) -> dict[str, object]:
    """The result of the step ``correctness`` at this commit, or of a shorter check where it has not been run.

    Raises:
        WrongResultError: If anything was wrong: what is not right is not timed.
    """
    path, commit = setting.into / "gpu_correctness.json", commit or commit_of_checkout()
    step = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"circumstances": {"commit": None}}
    if step["circumstances"]["commit"] != commit:
        return checked(setting.device, commit)
    if step["wrong"]:
        raise WrongResultError(f"the step correctness found {len(step['wrong'])} wrong, first {step['wrong'][0]}")
    return {"commit": commit, "checked": len(step["cases"]), "wrong": []}


def main() -> int:
    """Run one step."""
    steps = _steps()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", nargs="?", choices=steps, help="which one")
    parser.add_argument("--list", action="store_true", help="print the names of all steps")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a size for seconds, to try the script")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder for results, default benchmarks/results")
    parser.add_argument("--again", action="store_true", help="run though there is a result")
    parser.add_argument("--commit", help="what to write as commit where this is not a checkout")
    args = parser.parse_args()
    if args.list:
        print("\n".join(steps))
        return 0
    if args.step is None:
        parser.error("which step? --list names them")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; to try the script: --device cpu --tiny --into FOLDER")
    if args.device == "cpu" and args.into.resolve() == RESULTS:
        parser.error("a trial on the CPU is no result; name another folder with --into")
    name = f"gpu_{args.step.replace('-', '_')}"
    if (args.into / f"{name}.json").exists() and not args.again:
        print(f"gpu_proof: {args.step}: there is a result, --again runs it once more")
        return 0
    missing = [package for package in steps[args.step].needs if importlib.util.find_spec(package) is None]
    if missing:
        print(f"gpu_proof: {args.step}: left out, not installed: {', '.join(missing)}")
        return 0
    setting = Setting(args.device, args.tiny, args.into.resolve())
    try:
        correctness = proven(setting, args.commit) if steps[args.step].figures else None
        results = steps[args.step].run(setting)
    except WrongResultError as error:
        print(f"gpu_proof: {args.step}: {error}", file=sys.stderr)
        return 1
    path = save(name, results, correctness, folder=setting.into, commit=args.commit)
    wrong = results.get("wrong", [])
    print(f"gpu_proof: {args.step}: {f'{len(wrong)} wrong, {wrong[0]}' if wrong else 'done'}, {path}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
