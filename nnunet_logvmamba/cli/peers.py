"""``logvmamba peers``: every network that there is a trainer for, on one page."""

from __future__ import annotations

import argparse

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import examples
from nnunet_logvmamba.cli.summary import network_of_plans, network_of_preset
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.networks.costs import summarize, times

HEAD = ("trainer", "network", "axes", "parameters", "GMAC", "published recipe", "paper", "licence", "remark")
STOCK = "nnUNetTrainerStockNetwork"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``peers`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "peers",
        help="list the networks that there are trainers for: papers, sizes, recipes, licences",
        description="List every network that there is a trainer for. With a data set, parameters and multiply-adds are "
        "those of what the trainers build from its plan, nnU-Net's own network among them. Nothing is computed, so no "
        "memory is needed.",
        **examples(
            "reference/commands.md#logvmamba-peers",
            "logvmamba peers",
            "logvmamba peers --published",
            "logvmamba peers -d 4 -c 3d_fullres",
        ),
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-d", "--dataset", metavar="ID", help="number or name of a data set that has been planned")
    source.add_argument(
        "--published", action="store_true", help="count the published sizes at the patches they were published for"
    )
    parser.add_argument("-c", "--configuration", default="3d_fullres", help="default: %(default)s")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="name of the plans (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Print the table.

    Raises:
        UserError: If there is no such data set or configuration.
    """
    from nnunet_logvmamba.evaluation.layout import in_columns

    rows: list[tuple[str, ...]] = []
    if args.dataset is not None:  # first, so that a data set that is not there ends it
        counted = _counted(network_of_plans(_of_trainer(args, STOCK)))
        rows.append((STOCK, "of the plan", "", *counted, "sgd", "", "Apache-2.0", "nnU-Net's own"))
    rows += [_costs(args, network) for network in catalogue.NETWORKS]
    table = in_columns([HEAD, *rows], right=(3, 4), beside=(), rule=False, width=terminal.width())
    legend = "GMAC: billions of multiply-adds of one patch forwards; scans are not among them."
    terminal.show("\n".join([table, *(["", legend] if args.published or args.dataset is not None else [])]))
    return 0


def _costs(args: argparse.Namespace, network: catalogue.Network) -> tuple[str, ...]:
    """The row of a network, with the reason where it cannot be had."""
    trainer = f"nnUNetTrainer{network.trainer}"
    counted, remark = ("" if network.parameters is None else f"{network.parameters:,}", ""), ""
    if network.obstacle is not None:
        counted, remark = ("", ""), network.obstacle
    elif args.dataset is not None:
        try:
            counted = _counted(network_of_plans(_of_trainer(args, trainer)))
        except (ValueError, RuntimeError) as error:  # of a patch that it does not take, for example
            counted, remark = ("", ""), str(error).splitlines()[0]
    elif args.published and network.preset is not None:
        found = network_of_preset(network.preset)
        counted, remark = _counted(found), f"{network.preset}, {times(found[2])}"
    axes = ", ".join(f"{number}D" for number in network.dims)
    return (trainer, network.name, axes, *counted, network.recipe, network.paper, network.licence, remark)


def _of_trainer(args: argparse.Namespace, trainer: str) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), "trainer": trainer})


def _counted(found: tuple) -> tuple[str, str]:
    """Parameters and multiply-adds of a network on the meta device, in words."""
    network, channels, patch_size, *_ = found
    summary = summarize(network, channels, patch_size, 1)
    return f"{summary.parameters:,}", f"{summary.multiply_adds / 1e9:.2f}"
