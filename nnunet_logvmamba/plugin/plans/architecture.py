"""Reads the architecture of a plan, stock or ours, into the arguments of our networks."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.networks import catalogue

NETWORK_CLASS_NAME = catalogue.DEFAULT.path
"""Dotted path that plans files on users' disks refer to; it never moves."""

SWIN_CLASS_NAME = catalogue.row("LoGVMambaSwinUNet").path
"""The same for the 2D network of the Swin lineage."""

STOCK_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")

NEEDED_ARGUMENTS = ("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides")

IMPORTED_ARGUMENTS = ("conv_op", "norm_op", "dropout_op", "nonlin")


def is_ours(architecture: dict) -> bool:
    """True if the ``architecture`` of a configuration already names one of our networks."""
    return architecture["network_class_name"] in catalogue.PATHS


def to_our_architecture(architecture: dict, patch_size: Sequence[int], network: str | None = None, **knobs) -> dict:
    """Translate the ``architecture`` of a configuration into one that names a network of ours.

    What of the plan holds for a network is its own to say (``PlannedNetwork.from_plan``). An architecture that is ours
    already is kept as it stands.

    Args:
        architecture: Value of the key ``architecture`` of a configuration; not changed.
        patch_size: Voxels per axis of the configuration's patch.
        network: Dotted path of the network to build; None means what the architecture names, or the default.
        knobs: Arguments of our network that are set on top, whatever the plan says.

    Returns:
        A new architecture in nnU-Net's form: ``network_class_name``, ``arch_kwargs``, ``_kw_requires_import``.

    Raises:
        UserError: If the network is neither ours nor one of those nnU-Net plans by itself, is not the one that is
            asked for or not for so many axes, or an argument is missing.
    """
    name = architecture["network_class_name"]
    if is_ours(architecture):
        if network not in (None, name):
            raise UserError(
                f"the configuration names {_short(name)} and not {_short(network)}: take nnU-Net's own configuration"
            )
        ours = deepcopy(architecture)
        ours["arch_kwargs"].update(knobs)
        return ours
    if _short(name) not in STOCK_NETWORKS:
        raise UserError(
            f"cannot translate the network '{name}' of this plan: our trainers take "
            f"{' and '.join(STOCK_NETWORKS)} as nnU-Net plans them, or {' and '.join(catalogue.PATHS)}"
        )
    planned = architecture["arch_kwargs"]
    missing = [key for key in NEEDED_ARGUMENTS if key not in planned]
    if missing:
        raise UserError(f"the plan's architecture '{name}' lacks {', '.join(missing)}")
    row = catalogue.row(network or NETWORK_CLASS_NAME)
    try:
        dims = len(planned["kernel_sizes"][0])
        arguments = row.load().from_plan(planned, list(patch_size)) if dims in row.dims else {}
    except (TypeError, IndexError, KeyError) as error:
        raise UserError(
            f"the plan's architecture '{name}' is not as nnU-Net writes it ({error!r}): plan anew"
        ) from error
    check_axes(row, dims)
    return {
        "network_class_name": row.path,
        "arch_kwargs": {**arguments, **knobs},
        "_kw_requires_import": [key for key in IMPORTED_ARGUMENTS if key in arguments],
    }


def check_axes(row: catalogue.Network, axes: int) -> None:
    """Refuse a network that is not for so many axes.

    Raises:
        UserError: With what to take.
    """
    if axes not in row.dims:
        raise UserError(
            f"{row.name} is a {row.dims[0]}D network and this configuration is {axes}D: take "
            f"{'the configuration 2d' if axes == 3 else 'a 3D configuration'}, or a trainer of the U-Net lineage such "
            f"as nnUNetTrainer{catalogue.DEFAULT.trainer}"
        )


def _short(class_name: str) -> str:
    return class_name.rsplit(".", 1)[-1]


def build_network(
    configuration_manager: ConfigurationManager,
    num_input_channels: int,
    num_output_channels: int,
    deep_supervision: bool,
    network: str | None = None,
    **overrides,
) -> nn.Module:
    """Build a network of ours from any configuration, with some arguments set on top; see ``to_our_architecture``.

    Deep supervision is left off where the network or the configuration has a head on the finest scale only.

    Raises:
        UserError: If it cannot be built.
    """
    configuration = configuration_manager.configuration
    architecture = to_our_architecture(configuration["architecture"], configuration["patch_size"], network, **overrides)
    arguments = architecture["arch_kwargs"]
    several = catalogue.row(architecture["network_class_name"]).load().deep_supervised
    try:
        return get_network_from_plans(
            architecture["network_class_name"],
            arguments,
            architecture["_kw_requires_import"],
            num_input_channels,
            num_output_channels,
            allow_init=True,
            deep_supervision=deep_supervision and several and arguments.get("seg_heads") != "last",
        )
    except TypeError as error:  # an argument that is missing, unknown or of the wrong kind
        raise UserError(str(error)) from error
