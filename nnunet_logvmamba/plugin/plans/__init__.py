"""Reads stock nnU-Net plans into the arguments of our networks, and writes configurations that carry our knobs."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import tempfile
from copy import deepcopy
from math import prod
from pathlib import Path
from types import SimpleNamespace

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_logvmamba.evaluation.cases import CaseError
from nnunet_logvmamba.evaluation.dataset_json import channels_of, labels_of
from nnunet_logvmamba.networks import LoGVMambaSwinUNet, LoGVMambaUNet
from nnunet_logvmamba.networks.log_vmamba.presets import PAPER_2D
from nnunet_logvmamba.ops import backends

NETWORK_CLASS_NAME = "nnunet_logvmamba.networks.LoGVMambaUNet"
"""Dotted path that plans files on users' disks refer to; it never moves."""

SWIN_CLASS_NAME = "nnunet_logvmamba.networks.LoGVMambaSwinUNet"
"""The same for the 2D network of the Swin lineage."""

NETWORKS = {NETWORK_CLASS_NAME: LoGVMambaUNet, SWIN_CLASS_NAME: LoGVMambaSwinUNet}

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
SWIN_STAGES = ("n_stages", "features_per_stage", "strides", "n_blocks_per_stage")
SMALLEST_PADDED = 9  # below, nnU-Net's targets at 1/16 have no pixel
IMPORTED_ARGUMENTS = ("conv_op", "norm_op", "dropout_op", "nonlin")


def is_ours(architecture: dict) -> bool:
    """True if the ``architecture`` of a configuration already names one of our networks."""
    return architecture["network_class_name"] in NETWORKS


def to_our_architecture(architecture: dict, network: str | None = None, **knobs) -> dict:
    """Translate the ``architecture`` of a configuration into one that names a network of ours.

    For ``LoGVMambaUNet``, convolution, normalisation, activation, kernel sizes, strides and widths are the plan's;
    block counts are dropped, since ours are fixed. ``LoGVMambaSwinUNet`` has the published stages, whatever the plan's
    are. An architecture that is ours already is kept as it stands.

    Args:
        architecture: Value of the key ``architecture`` of a configuration; not changed.
        network: Dotted path of the network to build; None means what the architecture names, or ``LoGVMambaUNet``.
        knobs: Arguments of our network that are set on top, whatever the plan says.

    Returns:
        A new architecture in nnU-Net's form: ``network_class_name``, ``arch_kwargs``, ``_kw_requires_import``.

    Raises:
        ValueError: If the network is neither ours nor one of those nnU-Net plans by itself, is not the one that is
            asked for, or an argument is missing.
    """
    name = architecture["network_class_name"]
    if is_ours(architecture):
        if network not in (None, name):
            raise ValueError(
                f"the configuration names {_short(name)} and not {_short(network)}: take nnU-Net's own configuration"
            )
        ours = deepcopy(architecture)
    else:
        if _short(name) not in STOCK_NETWORKS:
            raise ValueError(
                f"cannot translate the network '{name}' of this plan: our trainers take "
                f"{' and '.join(STOCK_NETWORKS)} as nnU-Net plans them, or {' and '.join(NETWORKS)}"
            )
        planned = architecture["arch_kwargs"]
        missing = [
            key
            for key in ("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides")
            if key not in planned
        ]
        if missing:
            raise ValueError(f"the plan's architecture '{name}' lacks {', '.join(missing)}")
        ours = _published_swin(planned) if network == SWIN_CLASS_NAME else _like_planned(planned)
    ours["arch_kwargs"].update(knobs)
    return ours


def _like_planned(planned: dict) -> dict:
    return {
        "network_class_name": NETWORK_CLASS_NAME,
        "arch_kwargs": {key: deepcopy(planned[key]) for key in KEPT_ARGUMENTS if key in planned},
        "_kw_requires_import": [key for key in IMPORTED_ARGUMENTS if key in planned],
    }


def _published_swin(planned: dict) -> dict:
    if len(planned["kernel_sizes"][0]) != 2:
        raise ValueError(
            "LoGVMambaSwinUNet is a 2D network and this configuration is 3D: take the configuration 2d, or a trainer "
            "of the U-Net lineage such as nnUNetTrainerLoGVMamba"
        )
    arguments = {key: deepcopy(PAPER_2D["arguments"][key]) for key in SWIN_STAGES}
    return {"network_class_name": SWIN_CLASS_NAME, "arch_kwargs": arguments, "_kw_requires_import": []}


def _short(class_name: str) -> str:
    return class_name.rsplit(".", 1)[-1]


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


