"""Ablations of the paper, and all its rivals, at reduced size on open data; ``tables.sh`` calls it.

``python benchmarks/paper_tables.py TABLE... [--data hippocampus|cells] [--dry-run]``. Everything lies below
``--folder``, results of each budget in a folder of their own. Every command is printed, so that each can be repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

from nnunet_logvmamba.networks import catalogue

ROOT = Path(__file__).resolve().parents[1]
PLANS = "nnUNetPlans"
BASE = "base"
LOG, VSS = "LoGVMamba", "VMamba"
PUBLISHED = "published"
COMMON = "sgd"
"""nnU-Net's own recipe: it was tuned for none of the others, ours included."""


@dataclass(frozen=True)
class Row:
    """A row of a table: a trainer's family and a configuration that differs from ``base`` in these knobs."""

    name: str
    family: str = LOG
    configuration: str = BASE
    knobs: dict[str, object] = field(default_factory=dict)
    patch_size: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Data:
    """A data set of the folder ``shared/data`` beside the checkout, and the size at which it is trained here."""

    converter: str
    number: str
    name: str
    configuration: str
    patch_size: tuple[int, ...]
    batch_size: int
    squeeze: int
    other_patches: tuple[tuple[int, ...], ...]


DATA = {
    "hippocampus": Data(
        "dataset_conversion.Dataset004_Hippocampus",
        "4",
        "Dataset004_Hippocampus",
        "3d_fullres",
        (40, 56, 40),
        2,
        16,
        ((16, 24, 16), (24, 40, 24)),
    ),
    "cells": Data(
        "dataset_conversion.Dataset504_NeurIPSCellSeg",
        "504",
        "Dataset504_NeurIPSCellSeg",
        "2d",
        (128, 128),
        4,
        8,
        ((64, 64), (256, 256)),
    ),
}


def rows_of(table: str, data: Data) -> list[Row]:
    """Rows of a table, in its order. What equals the default is the same training in every table."""
    if table == "components":
        families = {
            "neither (VSS)": VSS,
            "local tokens": "LVMamba",
            "global tokens": "GVMamba",
            "both (LoG-VMamba)": LOG,
            "no state space": "NoSSM",
            "nnU-Net's network": "StockNetwork",
        }
        return [Row(name, family) for name, family in families.items()]
    if table == "peers":
        return rivals(len(data.patch_size))
    if table == "placement":
        others = [
            Row(word, configuration=f"placement_{word}", knobs={"placement": word})
            for word in ("head", "middle", "split")
        ]
        return [*others, Row("interleaved")]
    if table == "directions":
        return [
            Row(
                f"{title}, {count} direction{'s' if count > 1 else ''}",
                family,
                BASE if count == 1 else f"directions_{count}",
                {} if count == 1 else {"directions": count},
            )
            for title, family in (("VSS", VSS), ("LoG-VMamba", LOG))
            for count in (1, 2, 4)
        ]
    if table == "window":
        return [_sweep("window", "R", value, 3) for value in (1, 3, 5)]
    if table == "squeeze":
        return [_sweep("squeeze", "S", value, data.squeeze) for value in (2, 4, 8, 16)]
    patches = sorted({*data.other_patches, data.patch_size})
    return [
        Row(_times(size))
        if size == data.patch_size
        else Row(_times(size), configuration=f"input_{_times(size)}", patch_size=size)
        for size in patches
    ]


def rivals(dims: int) -> list[Row]:
    """Every network with as many axes, with its published recipe and with the common one; one row if they are one."""
    families = [(network.trainer, network.recipe) for network in catalogue.NETWORKS if dims in network.dims]
    if dims == 2:
        families.append((f"{catalogue.row('SwinUMamba').trainer}D", PUBLISHED))
    rows = [
        Row(f"{family}, {words} recipe", f"{family}_{recipe}")
        for family, published in families
        for recipe, words in ((PUBLISHED, "published"), (COMMON, "common"))
        if published != COMMON or recipe == COMMON
    ]
    return [*rows, Row("nnU-Net's network, which has the common recipe", f"StockNetwork_{COMMON}")]


def _sweep(knob: str, letter: str, value: int, default: int) -> Row:
    if value == default:
        return Row(f"{letter} = {value}")
    return Row(f"{letter} = {value}", configuration=f"{knob}_{value}", knobs={knob: value})


TABLES = ("components", "placement", "directions", "window", "squeeze", "input", "peers")
IN_THE_PAPER = {"6": "components", "7": "placement", "8": "directions"}


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


