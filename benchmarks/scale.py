"""Reckon what a large study costs: ``python benchmarks/scale.py`` prints the tables of ``docs/explanation/scale.md``.

The study is BraTS 2021, 1,250 cases: every 3D network of ``peers_cpu.json``, five folds, three seeds, nnU-Net's
schedule. What was measured comes from ``benchmarks/results/``; what was not is an option here: ``--rate`` is what a GPU
is taken to do, ``--step NETWORK=SECONDS`` puts a step that was measured on a GPU in place of that, ``--workers`` are
nnU-Net's for each GPU, and ``--gpus`` how many there are.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from math import ceil, prod
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
CASES, FOLDS, SEEDS = 1250, 5, 3
EPOCHS, STEPS, VALIDATION_STEPS = 1000, 250, 50
MIRRORED = 8  # nnU-Net predicts each patch along all subsets of three axes
FORWARD, STEP = 1, 3  # a backward pass takes two multiply-adds for each of the forward one
SAVED_EVERY = 50
OPENED = 3  # files for each patch: image, labels, and where the labels are
OTHER_FILES = 12  # of a training, beside checkpoints and masks: log, record, picture, summaries, scores, plans
GB = 1e9


@dataclass(frozen=True)
class Setting:
    """What the reader knows better: multiply-adds a second, seconds of measured steps, workers per GPU, GPUs."""

    rate: float = 20e12
    steps: dict[str, float] = field(default_factory=dict)
    workers: int = 12
    gpus: int = 16


@dataclass(frozen=True)
class Costs:
    """A training of one network; seconds of a step by the GPU alone, and with what the loader lets through."""

    name: str
    parameters: int
    gpu_step: float
    step: float
    hours: float
    gpu_hours: float

    @property
    def checkpoint(self) -> int:
        """Bytes: the weights and Adam's two means of each, in float32."""
        return checkpoint_bytes(self.parameters)


def checkpoint_bytes(parameters: int, copies: int = 3) -> int:
    """Bytes of a checkpoint: weights and what the optimizer keeps of each, two means for Adam, one for SGD."""
    return 4 * copies * parameters


def costs(measured: dict, setting: Setting) -> list[Costs]:
    """What a training of each network takes."""
    plan, batch = measured["plan"], measured["plan"]["batch"]
    loader = batch * measured["patch"]["seconds"] / setting.workers
    predicted = CASES // FOLDS * plan["windows"] * MIRRORED / batch

    def hours(gpu_step: float, step: float) -> float:
        forwards = gpu_step * FORWARD / STEP
        return (EPOCHS * (STEPS * step + VALIDATION_STEPS * forwards) + predicted * forwards) / 3600

    found = []
    for name, network in measured["work"].items():
        gpu_step = setting.steps.get(name, STEP * batch * network["multiply_adds"] / setting.rate)
        step = max(gpu_step, loader)
        found.append(
            Costs(name, network["parameters"], gpu_step, step, hours(gpu_step, step), hours(gpu_step, gpu_step))
        )
    return found


