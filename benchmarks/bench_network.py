"""Time LoG-VMamba's network beside nnU-Net's own, built from the same plan.

``python benchmarks/bench_network.py [--device cpu|cuda] [--quick] [--case NAME]`` measures, in one run and by turns,
seconds per training step (forward, backward, SGD step, all heads) on patches of 40 x 56 x 40 at batch 2 and of
512 x 512 at batch 1 (8 on CUDA), activations kept for the backward pass, and
seconds per prediction of one patch of 128 x 128 x 128 and one of 512 x 512; peak
memory in a process of its own for each. It writes ``benchmarks/results/network_<device>.json``; with ``--case``, only
that case, into the file that is there. With ``--peers`` every network that there is a trainer for, training and
predicting, into ``peers_<device>.json``. With ``--prediction`` one patch on the CPU, with one thread and with two, as
our network predicts it and by torch's own way, into ``prediction_cpu.json``. With ``--profile`` it prints instead where
LoG-VMamba spends its time.

Presets M and L of nnU-Net's residual encoder differ in patch and batch, not in the network, so at equal patch they are
one row.
"""

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from math import prod
from unittest.mock import patch

import torch
from correctness import checked
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from measure import RESULTS, circumstances, peak_of_tensors, save, side_by_side
from torch import nn
from workloads import HIPPOCAMPUS, NETWORKS, PATCHES, PEERS, PICTURES, TINY, NetworkPlan

from nnunet_logvmamba.cores import keep_freed_memory
from nnunet_logvmamba.layers import mamba, nothing_recomputed
from nnunet_logvmamba.networks import catalogue, prediction
from nnunet_logvmamba.networks.costs import summarize
from nnunet_logvmamba.ops.scan import reference
from nnunet_logvmamba.plugin.environment import peak_memory_bytes

RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6, 6)  # per stage, as nnU-Net's residual encoder presets plan it


def log_vmamba(case: NetworkPlan) -> nn.Module:
    """The network of ``nnUNetTrainerLoGVMamba``."""
    return catalogue.row("LoGVMambaUNet").load()(**case.plan, deep_supervision=True)


def log_vmamba_checkpointed(case: NetworkPlan) -> nn.Module:
    """The same, with every stage computed again in the backward pass."""
    return catalogue.row("LoGVMambaUNet").load()(**case.plan, deep_supervision=True, checkpointing=True)


class AllKept(nn.Module):
    """A network without what our blocks compute again in the backward pass by themselves."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> object:
        with nothing_recomputed():
            return self.network(x)


def log_vmamba_all_kept(case: NetworkPlan) -> nn.Module:
    """The same, with nothing computed again."""
    return AllKept(log_vmamba(case))


def no_ssm(case: NetworkPlan) -> nn.Module:
    """The control without states."""
    return catalogue.row("LoGVMambaUNet").load()(**case.plan, deep_supervision=True, family="no_ssm")


def plain(case: NetworkPlan) -> nn.Module:
    """nnU-Net's default network, with the weights that nnU-Net lets it begin with."""
    stages = len(case.features)
    network = PlainConvUNet(
        **case.plan, n_conv_per_stage=[2] * stages, n_conv_per_stage_decoder=[2] * (stages - 1), deep_supervision=True
    )
    return network.apply(network.initialize)


def residual(case: NetworkPlan) -> nn.Module:
    """nnU-Net's residual encoder network, likewise."""
    stages = len(case.features)
    network = ResidualEncoderUNet(
        **case.plan,
        n_blocks_per_stage=list(RESIDUAL_BLOCKS[:stages]),
        n_conv_per_stage_decoder=[1] * (stages - 1),
        deep_supervision=True,
    )
    return network.apply(network.initialize)


def swin(case: NetworkPlan, family: str) -> nn.Module:
    """The paper's 2D network, with LoG-VMamba or VSS blocks in its decoder."""
    own = {"input_channels": case.input_channels, "num_classes": case.num_classes, "family": family}
    network = catalogue.row("LoGVMambaSwinUNet").load()
    return network(**(network.preset["arguments"] | own))


