"""``logvmamba check``: will a trained model accept these images?"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import at_least, examples
from nnunet_logvmamba.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``check`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "check",
        help="say whether a trained model accepts a folder of images, before predicting",
        description="Read all images of a folder as nnU-Net would and compare them with what a trained model takes: "
        "names, files per case, channels, and within a case shape and spacing. Nothing is written.",
        **examples("how-to/predict.md", "logvmamba check imagesTs nnUNetTrainerLoGVMamba__nnUNetPlans__3d_fullres"),
    )
    parser.add_argument("images", metavar="IMAGES", type=Path, help="folder of images, as for nnUNetv2_predict -i")
    parser.add_argument(
        "model", metavar="MODEL", type=Path, help="folder of the trained model: …/TRAINER__PLANS__CONFIGURATION"
    )
    parser.add_argument("--jobs", type=at_least(1, int), metavar="N", help="processes (default: one per core)")


def run(args: argparse.Namespace) -> int:
    """Say that the images are ready.

    Raises:
        UserError: If nnU-Net cannot predict them.
    """
    from nnunet_logvmamba.evaluation.parallel import default_processes
    from nnunet_logvmamba.plugin.acceptance import check_images, read_model

    if (args.images / "plans.json").is_file() and not (args.model / "plans.json").is_file():
        raise UserError(f"{args.images} holds a model: the folder of images comes first, then that of the model")
    model = read_model(args.model)
    cases, others = check_images(args.images, model, processes=args.jobs or default_processes())
    ready = f"ready: {cases} case(s), {len(model.channels)} channel(s) each"
    if others:
        ready += f"; {len(others)} other image(s) would be passed over, for they do not end in {model.ending}, the "
        ready += f"first is {others[0].name}"
    terminal.show(ready)
    return 0
