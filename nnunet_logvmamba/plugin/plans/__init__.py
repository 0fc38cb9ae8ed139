"""Reads stock nnU-Net plans into the arguments of our networks, and writes configurations that carry our knobs."""

from nnunet_logvmamba.plugin.plans.architecture import (
    KEPT_ARGUMENTS,
    NETWORK_CLASS_NAME,
    NETWORKS,
    STOCK_NETWORKS,
    SWIN_CLASS_NAME,
    build_network,
    is_ours,
    to_our_architecture,
)
from nnunet_logvmamba.plugin.plans.configurations import (
    add_configuration,
    check_configuration,
    check_patch,
    why_not_planned,
)
from nnunet_logvmamba.plugin.plans.files import check_dataset_json, find_plans, write_plans
from nnunet_logvmamba.plugin.plans.settings import (
    FOREGROUND_SHARE,
    OPTIMIZERS,
    TRAINING_KEY,
    TRAINING_SETTINGS,
    check_knobs,
    check_training_settings,
    foreground_in_words,
    knobs,
)

__all__ = [
    "FOREGROUND_SHARE",
    "KEPT_ARGUMENTS",
    "NETWORKS",
    "NETWORK_CLASS_NAME",
    "OPTIMIZERS",
    "STOCK_NETWORKS",
    "SWIN_CLASS_NAME",
    "TRAINING_KEY",
    "TRAINING_SETTINGS",
    "add_configuration",
    "build_network",
    "check_configuration",
    "check_dataset_json",
    "check_knobs",
    "check_patch",
    "check_training_settings",
    "find_plans",
    "foreground_in_words",
    "is_ours",
    "knobs",
    "to_our_architecture",
    "why_not_planned",
    "write_plans",
]
