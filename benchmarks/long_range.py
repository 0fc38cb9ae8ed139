"""Who sees how far: accuracy against the distance at which a label's cue lies; ``tables.sh long_range`` calls it.

``python benchmarks/long_range.py [--networks ...] [--distances ...] [--seeds ...] [--control] [--along fast|slow]``
trains each network for ``--iterations`` on images of ``dataset_conversion.phantoms.long_range``, made as they are
needed, and names the targets of 64 others. All have the same images, loss and recipe (Adam 1e-3, nnU-Net's loss and
schedule) and, within a tenth, the same number of parameters; there is no augmentation, since turned or scaled images
have other distances. Every training goes into ``benchmarks/results/long_range_<device>.json`` once it has ended, and
one that is there is not run again; ``--plot PNG`` draws them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from bench_network import plain
from measure import RESULTS, circumstances
from scipy import ndimage
from torch import Tensor, nn
from workloads import NetworkPlan

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from dataset_conversion.phantoms.long_range import GUESS, long_range_case
from nnunet_logvmamba.networks import catalogue

BATCH, TESTS, FIRST_TEST = 4, 64, 1_000_000
WIDE, NARROW = (20, 40, 60), (16, 32, 48)
PLAN = NetworkPlan("pairs", 1, 3, NARROW, (96, 96), BATCH, True)


def ours(family: str, widths: tuple[int, ...]) -> nn.Module:
    """Our network with blocks of a family."""
    plan = replace(PLAN, features=widths).plan
    return catalogue.row("LoGVMambaUNet").load()(**plan, deep_supervision=False, family=family)


def stock() -> nn.Module:
    """nnU-Net's network."""
    network = plain(replace(PLAN, features=(17, 34, 51)))
    network.decoder.deep_supervision = False
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "LoG-VMamba": partial(ours, "log", NARROW),
    "local tokens": partial(ours, "l", WIDE),
    "global tokens": partial(ours, "g", NARROW),
    "VSS": partial(ours, "vss", WIDE),
    "NoSSM": partial(ours, "no_ssm", WIDE),
    "nnU-Net's network": stock,
}
"""Widths differ so that parameters do not, by more than a tenth."""


def images(numbers: range, seed: int, task: dict) -> tuple[Tensor, Tensor]:
    """Images (batch, 1, 96, 96), float32, and their labels, of the numbered cases of a seed."""
    pairs = [
        long_range_case(np.random.default_rng([seed, number]), task["distance"], 2, task["control"])
        for number in numbers
    ]
    if task["along"] == "slow":
        pairs = [(image.T, labels.T) for image, labels in pairs]
    x, y = (torch.from_numpy(np.stack(part))[:, None] for part in zip(*pairs))
    return (x.float() - 128) / 32, y


def named(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of targets most of whose voxels get the larger logit from their own class of the two."""
    with torch.inference_mode():
        second = (network(x)[:, 2] > network(x)[:, 1]).cpu().numpy()
    right = total = 0
    for labels, says_dark in zip(y[:, 0].cpu().numpy(), second):
        targets, count = ndimage.label(labels)
        for target in range(1, count + 1):
            inside = targets == target
            right += (says_dark[inside].mean() > 0.5) == (labels[inside][0] == 2)
        total += count
    return right / total


def train(name: str, seed: int, task: dict, iterations: int, device: str) -> dict[str, object]:
    """Train a network, and name the targets of images that it has not seen."""
    torch.manual_seed(seed)
    network = NETWORKS[name]().to(device)
    loss = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = PolyLRScheduler(optimizer, 1e-3, iterations)
    begin, losses = time.perf_counter(), []
    for step in range(iterations):
        schedule.step(step)
        x, y = images(range(BATCH * step, BATCH * (step + 1)), seed, task)
        found = loss(network(x.to(device)), y.to(device))
        optimizer.zero_grad(set_to_none=True)
        found.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        losses.append(float(found.detach()))
    network.eval()
    tests = images(range(FIRST_TEST, FIRST_TEST + TESTS), 0, task)
    return {
        "network": name,
        "seed": seed,
        **task,
        "iterations": iterations,
        "accuracy": named(network, *(part.to(device) for part in tests)),
        "loss": float(np.mean(losses[-max(1, iterations // 20) :])),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": time.perf_counter() - begin,
    }


def key(row: dict) -> tuple:
    """What makes two trainings the same."""
    return tuple(row[name] for name in ("network", "seed", "distance", "along", "control", "iterations"))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--distances", type=int, nargs="+", default=[14, 28, 44, 80], help="default: 14 28 44 80")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--iterations", type=int, default=1500, help="default: %(default)s")
    parser.add_argument("--along", choices=("fast", "slow"), default="fast", help="default: %(default)s")
    parser.add_argument("--control", action="store_true", help="the class stands in the target itself")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw what was measured, and train nothing")
    parser.add_argument("--results", type=Path, help="file; default: benchmarks/results/long_range_<device>.json")
    return parser.parse_args()


def plot(rows: Sequence[dict], target: Path) -> None:
    """Draw accuracy against distance, a line for each network: mean over the seeds, and their spread."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name in NETWORKS:
        found: dict[int, list[float]] = {}
        for row in rows:
            if row["network"] == name:
                found.setdefault(row["distance"], []).append(row["accuracy"])
        if found:
            distances = sorted(found)
            means = np.array([np.mean(found[distance]) for distance in distances])
            ends = np.array([(min(found[distance]), max(found[distance])) for distance in distances])
            axes.errorbar(distances, means, np.abs(ends.T - means), marker="o", capsize=3, label=name)
    axes.axhline(GUESS, color="grey", linestyle="--", label="guessing by the majority")
    axes.set(xlabel="distance of the cue, voxels", ylabel="targets named rightly", ylim=(0.4, 1.02))
    axes.legend()
    figure.savefig(target, dpi=120)
    plt.close(figure)


def main() -> int:
    """Run what is missing."""
    args = arguments()
    file = args.results or RESULTS / f"long_range_{args.device}.json"
    if args.plot:
        wanted = {"along": args.along, "control": args.control, "iterations": args.iterations}
        rows = json.loads(file.read_text())["trainings"] if file.is_file() else []
        chosen = {"network": args.networks, "distance": args.distances, "seed": args.seeds}
        rows = [row for row in rows if all(row[name] in values for name, values in chosen.items())]
        rows = [row for row in rows if wanted.items() <= row.items()]
        if not rows:
            words = ", ".join(f"{name}={value}" for name, value in wanted.items())
            sys.exit(f"long_range: {file} has no trainings with {words}: run them first")
        plot(rows, args.plot)
        return 0
    print(f"Guessing by the majority names {GUESS:.0%}.", flush=True)
    for seed, distance, name in product(args.seeds, args.distances, args.networks):
        task = {"distance": distance, "along": args.along, "control": args.control}
        wanted = {"network": name, "seed": seed, "iterations": args.iterations, **task}
        rows = json.loads(file.read_text())["trainings"] if file.is_file() else []
        if any(key(row) == key(wanted) for row in rows):
            continue
        row = train(name, seed, task, args.iterations, args.device) | {"circumstances": circumstances(None)}
        # Read anew, since another process may have written meanwhile.
        rows = json.loads(file.read_text())["trainings"] if file.is_file() else []
        content = json.dumps({"circumstances": row["circumstances"], "trainings": [*rows, row]}, indent=1)
        staged = file.with_suffix(".new")
        staged.write_text(content + "\n")
        staged.replace(file)
        print(f"{name}, distance {distance}, seed {seed}: {row['accuracy']:.1%} in {row['seconds']:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
