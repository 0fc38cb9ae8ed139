"""Training settings and knobs: what may be set, and of which kind."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace

from nnunet_logvmamba.ops import backends
from nnunet_logvmamba.plugin.plans.architecture import (
    KEPT_ARGUMENTS,
    NETWORK_CLASS_NAME,
    NETWORKS,
    SWIN_CLASS_NAME,
    _short,
)
from nnunet_logvmamba.plugin.recipes import OPTIMIZERS

TRAINING_KEY = "logvmamba"
"""Optional key of a configuration with the training settings that only our trainers read."""


TRAINING_SETTINGS = (
    "num_epochs",
    "num_iterations_per_epoch",
    "num_val_iterations_per_epoch",
    "initial_lr",
    "optimizer",
    "weight_decay",
    "surface_tolerance",
    "seed",
    "pretrained",
    "probabilistic_oversampling",
    "oversample_foreground_percent",
)


FOREGROUND_SHARE = 0.33
"""What nnU-Net's trainer asks of its data loader: the share of patches that are placed on foreground."""


def check_training_settings(settings: object) -> dict:
    """Return a copy of a configuration's ``logvmamba`` entry after checking its keys and values.

    ``None`` (no such entry) gives an empty dict.

    Raises:
        ValueError: If a key is unknown or a value has the wrong type or range; the message names the key and the valid
            ones.
    """
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ValueError(f"'{TRAINING_KEY}' in a configuration must be a table of settings, not {settings!r}")
    for key, value in settings.items():
        if key not in TRAINING_SETTINGS:
            raise ValueError(
                f"unknown setting '{key}' under '{TRAINING_KEY}'; valid are {', '.join(TRAINING_SETTINGS)}"
            )
        whole = isinstance(value, int) and not isinstance(value, bool)
        number = whole or isinstance(value, float)
        if key == "optimizer":
            if value not in OPTIMIZERS:
                raise ValueError(
                    f"unknown optimizer {value!r} under '{TRAINING_KEY}'; valid are {', '.join(OPTIMIZERS)}"
                )
        elif key == "pretrained":
            if not isinstance(value, str) or not value:
                raise ValueError(f"'{key}' under '{TRAINING_KEY}' must be the path of a checkpoint, not {value!r}")
        elif key == "probabilistic_oversampling":
            if not isinstance(value, bool):
                raise ValueError(f"'{key}' under '{TRAINING_KEY}' must be true or false, not {value!r}")
        elif key == "oversample_foreground_percent":
            if not number or not 0 <= value <= 1:
                raise ValueError(f"'{key}' under '{TRAINING_KEY}' must be a number from 0 to 1, not {value!r}")
        elif key == "initial_lr":
            if not number or not 0 < value < float("inf"):
                raise ValueError(f"'{key}' under '{TRAINING_KEY}' must be a number above 0, not {value!r}")
        elif key in ("weight_decay", "surface_tolerance"):
            if not number or not 0 <= value < float("inf"):
                raise ValueError(f"'{key}' under '{TRAINING_KEY}' must be a number of at least 0, not {value!r}")
        else:
            least = 0 if key == "seed" else 1
            if not whole or value < least:
                raise ValueError(
                    f"'{key}' under '{TRAINING_KEY}' must be a whole number of at least {least}, not {value!r}"
                )
    return dict(settings)


def foreground_in_words(batch_size: int, settings: dict) -> tuple[str, bool]:
    """Say how many patches of a batch are placed on foreground, and whether that is none though some were wished for.

    nnU-Net rounds: of batches of 1 to 5 patches it places 0, 1, 1, 1 and 2 on foreground.

    Args:
        batch_size: Patches per step, of all GPUs together.
        settings: Training settings of the configuration.
    """
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader  # late, since only few commands need it

    share = settings.get("oversample_foreground_percent", FOREGROUND_SHARE)
    if settings.get("probabilistic_oversampling"):
        return f"every patch is placed on foreground with probability {share:g}", False
    loader = SimpleNamespace(batch_size=batch_size, oversample_foreground_percent=share)
    forced = sum(nnUNetDataLoader._oversample_last_XX_percent(loader, index) for index in range(batch_size))
    if forced or not share:
        return f"{forced} of {batch_size} patch(es) of a batch placed on foreground", False
    return (
        f"with a batch size of {batch_size} nnU-Net places no patch on foreground, so it hardly sees small structures: "
        "set probabilistic_oversampling=true (logvmamba plans --train) for our trainers; nnU-Net's own for this is "
        "nnUNetTrainer_probabilisticOversampling_033"
    ), True


def knobs(network: str = NETWORK_CLASS_NAME) -> dict:
    """Give the arguments of a network of ours that a plan can set beyond nnU-Net's own, with their default values."""
    parameters = inspect.signature(NETWORKS[network]).parameters
    given = {"input_channels", "num_classes", "deep_supervision"}
    given |= {"n_stages", "strides"} if network == SWIN_CLASS_NAME else set(KEPT_ARGUMENTS)
    return {name: parameter.default for name, parameter in parameters.items() if name not in given}


def check_knobs(values: dict, network: str = NETWORK_CLASS_NAME) -> None:
    """Refuse knobs that do not exist or whose kind of value is wrong; the network itself judges the value.

    Raises:
        ValueError: Naming the knob, and the valid ones or the kind that is needed.
    """
    defaults = knobs(network)
    for name, value in values.items():
        if name not in defaults:
            raise ValueError(f"unknown knob '{name}' of {_short(network)}; valid are {', '.join(defaults)}")
        default = defaults[name]
        if name == "backend":
            backends.check_name(value)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if default is None and name in ("squeeze", "directions"):
            fits, kind = value is None or whole, "a whole number or null"
        elif default is None:
            fits, kind = value is None or isinstance(value, list), "a list or null"
        elif isinstance(default, tuple) or default is inspect.Parameter.empty:
            fits, kind = isinstance(value, list), "a list"
        elif isinstance(default, bool):
            fits, kind = isinstance(value, bool), "true or false"
        elif isinstance(default, int):
            fits, kind = whole and value >= 1, "a whole number of at least 1"
        elif isinstance(default, float):
            fits, kind = whole or isinstance(value, float), "a number"
        else:
            fits, kind = isinstance(value, str), "a word"
        if not fits:
            raise ValueError(f"'{name}' must be {kind}, not {json.dumps(value)}")