class Workplace:
    """Folders of nnU-Net below one of ours, and commands that run in them."""

    def __init__(self, args: argparse.Namespace, data: Data):
        self.args, self.data = args, data
        self.folder = args.folder.resolve() / args.data
        narrow = f"_narrow{args.narrow}" if args.narrow > 1 else ""
        patch = f"_patch{_times(args.patch_size)}" if args.patch_size else ""
        budget = f"{args.epochs}x{args.iterations}{narrow}{patch}{'_unmirrored' * args.no_mirroring}"
        self.results = self.folder / f"results_{budget}"
        self.planned = f"{data.configuration}{narrow}"
        set_aside = [name for name in os.environ if name.startswith("nnUNet_")]
        ours = {
            "nnUNet_raw": str(self.folder / "raw"),
            "nnUNet_preprocessed": str(self.folder / "preprocessed"),
            "nnUNet_results": str(self.results),
            "nnUNet_def_n_proc": "2",
            "nnUNet_n_proc_DA": "2",
        }
        self.environment = {name: value for name, value in os.environ.items() if name not in set_aside} | ours

    @property
    def plans_file(self) -> Path:
        return self.folder / "preprocessed" / self.data.name / f"{PLANS}.json"

    def run(self, command: Sequence[str]) -> None:
        """Print a command and run it from the checkout; if it fails, everything ends with its exit code."""
        print(f"\n$ {shlex.join(command)}", flush=True)
        if self.args.dry_run:
            return
        program = Path(sys.executable).with_name(command[0])
        words = [sys.executable if command[0] == "python" else str(program if program.exists() else command[0])]
        done = subprocess.run([*words, *command[1:]], cwd=ROOT, env=self.environment)
        if done.returncode:
            print(
                f"tables: stopped, since the command above ended with exit code {done.returncode}; what is finished "
                f"stays, and the same call goes on from there",
                file=sys.stderr,
            )
            sys.exit(done.returncode)

    def prepare(self) -> None:
        """Convert, plan and preprocess, unless that is done."""
        if not (self.folder / "raw" / self.data.name / "dataset.json").is_file():
            for name in ("raw", "preprocessed"):
                if not self.args.dry_run:
                    (self.folder / name).mkdir(parents=True, exist_ok=True)
            self.run(["python", "-m", self.data.converter, str(self.args.source), "-d", self.data.number])
        done = self.folder / "preprocessed" / self.data.name / "made_by_tables"
        if not done.is_file():
            plan = ["nnUNetv2_plan_and_preprocess", "-d", self.data.number, "-c", self.data.configuration]
            self.run([*plan, "-np", "2", "-npfp", "2", "--verify_dataset_integrity"])
            if not self.args.dry_run:
                done.touch()

    def narrow(self) -> None:
        """Add a configuration with fewer channels to the plans, in nnU-Net's own format, for its network and ours."""
        if self.planned == self.data.configuration or self.args.dry_run:
            return
        plans = json.loads(self.plans_file.read_text())
        if self.planned in plans["configurations"]:
            return
        architecture = plans["configurations"][self.data.configuration]["architecture"]
        before = architecture["arch_kwargs"]["features_per_stage"]
        after = [max(1, channels // self.args.narrow) for channels in before]
        architecture = architecture | {"arch_kwargs": architecture["arch_kwargs"] | {"features_per_stage": after}}
        plans["configurations"][self.planned] = {
            "inherits_from": self.data.configuration,
            "architecture": architecture,
        }
        staged = self.plans_file.with_suffix(".new")
        staged.write_text(json.dumps(plans, indent=4))
        staged.replace(self.plans_file)
        print(f"\ntables: configuration {self.planned} has {after} channels where nnU-Net planned {before}", flush=True)

    def configure(self, row: Row) -> None:
        """Write the row's configuration with this budget."""
        args, size = self.args, row.patch_size or self.data.patch_size
        schedule = {
            "num_epochs": args.epochs,
            "num_iterations_per_epoch": args.iterations,
            "num_val_iterations_per_epoch": max(1, args.iterations // 10),
        }
        schedule |= {"mirroring": "false"} if args.no_mirroring else {}
        command = ["logvmamba", "plans", "-d", self.data.number, "-c", self.planned]
        command += ["--name", row.configuration, "--overwrite", "--batch-size", str(self.data.batch_size)]
        command += ["--patch-size", *map(str, size)]
        knobs = [
            f"{name}={json.dumps(value) if not isinstance(value, str) else value}" for name, value in row.knobs.items()
        ]
        command += ["--set", *knobs] if knobs else ["--keep-network"]
        self.run([*command, "--train", *(f"{name}={value}" for name, value in schedule.items())])

    def model(self, row: Row, seed: int) -> Path:
        return self.results / self.data.name / f"nnUNetTrainer{row.family}_seed{seed}__{PLANS}__{row.configuration}"

    def is_done(self, row: Row, seed: int, fold: int) -> bool:
        return (self.model(row, seed) / f"fold_{fold}" / "validation" / "summary.json").is_file()

    def train(self, row: Row, seed: int, fold: int) -> None:
        """Train, or go on where an interrupted training was."""
        folder = self.model(row, seed) / f"fold_{fold}"
        begun = any((folder / f"checkpoint_{which}.pth").is_file() for which in ("final", "latest", "best"))
        command = ["nnUNetv2_train", self.data.number, row.configuration, str(fold)]
        command += ["-tr", f"nnUNetTrainer{row.family}_seed{seed}", "-device", self.args.device]
        self.run([*command, *(["--c"] if begun else [])])

    def compare(self, table: str, rows: Sequence[Row]) -> None:
        """Make the table."""
        differing = {row.family for row in rows}, {row.configuration for row in rows}
        names = []
        for row in rows:
            words = [word for word, values in zip((row.family, row.configuration), differing) if len(values) > 1]
            names.append(f"{' '.join(words)}={row.name}")
        models = [str(self.model(row, seed)) for row in rows for seed in self.args.seeds]
        target = self.results / "tables" / table
        folds = ["--folds", *map(str, self.args.folds)]
        self.run(["logvmamba", "compare", *models, *folds, "--names", *names, "--output", str(target)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("tables", nargs="+", metavar="TABLE", help=f"{', '.join(TABLES)}, 6, 7, 8 or all")
    parser.add_argument("--data", choices=tuple(DATA), default="hippocampus", help="default: %(default)s")
    parser.add_argument("--source", type=Path, help="folder of the data; default: ../shared/data/NAME")
    parser.add_argument("--folder", type=Path, default=ROOT / ".tables", help="everything goes below it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--folds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--epochs", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--iterations", type=int, default=25, help="per epoch, default: %(default)s")
    parser.add_argument(
        "--narrow", type=int, default=1, metavar="N", help="divide the channels of every stage by N; default: 1"
    )
    parser.add_argument(
        "--patch-size", type=int, nargs="+", metavar="N", help="of all rows but those of input, in voxels"
    )
    parser.add_argument(
        "--no-mirroring", action="store_true", help="neither training nor validation mirrors: 4 or 8 times faster there"
    )
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    args = parser.parse_args()
    args.tables = [IN_THE_PAPER.get(name, name) for name in args.tables]
    if "all" in args.tables:
        args.tables = list(TABLES)
    strangers = [name for name in args.tables if name not in TABLES]
    if strangers:
        parser.error(f"there is no table '{strangers[0]}'; there are {', '.join(TABLES)}, 6, 7, 8 and all")
    if min(args.epochs, args.iterations, args.narrow) < 1 or min([*args.seeds, *args.folds]) < 0:
        parser.error("--epochs, --iterations and --narrow take numbers from 1 on, --seeds and --folds from 0 on")
    axes = len(DATA[args.data].patch_size)
    if args.patch_size and (len(args.patch_size) != axes or min(args.patch_size) < 1):
        parser.error(f"--patch-size takes {axes} numbers from 1 on for {args.data}")
    args.source = args.source or ROOT.parent / "shared" / "data" / args.data
    if not args.source.is_dir():
        parser.error(f"there is no folder {args.source}: name the data with --source")
    converter = ROOT / f"{DATA[args.data].converter.replace('.', '/')}.py"
    if not converter.is_file():
        parser.error(f"--data {args.data} needs {converter.relative_to(ROOT)}, which this checkout does not have")
    return args


def main() -> int:
    """Prepare, train what is missing, compare."""
    args = _arguments()
    data = DATA[args.data]
    data = replace(data, patch_size=tuple(args.patch_size or data.patch_size))
    workplace = Workplace(args, data)
    workplace.prepare()
    workplace.narrow()
    tables = {name: rows_of(name, data) for name in args.tables}
    for table, rows in tables.items():
        missing = [
            (row, seed, fold)
            for seed in args.seeds
            for fold in args.folds
            for row in rows
            if not workplace.is_done(row, seed, fold)
        ]
        wanted = len(rows) * len(args.seeds) * len(args.folds)
        print(f"\ntables: {table}: {len(missing)} of {wanted} trainings to do", flush=True)
        for row in {row.configuration: row for row, _, _ in missing}.values():
            workplace.configure(row)
        took: list[float] = []
        for number, (row, seed, fold) in enumerate(missing):
            begin = time.perf_counter()
            workplace.train(row, seed, fold)
            took.append(time.perf_counter() - begin)
            left = mean(took) * (len(missing) - number - 1)
            if args.dry_run:
                continue
            print(f"\ntables: {row.name}, seed {seed}, fold {fold}: {took[-1]:.0f} s, about {left / 60:.0f} min to go")
        workplace.compare(table, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
