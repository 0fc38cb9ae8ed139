"""``logvmamba compare``: the tables of a paper from results folders, with tests that say what is noise."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import examples
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.metrics import INSTANCE_METRICS, RANKED, titles
from nnunet_logvmamba.files import staged_files

FORMATS = ("markdown", "latex", "csv")
FILES = {"markdown": "comparison.md", "latex": "comparison.tex"}
OWN = (*FILES.values(), "means.csv", "pairs.csv", "costs.csv")
"""All that may be written; older ones leave, so that no table stands beside those of another comparison."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``compare`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "compare",
        help="tables with spread and paired tests from nnU-Net's results folders",
        description="Compare trained methods (trainers, plans, configurations, each with its folds and seeds) case by "
        "case. What cannot be compared is refused: other cases, splits, references, spacing, policies or settings.",
        **examples(
            "how-to/compare.md",
            "logvmamba compare nnUNet_results/Dataset004_Hippocampus",
            "logvmamba compare nnUNet_results/Dataset004_Hippocampus --output tables",
        ),
    )
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULTS",
        help="folder of results, of a data set or of a model TRAINER__PLANS__CONFIGURATION, or of scored predictions "
        "of held-out cases; rows keep this order",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        help=f"out of {titles(name for name in RANKED if name not in INSTANCE_METRICS)} and, for "
        f"cells, {titles(INSTANCE_METRICS)}, in any capitalisation; default: Dice, and NSD, HD95, F1 and object_iou "
        "where every run has them",
    )
    parser.add_argument("--folds", nargs="+", metavar="FOLD", help="default: all that are finished")
    parser.add_argument("--against", metavar="METHOD", help="test only pairs with this method; default: all pairs")
    parser.add_argument(
        "--names", nargs="+", metavar="OLD=NEW", help="other names for rows, e.g. 'window_1=R = 1'; before --against"
    )
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS, metavar="FORMAT", help="markdown, latex, csv; default: see --output"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write comparison.md, comparison.tex, means.csv, pairs.csv and costs.csv there (with --format, those "
        "alone); without it, tables are printed, as Markdown into a pipe or file (with --format, that)",
    )


def run(args: argparse.Namespace) -> int:
    """Print or write the tables.

    Raises:
        UserError: If the runs cannot be read or compared; nothing is written then.
    """
    from nnunet_logvmamba.results import (
        comparison,
        tables,  # late, because they import numpy and SciPy
    )

    renamed = {}
    for word in args.names or ():
        old, sign, new = word.partition("=")
        if not (old and sign and new):
            raise UserError(f"--names takes OLD=NEW, not '{word}'")
        renamed[old] = new
    found = comparison.compare(
        args.results, metrics=args.metrics, folds=args.folds, against=args.against, renamed=renamed
    )
    if args.format is None and args.output is None and terminal.width() is not None:
        terminal.show(tables.as_text(found, terminal.width()))
        return 0
    formats = args.format or (FORMATS if args.output else ("markdown",))
    texts: dict[str, str] = {}
    for name in formats:
        if name == "csv":
            texts.update(tables.as_csv(found))
        else:
            texts[FILES[name]] = {"markdown": tables.as_markdown, "latex": tables.as_latex}[name](found)
    if args.output is None:
        print("\n".join(texts.values()), end="")
        return 0
    with staged_files(args.output, overwrite=True, last=OWN) as staged:
        for name, text in texts.items():
            (staged / name).write_text(text, encoding="utf-8")
    for metric in found.metrics:
        terminal.show(comparison.conclusion(found, metric))
    terminal.show(f"written to {args.output}: {', '.join(texts)}")
    return 0
