"""``logvmamba export``: a trained network as one ONNX file."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import at_least, examples
from nnunet_logvmamba.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``export`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "export",
        help="write a trained network as an ONNX file, which runs without torch, nnU-Net and this package",
        description="Write the network of a trained fold as one ONNX file for one patch size and any batch size, with "
        "what it must be fed as metadata in the file, and compare it with ONNX Runtime.",
        **examples("how-to/export.md", "logvmamba export nnUNetTrainerLoGVMamba__nnUNetPlans__3d_fullres model.onnx"),
    )
    parser.add_argument(
        "run_folder", type=Path, metavar="RUN", help="folder of a fold, or of its model TRAINER__PLANS__CONFIGURATION"
    )
    parser.add_argument("target", type=Path, metavar="FILE", help="file to write, e.g. model.onnx")
    parser.add_argument("--fold", metavar="F", help="fold of the model, a number or all; needed if it has several")
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        default="checkpoint_final.pth",
        help="file in the folder of the fold (default: %(default)s)",
    )
    parser.add_argument(
        "--patch-size",
        type=at_least(1, int),
        nargs="+",
        metavar="N",
        help="voxels per axis that the file takes, in nnU-Net's order (default: those of the plans)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")


def run(args: argparse.Namespace) -> int:
    """Write the file and say how far ONNX Runtime is from torch.

    Raises:
        UserError: If anything is missing or does not fit; nothing is written then.
    """
    target = args.target
    if target.is_dir():
        raise UserError(f"{target} is a folder: name a file, such as {target / 'model.onnx'}")
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent} for {target.name}: make it, or name another file")
    if target.exists() and not args.overwrite:
        raise UserError(f"{target} exists: name another file, or add --overwrite")
    from nnunet_logvmamba.plugin import export

    export.check_packages()
    fold = export.find_fold(args.run_folder, args.fold)
    trained = export.read_network(fold, checkpoint_name=args.checkpoint, patch_size=args.patch_size)
    difference = export.write_onnx(trained, target)
    shape = " x ".join(map(str, trained.patch_size))
    size = f"{target.stat().st_size / 1e6:.1f} MB"
    terminal.show(f"{target}: {size}, {trained.channels} channel(s), patch {shape}, any batch")
    if difference is None:
        terminal.show("not compared, since onnxruntime is not installed: run python -m pip install onnxruntime")
    else:
        terminal.show(f"ONNX Runtime and torch differ by at most {difference:.1e} on a random patch")
    return 0
