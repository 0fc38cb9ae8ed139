"""Ablations of the paper, and all its rivals, at reduced size on open data; ``tables.sh`` calls it.

``python benchmarks/paper_tables.py TABLE... [--data hippocampus|cells] [--dry-run]``. Each table is a study.
Everything, the study's file included, is written below ``--folder``; configurations have their budget in their names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import kept

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.interrupts import put_off, unwinding
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.plugin.study_file import DEVICES, read_cluster, read_toml

ROOT = Path(__file__).resolve().parents[1]
PLANS = "nnUNetPlans"
BASE = "base"
PROCESSES = "nnUNet_def_n_proc", "nnUNet_n_proc_DA"
LOG, VSS = "LoGVMamba", "VMamba"
PUBLISHED = "published"
COMMON = "sgd"
"""nnU-Net's own recipe: it was tuned for none of the others, ours included."""
MEANWHILE = 60
"""Seconds after which what has ended so far is kept, since a machine may be taken away without a word."""


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
    if table == "fair":
        families = {"LoG-VMamba": LOG, "NoSSM": "NoSSM", "VSS": VSS, "nnU-Net's network": "StockNetwork"}
        recipes = {"Adam 1e-3": "", "SGD 1e-2": f"_{COMMON}"}  # the first is the default
        return [
            Row(f"{title}, {words}", f"{family}{recipe}")
            for words, recipe in recipes.items()
            for title, family in families.items()
        ]
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
    if table == "states":
        return [_sweep("state_size", "N", value, 16) for value in (8, 16, 32)]
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
        Row(f"{family} ({words})", f"{family}_{recipe}")
        for family, published in families
        for recipe, words in ((PUBLISHED, "published"), (COMMON, "common"))
        if published != COMMON or recipe == COMMON
    ]
    return [*rows, Row("nnU-Net's network (common)", f"StockNetwork_{COMMON}")]


def chosen(rows: list[Row], names: Sequence[str] | None) -> list[Row]:
    """Give the rows with these names, or all; a name that is none ends everything with exit code 2."""
    strangers = [name for name in names or () if name not in {row.name for row in rows}]
    if strangers:
        print(
            f"tables: there is no row '{strangers[0]}'; there are {'; '.join(row.name for row in rows)}",
            file=sys.stderr,
        )
        sys.exit(2)
    return [row for row in rows if not names or row.name in names]


def _sweep(knob: str, letter: str, value: int, default: int) -> Row:
    if value == default:
        return Row(f"{letter} = {value}")
    return Row(f"{letter} = {value}", configuration=f"{knob}_{value}", knobs={knob: value})


