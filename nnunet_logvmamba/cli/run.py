"""``logvmamba run``: a whole first run on a data set, by the stock commands, which it prints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import examples
from nnunet_logvmamba.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``run`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "run",
        help="a whole first run on your data set: preprocess, train, predict, score, report",
        description="Run nnU-Net's own commands on a data set in nnUNet_raw, one after the other. Each is printed "
        "before it runs, so that you can repeat it. What is finished is skipped: the same command continues a run "
        "that was interrupted.",
        **examples(
            "getting-started.md",
            "logvmamba run 4 3d_fullres --quick --predict NEW_SCANS PREDICTIONS",
            "logvmamba run 4 3d_fullres --fold 0 1 2 3 4 --dry-run",
        ),
    )
    parser.add_argument("dataset", metavar="DATASET", help="number or name of a data set in nnUNet_raw, e.g. 4")
    parser.add_argument(
        "configuration", metavar="CONFIGURATION", help="2d, 3d_fullres, 3d_lowres, or one that its plans have already"
    )
    parser.add_argument(
        "--trainer",
        nargs="+",
        default=["nnUNetTrainerLoGVMamba"],
        metavar="NAME",
        help="as for nnUNetv2_train -tr; two or more are compared (default: nnUNetTrainerLoGVMamba)",
    )
    parser.add_argument("--fold", nargs="+", default=["0"], metavar="K", help="folds to train, or all (default: 0)")
    parser.add_argument(
        "--predict",
        nargs=2,
        type=Path,
        metavar=("IMAGES", "OUT"),
        help="also predict the scans of a folder, named as nnU-Net wants them, into a new one",
    )
    parser.add_argument("--references", type=Path, metavar="DIR", help="true segmentations of IMAGES: score OUT, too")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="auto is cuda where there is such a GPU, else cpu (default: %(default)s)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="train 400 steps on small patches, to see everything work; this makes a configuration CONFIGURATION_quick",
    )
    parser.add_argument("--dry-run", action="store_true", help="check, and print the commands that are due")


def run(args: argparse.Namespace) -> int:
    """Check what can be checked, then run what is due.

    Raises:
        UserError: If something does not fit, and nothing was run then; or if a step fails, and none after it was run.
    """
    from nnunet_logvmamba.cli import doctor
    from nnunet_logvmamba.plugin import first_run  # late, because it imports NumPy

    if args.references is not None and args.predict is None:
        raise UserError("--references are of the scans to predict: name those with --predict")
    new = None if args.predict is None else first_run.NewScans(args.predict[0], args.predict[1], args.references)
    wanted = first_run.FirstRun(
        first_run.Request(
            dataset=args.dataset,
            configuration=args.configuration,
            trainers=tuple(dict.fromkeys(args.trainer)),
            folds=tuple(dict.fromkeys(args.fold)),
            device=args.device,
            quick=args.quick,
            new=new,
        )
    )
    if not args.dry_run:
        for folder in (wanted.preprocessed, wanted.results):
            folder.mkdir(parents=True, exist_ok=True)
        failure = doctor.first_obstacle(wanted.device)
        if failure is not None:
            raise UserError(f"training would fail: {failure.name}: {failure.text} (logvmamba doctor shows all)")
    _say(f"checked: {wanted.dataset}, {len(wanted.cases)} labelled case(s), device {wanted.device}")
    for attention in wanted.attentions():
        _say(attention)
    if wanted.new_cases:
        _say(f"checked: {wanted.new_cases} case(s) to predict")
    if wanted.device == "cpu" and not args.quick:
        for trainer, steps in wanted.steps_due().items():
            if steps >= first_run.MANY_STEPS:
                shorter = "" if "epoch" in trainer else "; --quick trains 400"  # epochs of a name go before those
                _say(f"note: {trainer} trains {steps:,} steps, far too many for a CPU{shorter}")
    first_run.run_steps(
        wanted.steps(dry_run=args.dry_run),
        wanted.logs,
        dry_run=args.dry_run,
        show=_say,
        show_command=terminal.show_command,
        shown=terminal.relayed(),
    )
    if not args.dry_run:
        _say("\ndone")
        for what, where in wanted.outcome():
            _say(f"  {what}: {where}")
        _say(f"  what the commands printed: {wanted.logs}")
    return 0


def _say(text: str) -> None:
    terminal.show(text)
    sys.stdout.flush()  # before the commands write to the same terminal