def build_network(
    configuration_manager: ConfigurationManager,
    num_input_channels: int,
    num_output_channels: int,
    deep_supervision: bool,
    network: str | None = None,
    **overrides,
) -> nn.Module:
    """Build a network of ours from any configuration, with some arguments set on top; see ``to_our_architecture``.

    Deep supervision is left off where the configuration asks for a head on the finest scale only.

    Raises:
        ValueError: If it cannot be built.
    """
    architecture = to_our_architecture(configuration_manager.configuration["architecture"], network, **overrides)
    arguments = architecture["arch_kwargs"]
    try:
        return get_network_from_plans(
            architecture["network_class_name"],
            arguments,
            architecture["_kw_requires_import"],
            num_input_channels,
            num_output_channels,
            allow_init=True,
            deep_supervision=deep_supervision and arguments.get("seg_heads") != "last",
        )
    except TypeError as error:  # an argument that is missing, unknown or of the wrong kind
        raise ValueError(str(error)) from error


def add_configuration(
    plans: dict,
    dataset_json: dict,
    base: str,
    name: str,
    *,
    arguments: dict | None = None,
    training: dict | None = None,
    batch_size: int | None = None,
    patch_size: list[int] | None = None,
    network: str | None = None,
    keep_network: bool = False,
    overwrite: bool = False,
) -> tuple[dict, list[str]]:
    """Add a configuration with our network and the given knobs; one of a cascade brings its partner along.

    The new configuration inherits everything but the network from ``base``, so it uses the same preprocessed data. Its
    ``architecture`` is complete, so the stock ``nnUNetTrainer`` builds it too.

    Args:
        plans: Content of a plans file; not changed.
        dataset_json: Content of the data set's ``dataset.json``.
        base: Configuration to start from.
        name: Name of the new one.
        arguments: Knobs of the network; those not named keep their default, or what ``base`` says if it is ours.
        training: Settings for our trainers, see ``TRAINING_SETTINGS``.
        batch_size: Patches per step, instead of that of ``base``.
        patch_size: Voxels per axis, instead of that of ``base``; also for the partner.
        network: Dotted path of our network; None means that of ``base`` if it is ours, else ``LoGVMambaUNet``.
        keep_network: Leave the network of ``base`` in place; our trainers translate it, any other trains it as it is.
        overwrite: Replace configurations that have the new names.

    Returns:
        The new plans, and the names of the configurations that were added.

    Raises:
        ValueError: If anything does not fit or a network cannot be built.
    """
    configurations = plans["configurations"]
    if base not in configurations:
        raise ValueError(f"there is no configuration '{base}' in these plans; there are {', '.join(configurations)}")
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9.-]|_(?!_))*", name):
        raise ValueError(f"'{name}' cannot name a configuration: use letters, digits, '.', '-' and single '_'")
    manager = PlansManager(plans)
    resolved = manager.get_configuration(base)
    planned = resolved.configuration["architecture"]
    check_knobs(arguments or {}, network or (planned["network_class_name"] if is_ours(planned) else NETWORK_CLASS_NAME))
    if keep_network and (arguments or network):
        what = f"knobs ({', '.join(arguments)}) belong to our network" if arguments else "another network was named"
        raise ValueError(f"{what}, which cannot go with --keep-network")
    settings = check_training_settings(training)
    names = {base: name}
    previous, following = resolved.previous_stage_name, resolved.next_stage_names or []
    for partner in [*([] if previous is None else [previous]), *following]:
        names[partner] = name.replace(base, partner, 1) if base in name else f"{name}_{partner}"
    for old, new in names.items():
        if new == old:
            raise ValueError(f"configuration '{old}' cannot be derived from itself; choose another name")
        if new in configurations and not overwrite:
            raise ValueError(f"configuration '{new}' exists already; choose another name or add --overwrite")

    result = deepcopy(plans)
    for old, new in names.items():
        parent = manager.get_configuration(old)
        entry: dict = {"inherits_from": old}
        if not keep_network:
            entry["architecture"] = _complete(parent.configuration["architecture"], network, arguments or {})
        if batch_size is not None:
            entry["batch_size"] = batch_size
        if patch_size is not None:
            entry["patch_size"] = list(patch_size)
        if settings or TRAINING_KEY in parent.configuration:
            entry[TRAINING_KEY] = {**parent.configuration.get(TRAINING_KEY, {}), **settings}
        if parent.previous_stage_name is not None:
            entry["previous_stage"] = names[parent.previous_stage_name]
        if parent.next_stage_names is not None:
            linked = [names[stage] for stage in parent.next_stage_names if stage in names]
            entry["next_stage"] = linked[0] if len(linked) == 1 else linked
        result["configurations"][new] = entry
    for new in names.values():
        try:
            PlansManager(result).get_configuration(new)
        except RuntimeError as error:  # nnU-Net's word for configurations that inherit in a circle
            raise ValueError(f"'{new}' cannot be replaced, because '{base}' is derived from it") from error
        check_configuration(result, dataset_json, new)
    return result, list(names.values())