TABLES = ("components", "placement", "directions", "window", "squeeze", "states", "input", "fair", "peers")
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
        self.budget = f"{args.epochs}x{args.iterations}{narrow}{patch}{'_unmirrored' * args.no_mirroring}"
        self.planned = f"{data.configuration}{narrow}"
        ours = {f"nnUNet_{name}": str(self.folder / name) for name in ("raw", "preprocessed", "results")}
        own = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_") or name in PROCESSES}
        # On a cluster a study gives each training as many as it has cores.
        self.environment = {**dict.fromkeys(PROCESSES if args.on == "local" else (), "2"), **own, **ours}

    @property
    def is_converted(self) -> bool:
        """Whether the data are there, so that nothing is asked of their source."""
        return (self.folder / "raw" / self.data.name / "dataset.json").is_file()

    @property
    def plans_file(self) -> Path:
        return self.folder / "preprocessed" / self.data.name / f"{PLANS}.json"

    @property
    def is_ready(self) -> bool:
        """Whether a study can be planned: the data are there, and the configuration where nnU-Net would not plan it."""
        return self.is_converted and (self.args.narrow == 1 or self.planned in self.configurations)

    @property
    def configurations(self) -> Mapping[str, dict]:
        if not self.plans_file.is_file():
            return {}
        return json.loads(self.plans_file.read_text())["configurations"]

    def run(
        self,
        *command: str,
        dry: bool | None = None,
        meanwhile: Callable[[], object] | None = None,
        **environment: str,
    ) -> None:
        """Print a command and run it from the checkout; if it fails, everything ends with its exit code.

        Args:
            command: Its words.
            dry: Only print it; None means as this program was told.
            meanwhile: What to do every minute until it ends.
            environment: Further variables for it.
        """
        print(f"\n$ {shlex.join(command)}", flush=True)
        if self.args.dry_run if dry is None else dry:
            return
        program = Path(sys.executable).with_name(command[0])
        words = [sys.executable if command[0] == "python" else str(program if program.exists() else command[0])]
        process = None
        try:
            with put_off():  # in a session of its own, it hears of an interrupt from here alone, and ends what it runs
                process = subprocess.Popen(
                    [*words, *command[1:]], cwd=ROOT, env=self.environment | environment, start_new_session=True
                )
            code = _ended(process, meanwhile)
        finally:
            if process is not None and process.returncode is None:
                process.terminate()
                process.wait()
        if code:
            print(
                f"tables: stopped, since the command above ended with exit code {code}; what is finished stays, and "
                f"the same call goes on from there",
                file=sys.stderr,
            )
            sys.exit(code)

    def prepare(self) -> None:
        """Convert the data, and plan where the plan is to be changed, unless that is done; a study does the rest."""
        if not self.is_converted:
            source = self.args.source or ROOT.parent / "shared" / "data" / self.args.data
            if not source.is_dir():
                raise UserError(f"there is no folder {source}: name the data with --source")
            if not self.args.dry_run:
                for name in ("raw", "preprocessed", "results"):
                    (self.folder / name).mkdir(parents=True, exist_ok=True)
            self.run("python", "-m", self.data.converter, str(source), "-d", self.data.number)
        if self.args.narrow > 1 and not self.configurations:
            plan = ["nnUNetv2_plan_and_preprocess", "-d", self.data.number, "-c", self.data.configuration]
            # The planner takes the variable for a number of threads, and torch refuses 0.
            self.run(*plan, "-np", "2", "-npfp", "2", "--verify_dataset_integrity", nnUNet_n_proc_DA="2")
        if self.args.narrow > 1 and not self.args.dry_run:
            self.narrow()

    def narrow(self) -> None:
        """Add a configuration with fewer channels to the plans, in nnU-Net's own format, for its network and ours."""
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

    def study(self, table: str, rows: Sequence[Row]) -> dict[str, Any]:
        """Give a table as ``logvmamba study`` understands it."""
        args = self.args
        families = list(dict.fromkeys(row.family for row in rows))
        configurations = {self._named(row): self._derived(row) for row in rows}
        differing = len(families) > 1 or len(rows) == 1, len(configurations) > 1
        names = {
            " ".join(word for word, differs in zip((row.family, self._named(row)), differing) if differs): row.name
            for row in rows
        }
        holdout = f"_holdout_{_short(args.holdout)}" if args.holdout else ""
        part = f"_part_{_short(sorted(row.name for row in rows))}" if args.rows else ""
        found: dict[str, Any] = {
            "name": f"{table}_{self.budget}{holdout}{part}",
            "dataset": int(self.data.number),
            "trainers": [f"nnUNetTrainer{family}" for family in families],
            "seeds": args.seeds,
            "folds": args.folds,
            "configurations": list(configurations),
            "device": args.device,
            "derive": configurations,
            "compare": {"names": names},
        }
        if args.holdout:
            found["predict"] = dict(zip(("images", "references"), map(str, args.holdout)))
        if args.cluster:
            found["cluster"] = read_toml(args.cluster)["cluster"]
        return found

    def _named(self, row: Row) -> str:
        return f"{row.configuration}_{self.budget}"

    def _derived(self, row: Row) -> dict[str, Any]:
        args = self.args
        schedule: dict[str, Any] = {
            "num_epochs": args.epochs,
            "num_iterations_per_epoch": args.iterations,
            "num_val_iterations_per_epoch": max(1, args.iterations // 10),
        }
        schedule |= {"mirroring": False} if args.no_mirroring else {}
        network = {"set": row.knobs} if row.knobs else {"keep_network": True}
        patch_size = list(row.patch_size or self.data.patch_size)
        sizes = {"batch_size": self.data.batch_size, "patch_size": patch_size}
        return {"from": self.planned, **sizes, **network, "train": schedule}

    def make(self, table: str, rows: Sequence[Row]) -> None:
        """Train what is missing and make the table."""
        study = self.study(table, rows)
        text = "\n".join(toml(study)) + "\n"
        on = ["--on", self.args.on] if self.args.on != "local" else []
        models = {
            f"nnUNetTrainer{row.family}_seed{seed}__{PLANS}__{self._named(row)}"
            for row in rows
            for seed in self.args.seeds
        }
        file = self.folder / "studies" / f"{study['name']}.toml"
        if not self.args.dry_run:
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
            with kept_in(self.args.keep, self.folder / "results", models) as keep:
                self.run("logvmamba", "study", "run", str(file), *on, meanwhile=keep)
            return
        print(f"\n# {file}\n{text}")
        self.run("logvmamba", "study", "run", str(file), *on)
        if self.is_ready:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder, file.name)
                copy.write_text(text)
                self.run("logvmamba", "study", "run", str(copy), *on, "--dry-run", dry=False)


@contextmanager
def kept_in(file: Path | None, results: Path, models: Container[str]) -> Iterator[Callable[[], None] | None]:
    """Take trainings from a file before, and write into it those that have ended, however that ends; None: neither.

    Gives what writes those that have ended by then.
    """
    if file is None:
        yield None
        return
    print(f"\ntables: {len(kept.restore(file, results, models))} training(s) taken from {file}", flush=True)
    added = 0

    def keep() -> None:
        nonlocal added
        added += len(kept.keep(file, results, models))

    try:
        yield keep
    finally:
        keep()
        print(f"\ntables: {added} training(s) added to {file}", flush=True)