BUILDERS = {
    "LoG-VMamba": log_vmamba,
    "LoG-VMamba, all kept": log_vmamba_all_kept,
    "LoG-VMamba, checkpointing": log_vmamba_checkpointed,
    "NoSSM": no_ssm,
    "PlainConvUNet": plain,
    "ResEnc-M/L": residual,
}
BUILDERS_2D = {
    "LoG-VMamba": log_vmamba,
    "LoG-VMamba, Swin lineage": functools.partial(swin, family="log"),
    "VMamba, Swin lineage": functools.partial(swin, family="vss"),
    "NoSSM": no_ssm,
    "PlainConvUNet": plain,
}


SEQUENTIAL = "sequential scan"

_TRAINING = ("LoG-VMamba, all kept", "LoG-VMamba, checkpointing")
"""What differs in training alone."""


def of_the_catalogue(network: catalogue.Network, case: NetworkPlan, **knobs: object) -> nn.Module:
    """What the trainer of a network builds from the plan."""
    made, stages = network.load(), len(case.features)
    planned = case.plan | {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)}
    return made(
        input_channels=case.input_channels,
        num_classes=case.num_classes,
        deep_supervision=made.deep_supervised,
        **made.from_plan(planned, list(case.patch_size)),
        **knobs,
    )


def sequential(network: catalogue.Network, case: NetworkPlan) -> nn.Module:
    """The same on the scan that mamba-ssm publishes as its reference: a step after the other, gradients by autograd."""
    made = of_the_catalogue(network, case)
    forward = made.forward

    def scan(u, delta, A, B, C, D, *, delta_bias, order, backend):
        assert order is None, "the reference reads tokens as they lie"
        return reference.forward(u, delta, A, B, C, D, delta_bias, None, True)[0]

    def on_reference(x: torch.Tensor) -> object:
        with patch.object(mamba, "selective_scan", scan):
            return forward(x)

    made.forward = on_reference
    return made


def builders(case: NetworkPlan) -> dict[str, Callable[[NetworkPlan], nn.Module]]:
    """What is compared on a case."""
    if len(case.patch_size) == 2:
        return BUILDERS_2D
    return {name: build for name, build in BUILDERS.items() if case.training or name not in _TRAINING}


def peers(case: NetworkPlan) -> dict[str, Callable[[NetworkPlan], nn.Module]]:
    """nnU-Net's network, every one of the catalogue that has as many axes, and U-Mamba-Enc on the sequential scan.

    The backward pass of that scan takes quadratic time in autograd, so it is there on the smallest case alone, beside
    the same network with ours.
    """
    if case.name == TINY.name:
        enc = catalogue.row("UMambaEnc")
        return {
            "PlainConvUNet": plain,
            enc.trainer: functools.partial(of_the_catalogue, enc),
            f"{enc.trainer}, {SEQUENTIAL}": functools.partial(sequential, enc),
        }
    fitting = [network for network in catalogue.NETWORKS if len(case.patch_size) in network.dims]
    found = {network.trainer: functools.partial(of_the_catalogue, network) for network in fitting}
    if len(case.patch_size) == 2:
        sister = f"{catalogue.row('SwinUMamba').trainer}D"
        found[sister] = functools.partial(of_the_catalogue, catalogue.row("LoGVMambaSwinUNet"), family="vss")
    return {"PlainConvUNet": plain, **found}


def mean_square(outputs: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """A loss of all scales that costs next to nothing."""
    scales = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    return torch.stack([output.float().square().mean() for output in scales]).sum()


def step(build: Callable[[NetworkPlan], nn.Module], case: NetworkPlan, device: str) -> tuple[Callable[[], object], int]:
    """What is timed, a training step or a prediction, and the number of parameters."""
    torch.manual_seed(0)
    network = build(case).to(device)
    x = torch.randn(case.batch_size, case.input_channels, *case.patch_size, device=device)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    amp = functools.partial(torch.autocast, device, enabled=device == "cuda")
    if not case.training:
        network.eval()
        if getattr(network, "deep_supervised", True):
            network.decoder.deep_supervision = False

        def predict() -> torch.Tensor:
            with torch.inference_mode(), amp():
                return network(x)

        return predict, parameters

    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.99, nesterov=True)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with amp():
            loss = mean_square(network(x))
        loss.backward()
        optimizer.step()

    return train, parameters


