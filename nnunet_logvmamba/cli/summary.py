"""``logvmamba summary``: a network stage by stage, with what it costs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import at_least, examples
from nnunet_logvmamba.errors import NotFiniteError, UserError
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.networks.costs import Summary, gib, summarize, times

if TYPE_CHECKING:
    import torch
    from torch import nn

BYTES = 4  # of a float32


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``summary`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "summary",
        help="show a network stage by stage: tokens, parameters, multiply-adds, memory",
        description="Show the network that a trainer builds from a plan, or a published one, stage by stage. Nothing "
        "is computed, so no memory is needed whatever the patch.",
        **examples(
            "reference/commands.md#logvmamba-summary",
            "logvmamba summary -d 4 -c 3d_fullres",
            "logvmamba summary --preset paper3d --patch-size 96 160 160",
        ),
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-d", "--dataset", metavar="ID", help="number or name of a data set that has been planned")
    source.add_argument("--preset", metavar="NAME", help=f"a published network, {' or '.join(catalogue.PRESETS)}")
    parser.add_argument("-c", "--configuration", default="3d_fullres", help="default: %(default)s")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="name of the plans (default: %(default)s)")
    parser.add_argument("-tr", "--trainer", default="nnUNetTrainerLoGVMamba", help="default: %(default)s")
    parser.add_argument(
        "--patch-size",
        type=at_least(1, int),
        nargs="+",
        metavar="N",
        help="voxels per axis, instead of those of the plans or the publication",
    )
    field = parser.add_argument_group("how far it sees", "the network is then run on the CPU, forwards and backwards")
    field.add_argument(
        "--receptive-field",
        type=Path,
        metavar="PNG",
        help="say and draw how much each voxel of the image weighs in the logits of the middle one",
    )
    field.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="a trained network's weights; default: those it starts with"
    )
    images = field.add_mutually_exclusive_group()
    images.add_argument(
        "--noise-images", type=at_least(1, int), default=4, metavar="N", help="average over so many; default: 4"
    )
    images.add_argument(
        "--cases", nargs="+", metavar="CASE", help="average over the middles of these preprocessed cases instead"
    )
    field.add_argument("--overwrite", action="store_true", help="replace the picture")


def run(args: argparse.Namespace) -> int:
    """Print the table.

    Raises:
        UserError: If the preset, data set, configuration or trainer does not exist, the network cannot be built or
            takes no such patch.
    """
    from nnunet_logvmamba.plugin.recipes import OPTIMIZERS

    _check_field(args)
    if args.preset is not None:
        network, channels, patch_size, batch_size = network_of_preset(args.preset)
        optimizer, title = "adam", f"preset {args.preset}"
    else:
        network, channels, patch_size, batch_size, optimizer = network_of_plans(args)
        title = f"{args.trainer}, {args.configuration} of {args.plans}, data set {args.dataset}"
    if args.patch_size is not None:
        if len(args.patch_size) != len(patch_size):
            raise UserError(
                f"--patch-size has {len(args.patch_size)} number(s) and this network {len(patch_size)} axes: give one "
                f"for each, as in --patch-size {' '.join(map(str, patch_size))}"
            )
        patch_size = args.patch_size
    try:
        summary = summarize(network, channels, patch_size, batch_size)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"a patch of {times(patch_size)} does not pass through the network: {reason}") from error
    lines = [f"{title}: {type(network).__name__}, {channels} input channels, patch {times(patch_size)}", ""]
    lines += [_table(summary, terminal.width()), "", *_legend(summary), ""]
    weights = OPTIMIZERS[optimizer].copies * BYTES * summary.parameters
    lines += [
        f"parameters    {summary.parameters:,}",
        f"multiply-adds {summary.multiply_adds / 1e9:.2f} GMAC in convolutions and matrix products, one patch forwards",
    ]
    if summary.state_updates:
        lines.append(f"scan          {summary.state_updates / 1e9:.3f} G state updates, not among the multiply-adds")
    lines.append(
        f"training      {gib(weights + summary.activation_bytes)} GiB estimated for batch {batch_size} in float32: "
        f"{gib(summary.activation_bytes)} kept for the backward pass (counted on a dry run) and {gib(weights)} for "
        f"weights, gradients and {optimizer}; workspaces come on top, and mixed precision about halves the first part"
    )
    terminal.show("\n".join(lines))
    if args.receptive_field is not None:
        import torch

        torch.manual_seed(0)  # so that a network at its start is the same whenever it is asked for
        found = network_of_preset(args.preset, "cpu") if args.preset is not None else network_of_plans(args, "cpu")
        terminal.show(f"\n{_field(args, found[0], channels, patch_size, title)}")
    return 0


def _check_field(args: argparse.Namespace) -> None:
    target = args.receptive_field
    if target is None:
        for name in ("checkpoint", "cases", "overwrite"):
            if getattr(args, name):
                raise UserError(f"--{name} is for --receptive-field: name the picture with it")
        return
    if args.cases is not None and args.preset is not None:
        raise UserError("--cases are those of a data set: name it with -d in place of --preset")
    if target.suffix.lower() != ".png":
        raise UserError(f"{target} does not end in .png: name a PNG picture")
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent} for {target.name}: make it, or name another file")
    if target.is_dir():
        raise UserError(f"{target} is a folder: name a file")
    if target.exists() and not args.overwrite:
        raise UserError(f"{target} exists: name another file, or add --overwrite")
    if args.checkpoint is not None and not args.checkpoint.is_file():
        raise UserError(f"there is no checkpoint {args.checkpoint}")


def _field(args: argparse.Namespace, network: nn.Module, channels: int, patch_size: Sequence[int], title: str) -> str:
    """Draw the effective receptive field, and say its radii."""
    import torch

    from nnunet_logvmamba.networks.receptive_field import SHARES, radii, receptive_field
    from nnunet_logvmamba.plugin.checkpoints import first_difference, read_checkpoint
    from nnunet_logvmamba.results.fields import draw

    if args.checkpoint is not None:
        content = read_checkpoint(args.checkpoint)
        weights = content.get("network_weights", content)  # of nnU-Net, or as torch saves them alone
        if not all(isinstance(value, torch.Tensor) for value in weights.values()):
            raise UserError(f"{args.checkpoint} holds neither weights alone nor nnU-Net's 'network_weights'")
        difference = first_difference(network, weights)
        if difference is not None:
            raise UserError(f"{args.checkpoint} holds another network than this one ({difference})")
        try:
            network.load_state_dict(weights)
        except NotFiniteError as error:
            raise UserError(f"{args.checkpoint}: {error}") from error
    if args.cases is not None:
        images, what = middles(args, channels, patch_size), f"{len(args.cases)} case(s)"
    else:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(args.noise_images, channels, *patch_size, generator=generator)
        what = f"{args.noise_images} image(s) of noise"
    try:
        field = receptive_field(network, images)
    except ValueError as error:
        raise UserError(f"{args.checkpoint or 'this network'}: {error}") from error
    draw({title: field}, args.receptive_field)
    said = [
        f"{share:.0%} of the field lies within {times(found)} voxels of the middle, axis by axis"
        for share, found in zip(SHARES, radii(field))
    ]
    of = "trained" if args.checkpoint is not None else "at the start"
    return "\n".join([f"receptive field, {of}, over {what}: {args.receptive_field}", *said])


def middles(args: argparse.Namespace, channels: int, patch_size: Sequence[int]) -> torch.Tensor:
    """The middles of preprocessed cases, (cases, channels, \\*patch); zeros where a patch is larger than its case."""
    import numpy as np
    import torch
    from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_logvmamba.plugin.plans import read_plans
    from nnunet_logvmamba.plugin.preprocessed_cases import has_cases, preprocessing

    path, plans, _ = read_plans(args.dataset, args.plans)
    manager = PlansManager(plans)
    folder = path.parent / manager.get_configuration(args.configuration).data_identifier
    if not has_cases(folder):
        command = preprocessing(manager.dataset_name, args.plans, [args.configuration])
        raise UserError(f"{folder} holds no preprocessed cases: run {command} first")
    dataset, found = infer_dataset_class(str(folder))(str(folder)), []
    for case in args.cases:
        if case not in dataset.identifiers:
            raise UserError(f"{folder} has no case '{case}': it has {dataset.identifiers[0]} and others")
        image = np.asarray(dataset.load_case(case)[0])
        if len(image) != channels:
            raise UserError(f"{folder} has {len(image)} channel(s), this network takes {channels}: leave --cases out")
        if len(patch_size) == 2:
            image = image[:, image.shape[1] // 2]
        begins = [(size - patch) // 2 for size, patch in zip(image.shape[1:], patch_size)]
        box = [[begin, begin + patch] for begin, patch in zip(begins, patch_size)]
        found.append(torch.from_numpy(crop_and_pad_nd(image, box)).float())
    return torch.stack(found)


def network_of_preset(name: str, device: str = "meta") -> tuple[nn.Module, int, Sequence[int], int]:
    """Give a published network on a device, its channels, patch and batch size."""
    if name not in catalogue.PRESETS:
        raise UserError(f"there is no preset '{name}'; there are {', '.join(catalogue.PRESETS)}")
    import torch

    network_class = catalogue.PRESETS[name].load()
    preset = network_class.preset
    with torch.device(device):
        network = network_class(**preset["arguments"])
    return network, preset["arguments"]["input_channels"], preset["patch_size"], 1


def network_of_plans(args: argparse.Namespace, device: str = "meta") -> tuple[nn.Module, int, Sequence[int], int, str]:
    """Give what a trainer builds from a plan, on a device, its channels, patch, batch size and optimizer.

    Args:
        args: ``dataset``, ``plans``, ``configuration`` and ``trainer``.

    Raises:
        UserError: If there is no such plan or trainer, or the network cannot be built from it.
    """
    from nnunet_logvmamba.plugin.plans import check_dataset_json, check_planned, read_plans
    from nnunet_logvmamba.plugin.trainer_names import built_by, check_trainer, find_trainer

    path, plans, dataset_json = read_plans(args.dataset, args.plans)
    check_planned(plans, args.plans, args.configuration)
    check_trainer(args.trainer)
    import torch
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_logvmamba.plugin import trainers

    check_dataset_json(dataset_json, path.with_name("dataset.json"))
    trainer: Any = getattr(trainers, args.trainer, None) if args.trainer.startswith("nnUNetTrainer") else None
    trainer = trainer or find_trainer(args.trainer)
    try:
        plans_manager = PlansManager(plans)
        manager = plans_manager.get_configuration(args.configuration)
        channels = determine_num_input_channels(plans_manager, manager, dataset_json)
        classes = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
        arguments = trainer, plans_manager, manager, channels, classes, False
        try:
            with torch.device(device):
                network = built_by(*arguments)
        except RuntimeError:  # also of a constructor that reads values, which the meta device has not
            network = built_by(*arguments).to(device)
    except (RuntimeError, ValueError) as error:  # our sentence about the plan
        raise UserError(str(error)) from error
    optimizer = "sgd"
    if issubclass(trainer, trainers.RecipeTrainer):
        optimizer = trainer.choose_recipe(manager).optimizer
    return network, channels, manager.patch_size, manager.batch_size, optimizer


def _table(summary: Summary, width: int | None) -> str:
    from nnunet_logvmamba.evaluation.layout import in_columns

    head = ("stage", "size", "tokens", "mixer", "LTX", "GTX", "parameters", "of block", "GMAC", "of block")
    cells = [head]
    digits = 2 if summary.multiply_adds >= 1e10 else 4
    for row in summary.rows:
        block = (
            ("-", "-")
            if row.mixer == "-"
            else (f"{row.block_parameters:,}", f"{row.block_multiply_adds / 1e9:.{digits}f}")
        )
        words = (row.stage, times(row.size), row.tokens, row.mixer, row.local_tokens, row.global_tokens)
        cells.append((*words, f"{row.parameters:,}", block[0], f"{row.multiply_adds / 1e9:.{digits}f}", block[1]))
    blocks = sum(row.block_parameters for row in summary.rows)
    block_multiply_adds = sum(row.block_multiply_adds for row in summary.rows)
    totals = (f"{summary.parameters:,}", f"{blocks:,}", f"{summary.multiply_adds / 1e9:.{digits}f}")
    cells.append(("total", "", "", "", "", "", *totals, f"{block_multiply_adds / 1e9:.{digits}f}"))
    return in_columns(cells, right=range(6, len(head)), beside=(7, 9), rule=False, width=width)


def _legend(summary: Summary) -> list[str]:
    """What the columns of the table mean, those of the network's blocks only where it has some."""
    rows = [("size", "voxels per axis of the stage's map")]
    if any(row.mixer != "-" for row in summary.rows):
        rows += [
            ("tokens", "sequence of a block: one token per voxel, + global tokens"),
            ("mixer", "kind of the block"),
            ("LTX", "local tokens: window R, S channels squeezed into one, width"),
            ("GTX", "global tokens: stride, q channels for each, their number G"),
        ]
    rows += [("GMAC", "billions of multiply-adds; 'of block': the block's share of them")]
    return [f"{name:<8}{text}" for name, text in rows]
