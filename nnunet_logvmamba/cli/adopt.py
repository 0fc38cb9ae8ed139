"""``logvmamba adopt``: a model that was trained in a fork, as a model of ours."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import examples
from nnunet_logvmamba.networks import catalogue

if TYPE_CHECKING:
    from nnunet_logvmamba.plugin.adopt import Adopted


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``adopt`` to the sub-commands of ``logvmamba``."""
    bot, seg = catalogue.row("UMambaBot"), catalogue.row("SegMamba")
    parser = subparsers.add_parser(
        "adopt",
        help=f"bring along a model of U-Mamba, Swin-UMamba, {seg.name} or LoG-VMamba's authors",
        description="Write a results folder of nnU-Net's with the weights of a model that was trained in another fork "
        "or outside of nnU-Net, and say what was taken and what was left. Stock nnUNetv2_predict reads it, and our "
        "trainers go on with it. The source is read as data, nothing in it is run, and it is not changed.",
        **examples(
            "how-to/from-a-fork.md",
            f"logvmamba adopt nnUNetTrainer{bot.trainer}__nnUNetPlans__3d_fullres -d 701",
            f"logvmamba adopt {seg.name.lower()}.pt -d 501 -c 3d_fullres",
        ),
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=Path,
        help="results folder TRAINER__PLANS__CONFIGURATION of a fork, a fold of it, or a file of weights",
    )
    parser.add_argument(
        "-d",
        "--dataset",
        required=True,
        metavar="DATASET",
        help="number or full name of the data set that it is a model of",
    )
    parser.add_argument(
        "-c",
        "--configuration",
        metavar="NAME",
        help="configuration it was trained with, where the file does not say (default: 3d_fullres, or 2d for a 2D "
        "network)",
    )
    parser.add_argument(
        "-p",
        "--plans",
        metavar="NAME",
        default="nnUNetPlans",
        help="plans of the data set, for a file that brings none (default: %(default)s)",
    )
    parser.add_argument(
        "--fold", metavar="K", help="fold to take from a folder (default: all that it has), or to make of a file"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        default="checkpoint_final.pth",
        help="file in the folder of a fold (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace folds that were adopted before")


def run(args: argparse.Namespace) -> int:
    """Write the folder and print what was taken and left.

    Raises:
        UserError: If something does not fit; nothing is written then.
    """
    from nnunet_logvmamba.plugin.adoptable import find_checkpoints

    find_checkpoints(args.source, args.dataset, args.checkpoint, args.fold)
    from nnunet_logvmamba.plugin.adopt import adopt  # late, because it imports torch

    adopted = adopt(
        args.source,
        args.dataset,
        configuration=args.configuration,
        plans_name=args.plans,
        fold=args.fold,
        checkpoint=args.checkpoint,
        overwrite=args.overwrite,
    )
    tables: dict[str, list[Adopted]] = {}
    for one in adopted:
        tables.setdefault(_table(one), []).append(one)
    for table, those in tables.items():
        terminal.show(f"{those[0].origin.title}, {_folds(one.target.parent.name[5:] for one in those)}")
        print(f"\n{table}\n")
        for note in those[0].notes:
            terminal.show(f"left: {note}")
    print()
    for one in adopted:
        terminal.show(f"{one.target}: {one.epochs} epoch(s)")
    terminal.show(f"predict with nnUNetv2_predict_from_modelfolder -m {adopted[0].target.parent.parent}")
    return 0


def _folds(names: Iterable[str]) -> str:
    names = list(names)
    return f"fold{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _table(adopted: Adopted) -> str:
    from nnunet_logvmamba.evaluation.layout import in_columns

    taken = {**adopted.taken, "in all": [size for sizes in adopted.taken.values() for size in sizes]}
    rows = [["", "what", "tensors", "parameters"]]
    for word, parts in (("taken", taken), ("left", adopted.left)):
        rows += [[word, what, f"{len(sizes):,}", f"{sum(sizes):,}"] for what, sizes in parts.items()]
    return in_columns(rows, right={2, 3}, width=terminal.width())