def peak_memory(name: str, case: NetworkPlan, device: str, of_peers: bool) -> dict[str, int]:
    """Bytes that two steps need beyond what an idle process has, in a process of its own.

    On a CPU ``peak_bytes`` is what the process needs, and ``tensor_peak_bytes`` what tensors hold of it, weights and
    the optimizer's included; on a GPU it is tensors that are counted.
    """
    command = [sys.executable, __file__, "--device", device, "--memory-of", name, case.name]
    command += ["--peers"] if of_peers else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def kept(build: Callable[[NetworkPlan], nn.Module], case: NetworkPlan) -> int:
    """Bytes of activations that the backward pass of a batch needs, counted on a dry run."""
    with torch.device("meta"):
        network = build(case)
    return summarize(network, case.input_channels, case.patch_size, case.batch_size).activation_bytes


def _print_memory(
    build: Callable[[NetworkPlan], nn.Module], case: NetworkPlan, device: str, *, one_by_one: bool
) -> None:
    """Print what two steps need; of a scan that goes step by step the profiler alone would take all memory."""

    def two_steps() -> None:
        call, _ = step(build, case, device)
        call()
        call()

    before = peak_memory_bytes(torch.device(device))
    two_steps()
    found = {"peak_bytes": peak_memory_bytes(torch.device(device)) - before}
    if device == "cpu" and not one_by_one:
        found["tensor_peak_bytes"] = peak_of_tensors(two_steps)
    print(json.dumps(found))


def measured(case: NetworkPlan, device: str) -> dict[str, object]:
    """Seconds, memory and parameters of every network on one case."""
    steps, parameters = {}, {}
    for name, build in builders(case).items():
        steps[name], parameters[name] = step(build, case, device)
    seconds = side_by_side(steps, rounds=7, device=device)
    rows = {
        name: seconds[name]
        | {
            "ratio": seconds[name]["seconds"] / seconds["PlainConvUNet"]["seconds"],
            "parameters": parameters[name],
        }
        | peak_memory(name, case, device, of_peers=False)
        | ({"kept_bytes": kept(build, case)} if case.training else {})
        for name, build in builders(case).items()
    }
    print(case.name, json.dumps(rows, indent=2), flush=True)
    what = "training step" if case.training else "prediction"
    return {"case": case.name, "what": what, "patch": case.patch_size, "batch": case.batch_size, "networks": rows}


def measured_peers(case: NetworkPlan, device: str) -> dict[str, object]:
    """Training step, prediction, memory, parameters and multiply-adds of every network that there is a trainer for."""
    steps, predictions, rows = {}, {}, {}
    for name, build in peers(case).items():
        steps[name], parameters = step(build, case, device)
        predictions[name], _ = step(build, replace(case, training=False), device)
        with torch.device("meta"):
            network = build(case)
        rows[name] = {
            "parameters": parameters,
            "multiply_adds": summarize(network, case.input_channels, case.patch_size, 1).multiply_adds,
        }
    seconds, predicting = (side_by_side(calls, rounds=3, device=device) for calls in (steps, predictions))
    voxels = case.batch_size * prod(case.patch_size)
    for name, row in rows.items():
        row["step"] = seconds[name] | {"ratio": seconds[name]["seconds"] / seconds["PlainConvUNet"]["seconds"]}
        row["prediction"] = predicting[name] | {"voxels_per_second": voxels / predicting[name]["seconds"]}
        row |= peak_memory(name, case, device, of_peers=True)
    print(case.name, json.dumps(rows, indent=2), flush=True)
    return {"case": case.name, "patch": case.patch_size, "batch": case.batch_size, "networks": rows}


