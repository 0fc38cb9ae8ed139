"""Reads stock nnU-Net plans into the arguments of our network, and writes configurations that carry our knobs."""

from __future__ import annotations

from copy import deepcopy

NETWORK_CLASS_NAME = "nnunet_logvmamba.networks.LoGVMambaUNet"
"""Dotted path that plans files on users' disks refer to; it never moves."""

TRAINING_KEY = "logvmamba"
"""Optional key of a configuration with the training settings that only our trainers read."""

TRAINING_SETTINGS = (
    "num_epochs",
    "num_iterations_per_epoch",
    "num_val_iterations_per_epoch",
    "initial_lr",
    "optimizer",
    "weight_decay",
    "seed",
)
OPTIMIZERS = ("adam", "sgd")

STOCK_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")
KEPT_ARGUMENTS = (
    "n_stages",
    "features_per_stage",
    "conv_op",
    "kernel_sizes",
    "strides",
    "conv_bias",
    "norm_op",
    "norm_op_kwargs",
    "dropout_op",
    "dropout_op_kwargs",
    "nonlin",
    "nonlin_kwargs",
)
IMPORTED_ARGUMENTS = ("conv_op", "norm_op", "dropout_op", "nonlin")


def is_ours(architecture: dict) -> bool:
    """True if the ``architecture`` of a configuration already names our network."""
    return architecture["network_class_name"] == NETWORK_CLASS_NAME


def to_our_architecture(architecture: dict, **knobs) -> dict:
    """Translate the ``architecture`` of a configuration into one that names our network.

    Convolution, normalisation, activation, kernel sizes, strides and widths are the plan's; block counts are dropped,
    since ours are fixed. An architecture that is ours already is kept as it stands.

    Args:
        architecture: Value of the key ``architecture`` of a configuration; not changed.
        knobs: Arguments of our network that are set on top, whatever the plan says.

    Returns:
        A new architecture in nnU-Net's form: ``network_class_name``, ``arch_kwargs``, ``_kw_requires_import``.

    Raises:
        ValueError: If the network is neither ours nor one of those nnU-Net plans by itself, or an argument is missing.
    """
    if is_ours(architecture):
        ours = deepcopy(architecture)
    else:
        name = architecture["network_class_name"]
        if name.rsplit(".", 1)[-1] not in STOCK_NETWORKS:
            raise ValueError(
                f"cannot translate the network '{name}' of this plan: our trainers take "
                f"{' and '.join(STOCK_NETWORKS)} as nnU-Net plans them, or {NETWORK_CLASS_NAME}"
            )
        planned = architecture["arch_kwargs"]
        missing = [
            key
            for key in ("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides")
            if key not in planned
        ]
        if missing:
            raise ValueError(f"the plan's architecture '{name}' lacks {', '.join(missing)}")
        ours = {
            "network_class_name": NETWORK_CLASS_NAME,
            "arch_kwargs": {key: deepcopy(planned[key]) for key in KEPT_ARGUMENTS if key in planned},
            "_kw_requires_import": [key for key in IMPORTED_ARGUMENTS if key in planned],
        }
    ours["arch_kwargs"].update(knobs)
    return ours


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
        elif key == "initial_lr":
            if not number or not 0 < value < float("inf"):
                raise ValueError(f"'{key}' under '{TRAINING_KEY}' must be a number above 0, not {value!r}")
        elif key == "weight_decay":
            if not number or not 0 <= value < float("inf"):
                raise ValueError(f"'{key}' under '{TRAINING_KEY}' must be a number of at least 0, not {value!r}")
        else:
            least = 0 if key == "seed" else 1
            if not whole or value < least:
                raise ValueError(
                    f"'{key}' under '{TRAINING_KEY}' must be a whole number of at least {least}, not {value!r}"
                )
    return dict(settings)
