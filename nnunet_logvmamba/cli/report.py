"""``logvmamba report``: one HTML page about one training."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import examples
from nnunet_logvmamba.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``report`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "report",
        help="one HTML page about a training: curves, scores, worst and best cases, commands, configuration",
        description="Write one self-contained HTML page about a fold. It loads nothing, so it can be kept and "
        "moved. It shows images and names of the cases: send it only where those may go.",
        **examples("how-to/report.md", "logvmamba report nnUNetTrainerLoGVMamba__nnUNetPlans__3d_fullres/fold_0"),
    )
    parser.add_argument(
        "run_folder",
        type=Path,
        metavar="RUN",
        help="folder of a fold: …/TRAINER__PLANS__CONFIGURATION/fold_0; of one above, with several, they are listed; "
        "with one, it is that",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in RUN")
    parser.add_argument("--cases", type=int, default=3, metavar="N", help="worst and best cases (default: %(default)s)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="images of the cases; default: those in nnUNet_raw")
    parser.add_argument(
        "--references", type=Path, metavar="DIR", help="their references; default: those that nnU-Net scored against"
    )
    parser.add_argument("--channel", type=int, default=0, metavar="K", help="channel to show (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="show the page in a browser")


def run(args: argparse.Namespace) -> int:
    """Write the page and say where, or list the runs to choose from.

    Raises:
        UserError: If anything cannot be read, and nothing is written then; or if no browser shows the page.
    """
    if args.cases < 0 or args.channel < 0:
        raise UserError("--cases and --channel take whole numbers from 0 on")
    for folder in (args.images, args.references):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder} is not a folder")
    if args.output is not None and args.output.suffix.lower() not in ("", ".html", ".htm"):
        raise UserError(f"the report is an HTML page: name a file that ends in .html, not {args.output}")
    if args.run_folder.is_file():
        raise UserError(
            f"{args.run_folder} is a file, and a report is about a folder: name TRAINER__PLANS__CONFIGURATION/fold_0 "
            "or the like"
        )
    folds = _folds(args.run_folder)
    if len(folds) > 1:
        if args.output is not None or args.open:
            raise UserError(
                f"{args.run_folder} holds {len(folds)} runs, and a report is about one: name its folder, out of those "
                f"that logvmamba report {args.run_folder} lists"
            )
        from nnunet_logvmamba.results.runs import is_finished

        terminal.show(f"{len(folds)} runs, each with a report of its own: logvmamba report RUN")
        for fold in folds:
            terminal.show(f"{fold}{'' if is_finished(fold) else '  (no final validation yet)'}")
        return 0
    (fold,) = folds
    target = args.output or fold / "report.html"
    if target.is_dir():
        raise UserError(f"{target} is a folder: name a file with --output")
    if args.output is not None and not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent} for {target.name}: make it, or name another --output")

    from nnunet_logvmamba.results.runs import read_fold

    read_fold(fold)
    # Late, for torch and Matplotlib come with them.
    from nnunet_logvmamba.files import replace_text
    from nnunet_logvmamba.plugin.fold_reader import FoldReader
    from nnunet_logvmamba.results.page.page import Sources, build

    notes: list[str] = []
    sources = Sources(args.images, args.references, args.channel)
    page = build(fold, FoldReader, num_cases=args.cases, sources=sources, say=notes.append)
    replace_text(target, page)
    terminal.show(f"{target}: {len(page) / 1e6:.1f} MB")
    for note in notes:
        terminal.show(f"note: {note}")
    if args.open:
        _show(target)
    return 0


def _folds(path: Path) -> list[Path]:
    """The folders of the runs that a path leads to; itself where there is none, for the report to say what it lacks."""
    from nnunet_logvmamba.results.runs import absolute, find_folds

    if not path.is_dir():
        return [path]
    if path.name in ("", ".."):  # the current folder or one above, whose names are needed
        path = path.resolve()
    try:
        below = find_folds([path])
    except UserError:
        return [path]
    return [path / fold.relative_to(absolute(path)) for fold in below]


def _show(page: Path) -> None:
    import webbrowser

    try:
        shown = webbrowser.open(page.resolve().as_uri())
    except webbrowser.Error:
        shown = False
    if not shown:
        raise UserError(f"there is no browser to show {page}: open it by hand, or copy it to a computer with a browser")