def check_configuration(plans: dict, dataset_json: dict, name: str) -> None:
    """Build a configuration's network without memory and compare its patch with its strides.

    Raises:
        ValueError: Naming the configuration and what does not fit.
    """
    plans_manager = PlansManager(plans)
    configuration = plans_manager.get_configuration(name)
    channels = determine_num_input_channels(plans_manager, configuration, dataset_json)
    classes = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
    settings = configuration.configuration.get(TRAINING_KEY, {})
    try:
        with torch.device("meta"):
            network = build_network(configuration, channels, classes, deep_supervision=True)
            check_patch(network, configuration, channels)
        if "pretrained" in settings and configuration.network_arch_class_name == NETWORK_CLASS_NAME:
            raise ValueError(
                f"'pretrained' under '{TRAINING_KEY}' is for LoGVMambaSwinUNet: add --network LoGVMambaSwinUNet"
            )
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"configuration '{name}' cannot be built: {str(error).splitlines()[0]}") from error


def check_patch(network: nn.Module, configuration: ConfigurationManager, num_input_channels: int) -> None:
    """Send a batch of patches through a network on the meta device, which needs no memory and hardly any time.

    Raises:
        ValueError: If the patch is not divisible by the strides (``LoGVMambaSwinUNet`` pads, so there it need not be),
            there is no batch, or the network takes no such patch.
    """
    patch_size, strides = list(configuration.patch_size), configuration.pool_op_kernel_sizes
    pads = isinstance(network, LoGVMambaSwinUNet)
    totals = [1 if pads else prod(axis) for axis in zip(*strides)]
    least = SMALLEST_PADDED if pads else 1
    if len(patch_size) != len(totals) or any(size < least or size % total for size, total in zip(patch_size, totals)):
        needed = f"have {len(totals)} axes of at least {least}" if pads else f"be divisible by {totals}, axis by axis"
        raise ValueError(f"the patch size {patch_size} must {needed}")
    if configuration.batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, not {configuration.batch_size}")
    try:
        network(torch.empty(configuration.batch_size, num_input_channels, *patch_size, device="meta"))
    except RuntimeError as error:
        raise ValueError(f"the network takes no patch of {patch_size}: {str(error).splitlines()[0]}") from error
    except ValueError as error:  # instance norm, which cannot normalise one voxel
        reason = str(error).splitlines()[0]
        raise ValueError(f"the patch size {patch_size} is too small, take a larger one: {reason}") from error


def _complete(architecture: dict, network: str | None, values: dict) -> dict:
    complete = to_our_architecture(architecture, network, **values)
    arguments = complete["arch_kwargs"]
    others = {k: v for k, v in knobs(complete["network_class_name"]).items() if k not in arguments}
    complete["arch_kwargs"] = {**arguments, **others}
    return complete


def find_plans(dataset: str, plans_name: str) -> tuple[Path, dict, dict]:
    """Read the plans and the ``dataset.json`` of a preprocessed data set.

    Args:
        dataset: Number (``501``) or full name (``Dataset501_BraTS2020``).
        plans_name: Name of the plans, usually ``nnUNetPlans``.

    Returns:
        Path of the plans file, its content, content of ``dataset.json``.

    Raises:
        ValueError: If ``nnUNet_preprocessed`` is unset or anything is not there.
    """
    root = nnUNet_preprocessed.get()
    if root is None:
        raise ValueError("nnUNet_preprocessed is not set: export it as the folder of nnU-Net's preprocessed data")
    if dataset.isdecimal():
        pattern = f"Dataset{int(dataset):03d}_*"
    elif re.fullmatch(r"Dataset[0-9]+_[^/]+", dataset):
        pattern = dataset
    else:
        raise ValueError(f"'{dataset}' is neither the number of a data set nor a name such as Dataset501_BraTS2020")
    folders = sorted(path for path in Path(root).glob(pattern) if path.is_dir())
    if len(folders) != 1:
        found = " and ".join(folder.name for folder in folders) if folders else "none"
        raise ValueError(f"one data set {pattern} is needed in {root}, found {found}: run nnUNetv2_plan_and_preprocess")
    path, dataset_file = folders[0] / f"{plans_name}.json", folders[0] / "dataset.json"
    contents = []
    for file in (path, dataset_file):
        if not file.is_file():
            raise ValueError(f"{file} does not exist: run nnUNetv2_plan_and_preprocess for this data set")
        try:
            contents.append(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{file} is not valid JSON ({error}): plan the data set anew") from error
    check_dataset_json(contents[1], dataset_file)
    return path, *contents


def check_dataset_json(content: object, file: Path) -> None:
    """Refuse a ``dataset.json`` whose labels or channels nnU-Net would not take.

    Raises:
        ValueError: Naming the file and what is wrong in it.
    """
    try:
        labels_of(content, str(file))
        if not channels_of(content, str(file)):
            raise ValueError(f"{file} names no channels in 'channel_names'")
        LabelManager(content["labels"], content.get("regions_class_order"))
    except (AssertionError, RuntimeError) as error:  # nnU-Net's words, which name no file
        raise ValueError(f"{file}: {' '.join(str(error).split())}: correct it there, and plan anew") from error
    except (CaseError, ValueError) as error:
        raise ValueError(f"{error}: correct it there, and plan anew") from error


def write_plans(path: Path, plans: dict) -> None:
    """Replace a plans file in one step, so that nobody ever reads half of it."""
    path = path.resolve()  # a link stays a link
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(plans, file, indent=4)
            file.write("\n")
        shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
