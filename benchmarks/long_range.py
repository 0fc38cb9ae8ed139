"""Who sees how far: accuracy against the distance at which a label's cue lies; ``tables.sh long_range`` calls it.

``python benchmarks/long_range.py [--networks ...] [--distances ...] [--seeds ...] [--control] [--along fast|slow]``
trains each network for ``--iterations`` on images of ``dataset_conversion.phantoms.long_range``, made as they are
needed, and names the targets of others. All have the same images, loss and recipe (Adam 1e-3, nnU-Net's loss and
schedule) and, within a tenth, the same number of parameters; there is no augmentation, since turned or scaled images
have other distances. ``--settings`` trains LoG-VMamba with one knob turned each time instead.

Every training goes into ``benchmarks/results/long_range_<device>.json`` once it has ended, and one that is there is not
run again, unless its weights are wanted and not there. ``--table`` and ``--plot PNG`` show them, ``--look`` says what
the blocks of those do whose weights ``--weights FOLDER`` has kept. All three train nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from bench_network import plain
from measure import RESULTS, circumstances
from scan_at_work import means, mixers, watched, ways, without
from scipy import ndimage
from torch import Tensor, nn
from workloads import NetworkPlan

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from dataset_conversion.phantoms.long_range import long_range_case
from nnunet_logvmamba.files import locked, replace_text
from nnunet_logvmamba.networks import catalogue

FIRST_TEST = 1_000_000
IMAGES = {2: (4, 64), 3: (2, 32)}
"""By axes: images in a step, and images of the test."""
PATCHES = {2: (96, 96), 3: (32, 32, 96)}
LOG, STOCK = "LoG-VMamba", "nnU-Net's network"
NETWORKS: dict[str, tuple[str | None, dict[int, tuple[int, ...]]]] = {
    LOG: ("log", {2: (16, 32, 48), 3: (16, 32, 48)}),
    "local tokens": ("l", {2: (20, 40, 60)}),
    "global tokens": ("g", {2: (16, 32, 48), 3: (16, 32, 48)}),
    "VSS": ("vss", {2: (20, 40, 60), 3: (17, 34, 51)}),
    "NoSSM": ("no_ssm", {2: (20, 40, 60), 3: (17, 34, 51)}),
    STOCK: (None, {2: (17, 34, 51), 3: (15, 30, 45)}),
    f"{STOCK}, 5 stages": (None, {2: (8, 16, 24, 32, 32)}),
}
"""Family of the blocks, None for nnU-Net's network, and by axes the channels of the stages.

They differ so that parameters do not. With three stages the convolutions of nnU-Net's network reach 14 to 20 pixels,
those of NoSSM, which has some in its blocks, 47 to 52; with five stages those of nnU-Net's network reach over most of
the image.
"""
SETTINGS: dict[str, dict[str, object]] = {
    "placement head": {"placement": "head"},
    "placement middle": {"placement": "middle"},
    "placement split": {"placement": "split"},
    "2 directions": {"directions": 2},
    "4 directions": {"directions": 4},
    "window 1": {"window": 1},
    "window 5": {"window": 5},
    "squeeze 4": {"squeeze": 4},
    "squeeze 16": {"squeeze": 16},
    "8 states": {"state_size": 8},
    "32 states": {"state_size": 32},
    "64 states": {"state_size": 64},
    "upper stage alone": {"mixer_stages": [0]},
    "lower stage alone": {"mixer_stages": [1]},
    "global tokens in both": {"global_token_stages": [0, 1]},
}
"""LoG-VMamba with a knob turned; parameters differ with them."""


def network_of(name: str, dims: int) -> nn.Module:
    """Build a network by its name here."""
    family, features = NETWORKS[LOG if name in SETTINGS else name]
    plan = NetworkPlan("pairs", 1, 3, features[dims], PATCHES[dims], IMAGES[dims][0], True)
    if family is None:
        network = plain(plan)
        network.decoder.deep_supervision = False
        return network
    make = catalogue.row("LoGVMambaUNet").load()
    return make(**plan.plan, deep_supervision=False, family=family, **SETTINGS.get(name, {}))


def images(numbers: range, seed: int, task: dict) -> tuple[Tensor, Tensor]:
    """Images (batch, 1, *patch), float32, and their labels, of the numbered cases of a seed."""
    pairs = [
        long_range_case(np.random.default_rng([seed, number]), task["distance"], task["dims"], task["control"])
        for number in numbers
    ]
    if task["along"] == "slow":
        pairs = [(image.swapaxes(0, -1), labels.swapaxes(0, -1)) for image, labels in pairs]
    x, y = (torch.from_numpy(np.stack(part))[:, None] for part in zip(*pairs))
    return (x.float() - 128) / 32, y


def tests(task: dict, device: str) -> list[tuple[Tensor, Tensor]]:
    """Images that no network has seen, in batches."""
    numbers = range(FIRST_TEST, FIRST_TEST + IMAGES[task["dims"]][1])
    x, y = images(numbers, 0, task)
    return list(zip(x.to(device).split(8), y.to(device).split(8)))


def majority(dims: int = 2) -> float:
    """Share of the targets of the test that the majority of each image names, whatever the distance."""
    shares = []
    for _, y in tests({"dims": dims, "distance": 14, "along": "fast", "control": False}, "cpu"):
        for labels in y[:, 0].numpy():
            targets, count = ndimage.label(labels)
            dark = sum(labels[targets == target][0] == 2 for target in range(1, count + 1))
            shares.append(max(dark, count - dark) / count)
    return float(np.mean(shares))


def named(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of targets most of whose voxels get the larger logit from their own class of the two."""
    right = total = 0
    for x, y in batches:
        with torch.inference_mode():
            logits = network(x)
        second = (logits[:, 2] > logits[:, 1]).cpu().numpy()
        for labels, says_dark in zip(y[:, 0].cpu().numpy(), second):
            targets, count = ndimage.label(labels)
            for target in range(1, count + 1):
                inside = targets == target
                right += (says_dark[inside].mean() > 0.5) == (labels[inside][0] == 2)
            total += count
    return right / total


