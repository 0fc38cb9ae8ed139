"""Training settings and knobs: what may be set, and of which kind."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from math import inf
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.plugin.plans.files import check_name, check_planned
from nnunet_logvmamba.plugin.recipes import OPTIMIZERS

TRAINING_KEY = "logvmamba"
"""Optional key of a configuration with the training settings that only our trainers read."""


class Kind(NamedTuple):
    """Which values fit, by a function and in words."""

    fits: Callable[[Any], bool]
    words: str


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _whole(least: int) -> Kind:
    return Kind(lambda value: _is_whole(value) and value >= least, f"a whole number of at least {least}")


_POSITIVE = Kind(lambda value: _is_number(value) and 0 < value < inf, "a number above 0")
_NOT_NEGATIVE = Kind(lambda value: _is_number(value) and 0 <= value < inf, "a number of at least 0")
_SHARE = Kind(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
_BOOLEAN = Kind(lambda value: isinstance(value, bool), "true or false")
_PATH = Kind(lambda value: isinstance(value, str) and value != "", "the path of a checkpoint")
_OPTIMIZER = Kind(lambda value: isinstance(value, str) and value in OPTIMIZERS, " or ".join(OPTIMIZERS))

SETTINGS: dict[str, tuple[Kind, Any]] = {
    "num_epochs": (_whole(1), 1000),
    "num_iterations_per_epoch": (_whole(1), 250),
    "num_val_iterations_per_epoch": (_whole(1), 50),
    "initial_lr": (_POSITIVE, None),
    "optimizer": (_OPTIMIZER, None),
    "weight_decay": (_NOT_NEGATIVE, None),
    "surface_tolerance": (_NOT_NEGATIVE, 2.0),
    "seed": (_whole(0), None),
    "pretrained": (_PATH, None),
    "probabilistic_oversampling": (_BOOLEAN, False),
    "oversample_foreground_percent": (_SHARE, 0.33),
    "mirroring": (_BOOLEAN, True),
    "non_finite_steps": (_whole(1), 3),
}
"""What a configuration may set under ``TRAINING_KEY``: kind and default; None where that hangs on something else. The
tables of docs/how-to/knobs.md and docs/reference/plans.md are checked against it."""

TRAINING_SETTINGS = tuple(SETTINGS)

FOREGROUND_SHARE = SETTINGS["oversample_foreground_percent"][1]
"""What nnU-Net's trainer asks of its data loader: the share of patches that are placed on foreground."""


def check_training_settings(settings: object) -> dict:
    """Return a copy of a configuration's ``logvmamba`` entry after checking its keys and values.

    ``None`` (no such entry) gives an empty dict.

    Raises:
        UserError: If a key is unknown or a value has the wrong type or range; the message names the key and the valid
            ones.
    """
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise UserError(f"'{TRAINING_KEY}' in a configuration must be a table of settings, not {settings!r}")
    for key, value in settings.items():
        if key not in SETTINGS:
            raise UserError(f"unknown setting '{key}' under '{TRAINING_KEY}'; valid are {', '.join(TRAINING_SETTINGS)}")
        kind, _ = SETTINGS[key]
        if kind.fits(value):
            continue
        if kind is _OPTIMIZER:
            raise UserError(f"unknown optimizer {value!r} under '{TRAINING_KEY}'; valid are {', '.join(OPTIMIZERS)}")
        raise UserError(f"'{key}' under '{TRAINING_KEY}' must be {kind.words}, not {value!r}")
    return dict(settings)


def check_new_configuration(
    plans: dict,
    base: str,
    name: str,
    *,
    arguments: dict | None,
    training: object,
    network: str | None,
    keep_network: bool,
    overwrite: bool,
) -> dict:
    """Check what can be said of a new configuration without building its network; give its training settings.

    Args:
        plans, base, name, arguments, training, network, keep_network, overwrite: As for ``add_configuration``.

    Raises:
        UserError: Naming what is wrong.
    """
    check_planned(plans, "these plans", base)
    check_name(name, "a configuration")
    if keep_network and (arguments or network):
        what = f"knobs ({', '.join(arguments)}) belong to our network" if arguments else "another network was named"
        raise UserError(f"{what}, which cannot go with --keep-network")
    settings = check_training_settings(training)
    check_free(plans["configurations"], base, name, overwrite=overwrite)
    return settings


def check_free(configurations: dict, base: str, name: str, *, overwrite: bool) -> None:
    """Refuse the name of the configuration itself that is derived from, or one that is there.

    Raises:
        UserError: With the remedy.
    """
    if name == base:
        raise UserError(f"configuration '{base}' cannot be derived from itself; choose another name")
    if name in configurations and not overwrite:
        raise UserError(f"configuration '{name}' exists already; choose another name or add --overwrite")


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


def knobs(network: str = catalogue.DEFAULT.path) -> dict:
    """Give the arguments of a network of ours that a plan can set beyond nnU-Net's own, with their default values."""
    network_class = catalogue.row(network).load()
    parameters = inspect.signature(network_class).parameters
    given = {"input_channels", "num_classes", "deep_supervision", "patch_size", *network_class.plan_arguments}
    return {name: parameter.default for name, parameter in parameters.items() if name not in given}


def check_knobs(values: dict, network: str = catalogue.DEFAULT.path) -> None:
    """Refuse knobs that do not exist or whose kind of value is wrong; the network itself judges the value.

    Raises:
        UserError: Naming the knob, and the valid ones or the kind that is needed.
    """
    valid, annotations = knobs(network), get_type_hints(catalogue.row(network).load().__init__)
    for name, value in values.items():
        if name not in valid:
            raise UserError(f"unknown knob '{name}' of {catalogue.row(network).name}; valid are {', '.join(valid)}")
        if name == "backend":
            from nnunet_logvmamba.ops import backends  # late, because it imports torch

            backends.check_name(value)
        kind = _kind_of(annotations[name])
        if not kind.fits(value):
            raise UserError(f"'{name}' must be {kind.words}, not {json.dumps(value)}")


_KINDS = {
    int: Kind(_is_whole, "a whole number"),
    float: Kind(_is_number, "a number"),
    bool: _BOOLEAN,
    str: Kind(lambda value: isinstance(value, str), "a word"),
    Sequence: Kind(lambda value: isinstance(value, list), "a list"),
    NoneType: Kind(lambda value: value is None, "null"),
}


def _kind_of(annotation: Any) -> Kind:
    """The kind of a network's argument; a whole number that cannot be left to the network is at least 1."""
    if annotation is int:
        return _whole(1)
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    kinds = [_KINDS[get_origin(option) or option] for option in options]
    return Kind(lambda value: any(kind.fits(value) for kind in kinds), " or ".join(kind.words for kind in kinds))