def number(value: float) -> str:
    """Three significant digits, thousands with a comma."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def measured_table(measured: dict, peers: dict) -> str:
    """What was measured on a CPU or counted, of every network."""
    cube = next(case for case in peers["networks"] if case["case"] == "cube")
    head = ["Network", "parameters", "GMAC of a patch", "kept for backward, GiB", "checkpoint, MB"]
    head += ["step on a CPU, 64³, s", "memory on a CPU, 64³, MiB"]
    rows = []
    for name, network in measured["work"].items():
        small = cube["networks"][name]
        row = [name, f"{network['parameters']:,}", number(network["multiply_adds"] / 1e9)]
        row += [number(network["kept_bytes"] / 2**30), number(checkpoint_bytes(network["parameters"]) / 1e6)]
        rows.append([*row, number(small["step"]["seconds"]), number(small["peak_bytes"] / 2**20)])
    return table(head, rows)


def hours_table(found: list[Costs]) -> str:
    """Hours of a GPU, network by network."""
    head = [
        "Network",
        "step by the GPU alone, s",
        "hours of a training",
        "of 15",
        "step with its loader, s",
    ]
    head += ["hours of a training", "of 15"]
    runs = FOLDS * SEEDS
    rows = [
        [each.name, number(each.gpu_step), number(each.gpu_hours), number(runs * each.gpu_hours)]
        + [number(each.step), number(each.hours), number(runs * each.hours)]
        for each in found
    ]
    gpu, all_hours = (runs * sum(getattr(each, name) for each in found) for name in ("gpu_hours", "hours"))
    return table(head, [*rows, ["all", "", "", number(gpu), "", "", number(all_hours)]])


def storage_table(measured: dict, found: list[Costs]) -> str:
    """Bytes and files of the whole study."""
    case, runs = measured["case"], FOLDS * SEEDS
    trainings, predicted = runs * len(found), CASES // FOLDS
    mask = case["raw"]["case.nii.gz"]
    raw = sum(size for name, size in case["raw"].items() if name.startswith("case"))
    prepared = sum(case["preprocessed"].values())
    files = {
        "raw": sum(name.startswith("case") for name in case["raw"]),
        "prepared": len(case["preprocessed"]),
    }
    weights = runs * sum(each.checkpoint for each in found)
    rows = [
        ("raw", f"{number(raw / 1e6)} MB a case", CASES * raw, CASES * files["raw"]),
        ("preprocessed, one configuration", f"{number(prepared / 1e6)} MB a case", CASES * prepared)
        + (CASES * files["prepared"],),
        ("checkpoints", "best and final of each training", 2 * weights, 2 * trainings),
        ("validation", f"{predicted} masks a training, {number(mask / 1e3)} kB each", trainings * predicted * mask)
        + (trainings * predicted,),
        ("logs, scores, plans", f"about {OTHER_FILES} files a training", 0, trainings * OTHER_FILES),
    ]
    cells = [[what, how, number(size / GB) if size else "< 1", f"{count:,}"] for what, how, size, count in rows]
    total = [number(sum(row[2] for row in rows) / GB), f"{sum(row[3] for row in rows):,}"]
    return table(["", "", "GB", "files"], [*cells, ["all", "", *total]])


def load_table(measured: dict, found: list[Costs], setting: Setting) -> str:
    """What trainings at once ask of the file system and the cores, and how long all of them take."""
    plan, patch, trainings = measured["plan"], measured["patch"], FOLDS * SEEDS * len(found)
    mean_step = sum(each.step for each in found) / len(found)
    checkpoint = sum(each.checkpoint for each in found) / len(found)
    all_hours = FOLDS * SEEDS * sum(each.hours for each in found)
    head = ["Trainings at once", "days", "cores for workers", "read, MB/s", "files opened a second"]
    head += ["checkpoints if each epoch is the best, MB/s"]
    rows = []
    for at_once in sorted({1, setting.gpus, trainings}):
        patches = at_once * plan["batch"] / mean_step
        epoch = STEPS * mean_step
        row = [str(at_once), number(all_hours / 24 / at_once), f"{at_once * setting.workers:,}"]
        row += [number(patches * patch["bytes"] / 1e6), number(patches * OPENED)]
        rows.append([*row, number(at_once * checkpoint / epoch / 1e6)])
    return table(head, rows)


def study_table(measured: dict, found: list[Costs], setting: Setting) -> str:
    """What the study is, and what a training asks for."""
    case, plan, patch = measured["case"], measured["plan"], measured["patch"]
    training_cases = CASES - CASES // FOLDS
    prepared = sum(size for name, size in case["preprocessed"].items() if name != "gt_segmentations")
    probabilities = 4 * plan["regions"] * prod(case["shape"])
    cores = {each.name: ceil(plan["batch"] * patch["seconds"] / each.gpu_step) for each in found}
    bound = sum(each.step > each.gpu_step for each in found)
    rows = {
        "trainings": FOLDS * SEEDS * len(found),
        "steps of each, and patches": f"{EPOCHS * STEPS:,} and {EPOCHS * STEPS * plan['batch']:,}",
        "patch": f"{_by(plan['patch'])} voxels, 4 channels",
        "validated with": f"{CASES // FOLDS} cases of {plan['windows']} patches, each predicted {MIRRORED} times",
        "case, and what is left of it around the brain": f"{_by(case['shape'])} and {_by(case['cropped'])}",
        "core hours to preprocess all cases": number(CASES * case["seconds"] / 3600),
        "core seconds to draw and augment a patch": number(patch["seconds"]),
        "read from files for a patch, MB": number(patch["bytes"] / 1e6),
        f"cores that keep a GPU busy, {min(cores, key=cores.get)} to {max(cores, key=cores.get)}": (
            f"{min(cores.values())} to {max(cores.values())}"
        ),
        f"networks that wait for {setting.workers} workers": f"{bound} of {len(found)}",
        "preprocessed training cases of a fold, GB": number(training_cases * prepared / GB),
        "checkpoints that a training writes at most": f"{EPOCHS // SAVED_EVERY + EPOCHS:,}",
        "probabilities of a case with `--npz`, before compression, MB": number(probabilities / 1e6),
    }
    return table(["", ""], [[name, str(value)] for name, value in rows.items()])


def _by(sizes: list[int]) -> str:
    return " × ".join(map(str, sizes))


def tables(measured: dict, peers: dict, setting: Setting) -> list[str]:
    """All that is printed, in the page's order."""
    found = costs(measured, setting)
    return [
        study_table(measured, found, setting),
        measured_table(measured, peers),
        hours_table(found),
        storage_table(measured, found),
        load_table(measured, found, setting),
    ]


def stored(name: str) -> dict:
    """A file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def main() -> None:
    """Print the tables."""
    measured, usual = stored("scale_cpu"), Setting()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=usual.rate, help="multiply-adds a second, default: %(default)g")
    parser.add_argument(
        "--step", nargs="+", default=[], metavar="NETWORK=SECONDS", help="measured on your GPU, in place of --rate"
    )
    parser.add_argument("--workers", type=int, default=usual.workers, help="for each GPU, default: %(default)s")
    parser.add_argument("--gpus", type=int, default=usual.gpus, help="default: %(default)s")
    args = parser.parse_args()
    steps = {}
    for word in args.step:
        name, _, seconds = word.partition("=")
        try:
            steps[name] = float(seconds)
        except ValueError:
            parser.error(f"--step {word}: say NETWORK=SECONDS")
        if name not in measured["work"] or not steps[name] > 0:
            parser.error(f"--step {word}: networks are {', '.join(measured['work'])}, seconds are above 0")
    if not (args.rate > 0 and args.workers > 0 and args.gpus > 0):
        parser.error("--rate, --workers and --gpus are above 0")
    setting = Setting(args.rate, steps, args.workers, args.gpus)
    print("\n\n".join(tables(measured, stored("peers_cpu"), setting)))


if __name__ == "__main__":
    main()