def measured_predictions(case: NetworkPlan, device: str) -> dict[str, object]:
    """Seconds for one patch by number of threads: our network, the same by torch's own way, and nnU-Net's."""
    ours, _ = step(log_vmamba, case, device)
    plains, _ = step(plain, case, device)

    def by_torchs_way() -> torch.Tensor:
        with patch.object(prediction, "predicts_one_patch", return_value=False):
            return ours()

    expected, threads, rows = by_torchs_way(), torch.get_num_threads(), {}
    error = ours() - expected
    differences = {
        "largest": float(error.abs().max() / expected.abs().max()),
        "root_mean_square": float(error.norm() / expected.norm()),
    }
    for number in (1, 2):
        torch.set_num_threads(number)
        calls = {"LoG-VMamba": ours, "torch's own way": by_torchs_way, "PlainConvUNet": plains}
        rows[str(number)] = side_by_side(calls, rounds=21, slow_rounds=21, device=device)
    torch.set_num_threads(threads)
    print(case.name, json.dumps(rows, indent=2), flush=True)
    return {"case": case.name, "patch": case.patch_size, "differences": differences, "threads": rows}


def profile(case: NetworkPlan, device: str) -> None:
    """Print the operations that take most of LoG-VMamba's time."""
    call, _ = step(log_vmamba, case, device)
    call()
    with torch.profiler.profile(record_shapes=True) as seen:
        call()
    order = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    print(
        case.name,
        seen.key_averages(group_by_input_shape=True).table(sort_by=order, row_limit=40, max_shapes_column_width=90),
    )


def stored(name: str) -> list[dict[str, object]]:
    """What was measured before, each case with its own circumstances; nothing where there is no such file."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    return [{"circumstances": content["circumstances"]} | case for case in content["networks"]]


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="only the small case, saved under another name")
    parser.add_argument(
        "--case", choices=[*{case.name: None for case in (*NETWORKS, *PEERS, TINY)}], help="only this one"
    )
    parser.add_argument("--peers", action="store_true", help="every network that there is a trainer for")
    parser.add_argument("--prediction", action="store_true", help="one patch on the CPU, with one thread and with two")
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
    parser.add_argument("--memory-of", nargs=2, metavar=("NETWORK", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    batch = {PICTURES.name: 8} if args.device == "cuda" else {}
    known = PATCHES if args.prediction else (*PEERS, TINY) if args.peers else NETWORKS
    batch = {} if args.peers else batch
    cases = {case.name: replace(case, batch_size=batch.get(case.name, case.batch_size)) for case in known}
    if args.case not in (None, *cases):
        parser.error(f"--case {args.case} is not among {', '.join(cases)} here")
    if args.memory_of:
        case = cases[args.memory_of[1]]
        build = (peers if args.peers else builders)(case)[args.memory_of[0]]
        _print_memory(build, case, args.device, one_by_one=args.memory_of[0].endswith(SEQUENTIAL))
        return
    if args.device == "cpu":
        keep_freed_memory()  # as our trainers do; else figures go by what lies where on the heap
    chosen = [cases[args.case]] if args.case else [HIPPOCAMPUS] if args.quick else list(cases.values())
    if args.profile:
        for case in chosen:
            profile(case, args.device)
        return
    if args.quick and (args.peers or args.prediction):
        chosen = [replace(TINY, training=args.peers)]
    kind = "prediction" if args.prediction else "peers" if args.peers else "network"
    name = f"{kind}_{args.device}{'_quick' * args.quick}"
    kept, correctness = stored(name) if args.case else [], checked(args.device)
    measure = {"prediction": measured_predictions, "peers": measured_peers, "network": measured}[kind]
    measurements = [measure(case, args.device) | {"circumstances": circumstances(correctness)} for case in chosen]
    again = {found["case"] for found in measurements}
    found = [one for one in kept if one["case"] not in again] + measurements
    order = [*cases, *again]
    print(save(name, {"networks": sorted(found, key=lambda one: order.index(one["case"]))}, correctness))


if __name__ == "__main__":
    main()
