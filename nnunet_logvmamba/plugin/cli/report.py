"""``logvmamba report``: one HTML page about one training."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_logvmamba.plugin.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``report`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "report",
        help="one HTML page about a training: curves, scores, worst and best cases, commands, configuration",
        description="Write one self-contained HTML page about a fold. It loads nothing, so it can be mailed and kept.",
    )
    parser.add_argument(
        "run_folder", type=Path, metavar="RUN", help="folder of a fold: …/TRAINER__PLANS__CONFIGURATION/fold_0"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in RUN")
    parser.add_argument("--cases", type=int, default=3, metavar="N", help="worst and best cases (default: %(default)s)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="images of the cases; default: those in nnUNet_raw")
    parser.add_argument(
        "--references", type=Path, metavar="DIR", help="their references; default: those that nnU-Net scored against"
    )
    parser.add_argument("--channel", type=int, default=0, metavar="K", help="channel to show (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page and say where.

    Raises:
        UserError: If anything cannot be read; nothing is written then.
    """
    from nnunet_logvmamba.plugin import report  # late, because it imports torch
    from nnunet_logvmamba.plugin.files import replace_text

    if args.cases < 0 or args.channel < 0:
        raise UserError("--cases and --channel take whole numbers from 0 on")
    for folder in (args.images, args.references):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder} is not a folder")
    target = args.output or args.run_folder / "report.html"
    if target.is_dir():
        raise UserError(f"{target} is a folder: name a file with --output")
    if args.output is not None and not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent} for {target.name}: make it, or name another --output")
    sources = report.Sources(args.images, args.references, args.channel)
    page = report.build(args.run_folder, num_cases=args.cases, sources=sources)
    replace_text(target, page)
    print(f"{target}: {len(page) / 1e6:.1f} MB")
    return 0
