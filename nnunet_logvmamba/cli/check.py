"""``logvmamba check``: will nnU-Net make sense of these images, of this model, of this data set?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import at_least, examples
from nnunet_logvmamba.errors import UserError

MOST_WARNINGS = 20


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``check`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "check",
        help="say whether images, a trained model or a raw data set are whole, before predicting or training",
        description="Read what nnU-Net would read, and say what is wrong with it. Images and a model: names, files "
        "per case, channels, and within a case shape and spacing; voxels that are NaN or infinite, images that are the "
        "same everywhere or far outside of what was trained on. A model: whether its files are whole, "
        "its weights finite, and whether it holds anything else than weights and settings. A raw data set: its images, "
        "and labels that dataset.json does not name. Of a model alone, also which files tell names of cases or "
        "absolute paths, to be known before it is shared. Nothing is written, and nothing in a model is run.",
        **examples(
            "how-to/predict.md",
            "logvmamba check imagesTs nnUNetTrainerLoGVMamba__nnUNetPlans__3d_fullres",
            "logvmamba check model.zip",
            "logvmamba check nnUNet_raw/Dataset501_BraTS2020",
        ),
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        type=Path,
        help="images, as for nnUNetv2_predict -i, with the model behind them; or alone: a trained model "
        "(…/TRAINER__PLANS__CONFIGURATION, its exported zip file, or a checkpoint) or a raw data set "
        "(…/Dataset123_Name)",
    )
    parser.add_argument("model", metavar="MODEL", type=Path, nargs="?", help="trained model that is to predict them")
    parser.add_argument("--jobs", type=at_least(1, int), metavar="N", help="processes (default: one per core)")


def run(args: argparse.Namespace) -> int:
    """Say that all is ready.

    Raises:
        UserError: If it is not.
    """
    from nnunet_logvmamba.cores import usable_cores

    processes = args.jobs or usable_cores()
    if args.model is not None:
        said = _check_images(args.folder, args.model, processes)
    elif (args.folder / "dataset.json").is_file() and not (args.folder / "plans.json").is_file():
        said = _check_dataset(args.folder, processes)
    else:
        said = _check_model(args.folder)
    terminal.show(said)
    return 0


def _check_images(images: Path, folder: Path, processes: int) -> str:
    from nnunet_logvmamba.plugin.acceptance import check_folder, check_images, read_model
    from nnunet_logvmamba.plugin.model_check import check_model

    if (images / "plans.json").is_file() and not (folder / "plans.json").is_file():
        raise UserError(f"{images} holds a model: the folder of images comes first, then that of the model")
    check_folder(images)
    model = read_model(folder)
    check_model(folder, classes=False)
    cases, others, odd = check_images(images, model, processes=processes)
    _warn(odd)
    ready = f"ready: {cases} case(s), {len(model.channels)} channel(s) each"
    if others:
        ready += f"; {len(others)} other image(s) would be passed over, for they do not end in {model.ending}, the "
        ready += f"first is {others[0].name}"
    return ready


def _check_model(path: Path) -> str:
    from nnunet_logvmamba.plugin.acceptance import read_model
    from nnunet_logvmamba.plugin.disclosure import disclosures
    from nnunet_logvmamba.plugin.model_check import check_model

    if (path / "plans.json").is_file():
        read_model(path)
    count = check_model(path)
    if not count:
        raise UserError(
            f"{path} holds no checkpoint: name a trained model, its zip file, or a raw data set; or, to check a folder "
            "of images, the model that is to predict them behind it"
        )
    said = f"{path}: {count} checkpoint(s), whole, with finite weights, and nothing in them but weights and settings"
    told = disclosures(path)
    if told:
        said += "\nnote: before this model is shared, look at what in it tells of its data and of this machine:"
    return "\n".join([said, *(f"  {one.said}" for one in told)])


def _check_dataset(folder: Path, processes: int) -> str:
    from nnunet_logvmamba.plugin.raw_dataset import check_dataset

    cases, odd = check_dataset(folder, processes=processes)
    _warn(odd)
    return f"ready: {cases} labelled case(s)"


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences[:MOST_WARNINGS]:
        print(f"ATTENTION: {sentence}.", file=sys.stderr)
    if len(sentences) > MOST_WARNINGS:
        print(f"ATTENTION: {len(sentences) - MOST_WARNINGS} more of this kind.", file=sys.stderr)
