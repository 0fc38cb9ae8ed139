"""Plans of nnU-Net 2.1 to 2.3, which forks still write, in the form that they have since 2.4."""

from __future__ import annotations

import warnings
from copy import deepcopy

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.plugin.plans.architecture import STOCK_NETWORKS

KEYS = (
    "UNet_class_name",
    "UNet_base_num_features",
    "unet_max_num_features",
    "n_conv_per_stage_encoder",
    "n_conv_per_stage_decoder",
    "num_pool_per_axis",
    "pool_op_kernel_sizes",
    "conv_kernel_sizes",
)
"""What a configuration said of its network before it had an ``architecture``."""


def in_todays_form(plans: dict, file: str) -> dict:
    """Give plans in which every configuration that described a network names its ``architecture``.

    nnU-Net does the same with a configuration that it is about to use, and complains each time. What a configuration
    inherits stays inherited.

    Args:
        plans: Content of a plans file; not changed.
        file: What holds them, for the message.

    Raises:
        UserError: If they are not as nnU-Net writes them.
    """
    result = deepcopy(plans)
    try:
        for name, entry in plans["configurations"].items():
            if "architecture" in entry or not any(key in entry for key in KEYS):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                resolved = PlansManager(plans).get_configuration(name).configuration
            kept = {key: value for key, value in entry.items() if key not in KEYS}
            result["configurations"][name] = {**kept, "architecture": resolved["architecture"]}
        for entry in result["configurations"].values():
            if "architecture" in entry:
                _where_it_lies(entry["architecture"])
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = f"{error!r}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{file} holds no plans as nnU-Net writes them ({reason}): copy them anew") from error
    return result


def _where_it_lies(architecture: dict) -> None:
    """Name the module where a network of nnU-Net's lies today; nnU-Net's own translation names one that is gone."""
    module, _, name = str(architecture["network_class_name"]).rpartition(".")
    if name in STOCK_NETWORKS and module.startswith("dynamic_network_architectures."):
        architecture["network_class_name"] = f"dynamic_network_architectures.architectures.unet.{name}"
