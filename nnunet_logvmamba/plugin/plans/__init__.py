"""Reads stock nnU-Net plans into the arguments of our networks, and writes configurations that carry our knobs."""

# ruff: noqa: F401 - imported for whoever imports them from here

from nnunet_logvmamba.plugin.plans.architecture import (
    NETWORK_CLASS_NAME,
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
    SETTINGS,
    TRAINING_KEY,
    TRAINING_SETTINGS,
    check_knobs,
    check_training_settings,
    foreground_in_words,
    knobs,
)