def train(
    name: str, seed: int, task: dict, iterations: int, device: str, weights: Path | None = None
) -> dict[str, object]:
    """Train a network, name the targets of images that it has not seen, and keep its weights in a folder."""
    torch.manual_seed(seed)
    network = network_of(name, task["dims"]).to(device)
    batch = IMAGES[task["dims"]][0]
    loss = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = PolyLRScheduler(optimizer, 1e-3, iterations)
    begin, losses = time.perf_counter(), []
    for step in range(iterations):
        schedule.step(step)
        x, y = images(range(batch * step, batch * (step + 1)), seed, task)
        found = loss(network(x.to(device)), y.to(device))
        optimizer.zero_grad(set_to_none=True)
        found.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        losses.append(float(found.detach()))
    network.eval()
    row = {"network": name, "seed": seed, **task, "iterations": iterations}
    if weights is not None:
        weights.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), weights / file_of(row))
    return {
        **row,
        "accuracy": named(network, tests(task, device)),
        "loss": float(np.mean(losses[-max(1, iterations // 20) :])),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": time.perf_counter() - begin,
    }


def look(row: dict, weights: Path, device: str) -> dict[str, object]:
    """What the blocks of a trained network do, and its accuracy without them or parts of them."""
    torch.manual_seed(row["seed"])  # as it was when its training began
    network = network_of(row["network"], row["dims"]).to(device).eval()
    blocks, batches = mixers(network), tests(row, device)

    def seen() -> dict[str, dict[str, object]]:
        found: dict[str, list[dict]] = {name: [] for name in blocks}
        with watched(blocks, found):
            named(network, batches)
        return means(found)

    start = seen()
    network.load_state_dict(torch.load(weights / file_of(row), map_location=device, weights_only=True))
    dropped = {}
    for way in ways(blocks):
        with without(way, blocks):
            dropped[way] = named(network, batches)
    return {"dropped": dropped, "blocks_before": start, "blocks": seen()}


def file_of(row: dict) -> str:
    """The name of the file of a training's weights."""
    words = [row["network"].lower().replace(" ", "_").replace("'", ""), f"seed{row['seed']}", row["distance"]]
    words += [row["along"], *["control"] * row["control"], *["3d"] * (row["dims"] == 3), row["iterations"]]
    return "-".join(map(str, words)) + ".pt"


def key(row: dict) -> tuple:
    """What makes two trainings the same."""
    return tuple(row[name] for name in ("network", "seed", "dims", "distance", "along", "control", "iterations"))


def read(file: Path) -> list[dict]:
    """All trainings of a file; none if there is no file."""
    return json.loads(file.read_text())["trainings"] if file.is_file() else []


def put(file: Path, row: dict) -> None:
    """Write a training to the file, in place of what is there of it; another process may have written meanwhile."""
    with locked(file.resolve().parent):
        rows = {key(one): one for one in read(file)} | {key(row): row}
        content = {"circumstances": row["circumstances"], "trainings": list(rows.values())}
        replace_text(file, json.dumps(content, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    every = [*NETWORKS, *SETTINGS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=every, metavar="NAME", help=f"default: {', '.join(NETWORKS)}")
    parser.add_argument("--settings", action="store_true", help=f"in place of these: {', '.join([LOG, *SETTINGS])}")
    parser.add_argument("--distances", type=int, nargs="+", default=[14, 28, 44, 80], help="default: 14 28 44 80")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--iterations", type=int, default=1500, help="default: %(default)s")
    parser.add_argument("--dims", type=int, choices=(2, 3), default=2, help="axes; default: %(default)s")
    parser.add_argument("--along", choices=("fast", "slow"), default="fast", help="default: %(default)s")
    parser.add_argument("--control", action="store_true", help="the class stands in the target itself")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="keep the weights of every training there")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--plot", type=Path, metavar="PNG", help="draw what was measured")
    instead.add_argument("--table", action="store_true", help="print what was measured")
    instead.add_argument("--look", action="store_true", help="add what the blocks do, from the kept --weights")
    parser.add_argument("--results", type=Path, help="file; default: benchmarks/results/long_range_<device>.json")
    args = parser.parse_args()
    if args.networks and args.settings:
        parser.error("--settings names the networks itself; leave --networks out")
    args.networks = args.networks or ([LOG, *SETTINGS] if args.settings else list(NETWORKS))
    if args.dims == 3 and not (args.plot or args.table or args.look):
        small = [name for name in args.networks if name in NETWORKS and 3 not in NETWORKS[name][1]]
        if small:
            parser.error(f"in 3D there is no {small[0]!r} with as many parameters as the others; name --networks")
    if args.look and not args.weights:
        parser.error("--look needs the folder of --weights")
    args.results = args.results or RESULTS / f"long_range_{args.device}.json"
    return args


def by_distance(rows: Sequence[dict], name: str) -> dict[int, list[float]]:
    """The accuracies of a network by distance, one for each seed."""
    found: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: (row["distance"], row["seed"])):
        if row["network"] == name:
            found.setdefault(row["distance"], []).append(row["accuracy"])
    return found


def table(rows: Sequence[dict]) -> str:
    """Accuracies in percent as Markdown, a line for each network: mean and standard error over the seeds."""
    distances = sorted({row["distance"] for row in rows})
    lines = [["Network", "Parameters", *(f"{distance} voxels" for distance in distances)]]
    lines.append(["---"] * len(lines[0]))
    for name in [*NETWORKS, *SETTINGS]:
        found = by_distance(rows, name)
        if found:
            parameters = next(row["parameters"] for row in rows if row["network"] == name)
            cells = [percent(found[distance]) if distance in found else "–" for distance in distances]
            lines.append([name, f"{parameters:,}", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(shares: Sequence[float]) -> str:
    """Mean and, of several, standard error."""
    mean = f"{100 * np.mean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * np.std(shares, ddof=1) / len(shares) ** 0.5:.1f}"


def plot(rows: Sequence[dict], target: Path) -> None:
    """Draw accuracy against distance, a line for each network: mean over the seeds, and their spread."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8.5, 4), layout="constrained")
    for number, name in enumerate([*NETWORKS, *SETTINGS]):
        found = by_distance(rows, name)
        if found:
            distances = np.array(sorted(found))
            middle = np.array([np.mean(found[distance]) for distance in distances])
            ends = np.array([(min(found[distance]), max(found[distance])) for distance in distances])
            beside = distances + 0.8 * (number - 2.5)  # so that none hides another
            axes.errorbar(beside, middle, np.abs(ends.T - middle), marker="o", capsize=3, label=name)
    axes.axhline(majority(rows[0]["dims"]), color="grey", linestyle="--", label="guessing by the majority")
    axes.set(xlabel="distance of the cue, voxels", ylabel="targets named rightly", ylim=(0.4, 1.02))
    figure.legend(loc="outside right upper")
    figure.savefig(target, dpi=120)
    plt.close(figure)


def show(args: argparse.Namespace) -> None:
    """Print or draw the trainings that the arguments name, or look at their blocks."""
    wanted = {name: getattr(args, name) for name in ("dims", "along", "control", "iterations")}
    chosen = {"network": args.networks, "distance": args.distances, "seed": args.seeds}
    rows = [row for row in read(args.results) if all(row[name] in values for name, values in chosen.items())]
    rows = [row for row in rows if wanted.items() <= row.items()]
    if not rows:
        words = ", ".join(f"{name}={value}" for name, value in wanted.items())
        sys.exit(f"long_range: {args.results} has no trainings with {words}: run them first")
    if args.plot:
        plot(rows, args.plot)
    elif args.table:
        print(table(rows))
    else:
        rows = [row for row in rows if not row["network"].startswith(STOCK) and (args.weights / file_of(row)).is_file()]
        if not rows:
            sys.exit(f"long_range: {args.weights} has no weights of these trainings: run them with --weights")
        for row in rows:
            row |= look(row, args.weights, args.device)
            put(args.results, row)
            words = ", ".join(f"{share:.1%} without {what}" for what, share in row["dropped"].items())
            print(f"{row['network']}, distance {row['distance']}, seed {row['seed']}: {row['accuracy']:.1%}, {words}")


def main() -> int:
    """Run what is missing."""
    args = arguments()
    if args.plot or args.table or args.look:
        show(args)
        return 0
    print(f"Guessing by the majority names {majority(args.dims):.0%}.", flush=True)
    for seed, distance, name in product(args.seeds, args.distances, args.networks):
        task = {"dims": args.dims, "distance": distance, "along": args.along, "control": args.control}
        wanted = {"network": name, "seed": seed, "iterations": args.iterations, **task}
        is_kept = args.weights is None or (args.weights / file_of(wanted)).is_file()
        if is_kept and any(key(row) == key(wanted) for row in read(args.results)):
            continue
        row = train(name, seed, task, args.iterations, args.device, args.weights)
        row["circumstances"] = circumstances(None)
        put(args.results, row)
        print(f"{name}, distance {distance}, seed {seed}: {row['accuracy']:.1%} in {row['seconds']:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
