"""``logvmamba check``: will a trained model accept these images, and is it whole and nothing but a model?"""

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
        help="say whether a trained model is whole and accepts a folder of images, before predicting",
        description="Read all images of a folder as nnU-Net would and compare them with what a trained model takes: "
        "names, files per case, channels, and within a case shape and spacing. Before that, or alone if no images are "
        "named, read the model: whether its files are whole, and hold nothing but weights and settings. Nothing is "
        "written, and nothing in the model is run.",
        **examples(
            "how-to/predict.md",
            "logvmamba check imagesTs nnUNetTrainerLoGVMamba__nnUNetPlans__3d_fullres",
            "logvmamba check model.zip",
        ),
    )
    parser.add_argument(
        "images", metavar="IMAGES", type=Path, nargs="?", help="folder of images, as for nnUNetv2_predict -i"
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        help="folder of the trained model: …/TRAINER__PLANS__CONFIGURATION; without images also an exported zip "
        "file or a checkpoint",
    )
    parser.add_argument("--jobs", type=at_least(1, int), metavar="N", help="processes (default: one per core)")


def run(args: argparse.Namespace) -> int:
    """Say that the model is, and the images are, ready.

    Raises:
        UserError: If nnU-Net cannot predict them, or the model is damaged or more than a model.
    """
    from nnunet_logvmamba.plugin.model_check import check_model

    if args.images is None:
        count = check_model(args.model)
        if not count:
            raise UserError(f"{args.model} holds no checkpoint: name the folder of a trained model, or its zip file")
        terminal.show(f"{args.model}: {count} checkpoint(s), whole, with nothing in them but weights and settings")
        return 0
    from nnunet_logvmamba.evaluation.parallel import default_processes
    from nnunet_logvmamba.plugin.acceptance import check_images, read_model

    if (args.images / "plans.json").is_file() and not (args.model / "plans.json").is_file():
        raise UserError(f"{args.images} holds a model: the folder of images comes first, then that of the model")
    model = read_model(args.model)
    check_model(args.model, classes=False)
    cases, others = check_images(args.images, model, processes=args.jobs or default_processes())
    ready = f"ready: {cases} case(s), {len(model.channels)} channel(s) each"
    if others:
        ready += f"; {len(others)} other image(s) would be passed over, for they do not end in {model.ending}, the "
        ready += f"first is {others[0].name}"
    terminal.show(ready)
    return 0