def _ended(process: subprocess.Popen, meanwhile: Callable[[], object] | None) -> int:
    while meanwhile:
        try:
            return process.wait(timeout=MEANWHILE)
        except subprocess.TimeoutExpired:
            meanwhile()
    return process.wait()


def _resolved(word: str) -> Path:
    """Give a path that a command means which runs elsewhere."""
    return Path(word).resolve()


def _short(words: Sequence[object]) -> str:
    """What tells a study of some rows, or with some held-out cases, from others."""
    return hashlib.sha256(repr(list(map(str, words))).encode()).hexdigest()[:8]


def toml(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Give the lines of a TOML file; a value that is no table is written as in JSON."""
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if values and path:
        yield f"\n[{'.'.join(map(_key, path))}]"
    for key, value in values.items():
        yield f"{_key(key)} = {json.dumps(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from toml(value, (*path, key))


def _key(word: str) -> str:
    return word if re.fullmatch(r"[\w-]+", word, re.ASCII) else json.dumps(word)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("tables", nargs="+", metavar="TABLE", help=f"{', '.join(TABLES)}, 6, 7, 8 or all")
    parser.add_argument("--data", choices=tuple(DATA), default="hippocampus", help="default: %(default)s")
    parser.add_argument(
        "--source", type=_resolved, help="folder of the data, until they are converted; default: ../shared/data/NAME"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".tables", help="everything goes below it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--folds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--epochs", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--iterations", type=int, default=25, help="per epoch, default: %(default)s")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="names of those to train and compare; default: all")
    parser.add_argument(
        "--narrow", type=int, default=1, metavar="N", help="divide the channels of every stage by N; default: 1"
    )
    parser.add_argument("--patch-size", type=int, nargs="+", metavar="N", help="in voxels; not for input")
    parser.add_argument(
        "--no-mirroring", action="store_true", help="neither training nor validation mirrors: 4 or 8 times faster there"
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="default: %(default)s")
    parser.add_argument(
        "--holdout",
        nargs=2,
        type=_resolved,
        metavar=("IMAGES", "REFERENCES"),
        help="folders of cases to predict and score as well",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE.json",
        help="trainings in this file are not run again; those that end are added, without weights and segmentations",
    )
    parser.add_argument("--on", choices=("local", "slurm"), default="local", help="default: %(default)s")
    parser.add_argument("--cluster", type=Path, metavar="FILE.toml", help="file with a table [cluster], for --on slurm")
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
    if args.on == "slurm" and len(args.tables) > 1:
        parser.error("--on slurm takes one table at a time: what two of them share would be trained twice at once")
    if args.keep and args.holdout:
        parser.error("--keep has no weights, which --holdout predicts with: take one of them")
    if args.keep and args.on == "slurm":
        parser.error("--keep waits for trainings to end, --on slurm does not: take one of them")
    if args.keep and not args.keep.resolve().parent.is_dir():
        parser.error(f"there is no folder {args.keep.resolve().parent}: make it, or name another file with --keep")
    try:
        if args.keep:
            kept.read(args.keep)
        if args.cluster and "cluster" not in read_toml(args.cluster):
            parser.error(f"{args.cluster} has no table [cluster]")
        read_cluster(args.cluster)
    except UserError as error:
        parser.error(str(error))
    for folder in args.holdout or ():
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}: --holdout takes those of images and of their references")
    if args.patch_size and "input" in args.tables:
        parser.error("--patch-size is none of the table input, which has patch sizes of its own")
    if args.patch_size and (len(args.patch_size) != axes or min(args.patch_size) < 1):
        parser.error(f"--patch-size takes {axes} numbers from 1 on for {args.data}")
    converter = ROOT / f"{DATA[args.data].converter.replace('.', '/')}.py"
    if not converter.is_file():
        parser.error(f"--data {args.data} needs {converter.relative_to(ROOT)}, which this checkout does not have")
    return args


def refuse_more_than_asked(rows: Sequence[Row]) -> None:
    """Refuse rows that are not all trainers on all configurations of theirs, since a study trains these.

    Raises:
        UserError: If there are others.
    """
    families, configurations = ({getattr(row, name) for row in rows} for name in ("family", "configuration"))
    if len(rows) != len(families) * len(configurations):
        raise UserError(
            f"these rows have {len(families)} trainers and {len(configurations)} configurations, and every trainer "
            "would be trained on every configuration: name the other rows as well, or make a call for each trainer"
        )


def main() -> int:
    """Prepare, train what is missing, compare."""
    args = _arguments()
    data = DATA[args.data]
    data = replace(data, patch_size=tuple(args.patch_size or data.patch_size))
    tables = {table: chosen(rows_of(table, data), args.rows) for table in args.tables}
    workplace = Workplace(args, data)
    try:
        for rows in tables.values():
            refuse_more_than_asked(rows)
        with unwinding():
            workplace.prepare()
            for table, rows in tables.items():
                workplace.make(table, rows)
    except KeyboardInterrupt:
        print("tables: interrupted; what is finished stays, and the same call goes on from there", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"tables: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
