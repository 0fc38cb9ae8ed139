"""Reads stock nnU-Net plans into the arguments of our networks, and writes configurations that carry our knobs.

What needs torch or nnU-Net is loaded when it is asked for, so that commands can check what they were given before.
"""

# ruff: noqa: F401 - imported for whoever imports them from here

import importlib
from typing import TYPE_CHECKING, Any

from nnunet_logvmamba.plugin.plans.files import (
    NNUNETS_FOLDS,
    NNUNETS_PLANS,
    SPLITS,
    NotTakenError,
    check_dataset_json,
    check_folds,
    check_name,
    check_planned,
    check_to_train,
    configurations_of,
    find_plans,
    first_fold,
    first_stage_of,
    no_such_plans,
    read_plans,
    why_not_planned,
    write_plans,
)
from nnunet_logvmamba.plugin.plans.settings import (
    FOREGROUND_SHARE,
    SETTINGS,
    TRAINING_KEY,
    TRAINING_SETTINGS,
    check_knobs,
    check_new_configuration,
    check_training_settings,
    foreground_in_words,
    knobs,
)

if TYPE_CHECKING:
    from nnunet_logvmamba.plugin.plans.architecture import (
        NETWORK_CLASS_NAME,
        STOCK_NETWORKS,
        SWIN_CLASS_NAME,
        build_network,
        check_axes,
        is_ours,
        to_our_architecture,
    )
    from nnunet_logvmamba.plugin.plans.configurations import (
        add_configuration,
        check_configuration,
        check_patch,
        differing,
        next_stages,
        write_configurations,
    )

_HOME = {
    "NETWORK_CLASS_NAME": "architecture",
    "STOCK_NETWORKS": "architecture",
    "SWIN_CLASS_NAME": "architecture",
    "build_network": "architecture",
    "check_axes": "architecture",
    "is_ours": "architecture",
    "to_our_architecture": "architecture",
    "add_configuration": "configurations",
    "check_configuration": "configurations",
    "check_patch": "configurations",
    "differing": "configurations",
    "next_stages": "configurations",
    "write_configurations": "configurations",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
