"""``logvmamba plan``: nnU-Net's planning for a network of ours and a card of a given size."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import add_assignments, assignments, at_least, examples
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.networks import catalogue

if TYPE_CHECKING:
    from nnunet_logvmamba.plugin.plans.planner import LoGVMambaPlanner


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``plan`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "plan",
        help="plan a data set for a network of ours and the memory of your GPU",
        description="Run nnU-Net's planning with a network of ours and what a training step of it needs in memory, so "
        "that patch and batch fill a card of the given size. Writes plans of their own for nnU-Net's commands (-p). "
        "Nothing is computed, and no GPU is needed.",
        **examples(
            "how-to/gpu-memory.md",
            "logvmamba plan -d 501 --gpu-memory 16",
            "logvmamba plan -d 501 --gpu-memory 8 --set checkpointing=true",
        ),
    )
    parser.add_argument(
        "-d", "--dataset", required=True, metavar="ID", help="number or name of a data set in nnUNet_raw"
    )
    parser.add_argument(
        "--gpu-memory",
        required=True,
        type=at_least(2),
        metavar="GIB",
        help="of the card that will train, as nvidia-smi shows it, e.g. 16",
    )
    parser.add_argument(
        "--network",
        choices=tuple(catalogue.NAMES),
        default=catalogue.DEFAULT.name,
        metavar="NETWORK",
        help="default: %(default)s; there are " + ", ".join(catalogue.NAMES),
    )
    add_assignments(
        parser,
        "--set",
        "knobs",
        "KNOB",
        "argument of the network, e.g. checkpointing=true family=no_ssm",
    )
    parser.add_argument("--name", metavar="PLANS", help="of the plans (default: nnUNetLoGVMambaPlans_16G and the like)")
    parser.add_argument("--overwrite", action="store_true", help="replace plans of this name")


def run(args: argparse.Namespace) -> int:
    """Write the plans, and say what fits and how to train.

    Raises:
        UserError: If something does not fit; no plans are written then.
    """
    from nnunet_logvmamba.plugin import first_run
    from nnunet_logvmamba.plugin.plans import check_name

    row, knobs = catalogue.row(args.network), assignments("--set", args.knobs)
    if row.obstacle is not None:
        raise UserError(row.obstacle)
    name = args.name or f"nnUNet{row.trainer}Plans_{args.gpu_memory:g}G"
    check_name(name, "plans")
    if name == first_run.PLANS:
        raise UserError(f"{name} are nnU-Net's own, to which results of others are compared: choose another --name")
    raw, preprocessed, _ = first_run.nnunet_folders()
    dataset = first_run.find_dataset(args.dataset, raw)
    file = preprocessed / dataset / f"{name}.json"
    if file.exists() and not args.overwrite:
        raise UserError(f"{file} exists already: choose another --name, or replace it with --overwrite")
    first_run.read_raw(raw / dataset)
    from nnunet_logvmamba.cores import usable_cores
    from nnunet_logvmamba.plugin.plans import planner

    if not (preprocessed / dataset / "dataset_fingerprint.json").is_file():
        terminal.show("no fingerprint yet: nnU-Net reads every case once")
        sys.stdout.flush()
    made = planner.plan(dataset, args.gpu_memory, name, row, knobs, processes=usable_cores())
    terminal.show(f"{file}: wrote {', '.join(made.memory)} for {row.name} on a card of {args.gpu_memory:g} GiB\n")
    print(_table(made))
    terminal.show(_legend(made))
    _show_commands(made, preprocessed / dataset, row.trainer)
    return 0


def _table(made: LoGVMambaPlanner) -> str:
    from nnunet_logvmamba.evaluation.layout import in_columns
    from nnunet_logvmamba.networks.costs import gib, times

    rows: list[Sequence[str]] = [("", "patch", "batch", "step, GiB", "weights, means", "kept", "passing")]
    for name, memory in made.memory.items():
        configuration = made.configuration(name)
        sizes = (memory.peak, memory.weights + memory.optimizer, memory.kept, memory.passing)
        rows.append((name, times(configuration.patch_size), str(configuration.batch_size), *map(gib, sizes)))
    return in_columns(rows, right=range(2, 7), width=terminal.width())


def _legend(made: LoGVMambaPlanner) -> str:
    from nnunet_logvmamba.networks.costs import gib
    from nnunet_logvmamba.plugin.memory import ERROR

    lines = [
        "",
        "step     the most that a training step is estimated to hold, in mixed precision and without torch.compile",
        "kept     what the forward pass keeps for the backward pass",
        "passing  gradients, what is computed again, and what the scan needs for itself",
        "",
        (
            f"A step may be estimated at {gib(made.budget)} GiB here: 1 GiB of the card is CUDA's own, and the "
            f"estimate may be {ERROR:.0%} too low."
        ),
    ]
    beyond = [name for name, memory in made.memory.items() if memory.peak > made.budget]
    if beyond:
        lines.append(
            f"ATTENTION: {' and '.join(beyond)} takes more, since nnU-Net gives it the patch of another one: to train "
            "it, plan with a smaller --gpu-memory."
        )
    return "\n".join(lines)


def _show_commands(made: LoGVMambaPlanner, folder: Path, trainer: str) -> None:
    from nnunet_logvmamba.plugin.plans import first_fold
    from nnunet_logvmamba.plugin.preprocessed_cases import has_cases, preprocessing

    number = made.dataset_name[len("Dataset") :].partition("_")[0]
    plans = made.plans_identifier
    missing = [
        name
        for name in made.memory
        if not has_cases(folder / made.configuration(name).data_identifier) and "cascade" not in name
    ]
    print()
    if missing:
        terminal.show_command(preprocessing(made.dataset_name, plans, missing))
    for name in made.memory:
        fold = first_fold(made.configuration(name), made.dataset_json, folder)
        terminal.show_command(f"nnUNetv2_train {int(number)} {name} {fold} -tr nnUNetTrainer{trainer} -p {plans}")
