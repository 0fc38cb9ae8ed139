"""Adds configurations to a plan that carry our networks and settings, and checks them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from math import prod
from pathlib import Path

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.files import locked, read_json
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.plugin.plans.architecture import NETWORK_CLASS_NAME, build_network, is_ours, to_our_architecture
from nnunet_logvmamba.plugin.plans.files import configurations_of, write_plans
from nnunet_logvmamba.plugin.plans.settings import (
    TRAINING_KEY,
    check_free,
    check_knobs,
    check_new_configuration,
    knobs,
)


def differing(plans: dict, others: dict, configuration: str) -> list[str] | None:
    """Give the keys in which a configuration differs between two plans, what it inherits included.

    Returns:
        Their names, sorted; None if the other plans do not have it.
    """
    wanted = PlansManager(plans).get_configuration(configuration).configuration
    try:
        found = PlansManager(others).get_configuration(configuration).configuration
    except (KeyError, RuntimeError, ValueError):
        return None
    wanted, found = (json.loads(json.dumps(each)) for each in (wanted, found))
    return sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))


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
        network: Dotted path of our network; None means that of ``base`` if it is ours, else the default.
        keep_network: Leave the network of ``base`` in place; our trainers translate it, any other trains it as it is.
        overwrite: Replace configurations that have the new names.

    Returns:
        The new plans, and the names of the configurations that were added.

    Raises:
        UserError: If anything does not fit or a network cannot be built.
    """
    settings = check_new_configuration(
        plans,
        base,
        name,
        arguments=arguments,
        training=training,
        network=network,
        keep_network=keep_network,
        overwrite=overwrite,
    )
    manager = PlansManager(plans)
    resolved = manager.get_configuration(base)
    planned = resolved.configuration["architecture"]
    check_knobs(arguments or {}, network or (planned["network_class_name"] if is_ours(planned) else NETWORK_CLASS_NAME))
    names = {base: name}
    previous, following = resolved.previous_stage_name, resolved.next_stage_names or []
    for partner in [*([] if previous is None else [previous]), *following]:
        names[partner] = name.replace(base, partner, 1) if base in name else f"{name}_{partner}"
    for old, new in names.items():
        check_free(plans["configurations"], old, new, overwrite=overwrite)

    result = deepcopy(plans)
    for old, new in names.items():
        parent = manager.get_configuration(old)
        entry: dict = {"inherits_from": old}
        if not keep_network:
            entry["architecture"] = complete_architecture(
                parent.configuration["architecture"], patch_size or parent.patch_size, network, arguments or {}
            )
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
            raise UserError(f"'{new}' cannot be replaced, because '{base}' is derived from it") from error
        check_configuration(result, dataset_json, new)
    return result, list(names.values())


def write_configurations(path: Path, plans: dict, names: Sequence[str], *, overwrite: bool = False) -> None:
    """Put new configurations into a plans file as it is by now, so that what was added to it meanwhile stays.

    Args:
        path: The plans file.
        plans: What ``add_configuration`` made of its content.
        names: The new configurations.
        overwrite: Replace configurations that have these names.

    Raises:
        UserError: If they are there by now, or what they were made from has changed; nothing is written then.
    """
    parents: list[str] = []
    for name in names:
        while (name := plans["configurations"][name].get("inherits_from")) is not None:
            parents.append(name)

    def sources(content: dict) -> str:
        configurations = configurations_of(content, path)
        return json.dumps({**content, "configurations": {name: configurations.get(name) for name in parents}})

    with locked(path.parent):
        now = read_json(path, "plan the data set anew")
        if sources(now) != sources(plans):
            raise UserError(f"{path} was changed by another command, which this one would undo: run it again")
        for name in names:
            check_free(now["configurations"], plans["configurations"][name]["inherits_from"], name, overwrite=overwrite)
            now["configurations"][name] = plans["configurations"][name]
        write_plans(path, now)


def next_stages(plans: PlansManager, name: str) -> list[str]:
    """Configurations whose preprocessed cases nnU-Net's final validation of a first stage asks for.

    The second stage of a cascade has those of another configuration, whose name is given in its place.
    """
    stages = plans.get_configuration(name).next_stage_names
    others = {}
    for other in plans.available_configurations if stages else ():
        with suppress(RuntimeError, ValueError):  # it inherits from one that is gone, which is its own affair
            others[other] = plans.get_configuration(other)
    found = []
    for stage in stages or []:
        if stage in others:  # else nnU-Net says so
            data = others[stage].data_identifier
            same = [it for it, one in others.items() if one.data_identifier == data]
            found.append(next((it for it in same if others[it].previous_stage_name is None), stage))
    return found


def check_configuration(plans: dict, dataset_json: dict, name: str) -> None:
    """Build a configuration's network without memory and compare its patch with its strides.

    Raises:
        UserError: Naming the configuration and what does not fit.
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
        ours = is_ours(configuration.configuration["architecture"])
        if "pretrained" in settings and ours and not network.pretrainable:
            names = catalogue.PRETRAINABLE
            raise UserError(f"'pretrained' under '{TRAINING_KEY}' is for {names}: add --network {names}")
    except (ValueError, RuntimeError) as error:
        raise UserError(f"configuration '{name}' cannot be built: {str(error).splitlines()[0]}") from error


def check_patch(network: nn.Module, configuration: ConfigurationManager, num_input_channels: int) -> None:
    """Send a batch of patches through a network on the meta device, which needs no memory and hardly any time.

    Raises:
        UserError: If the patch is not divisible by the strides (unless the network pads it itself), there is no batch,
            or the network takes no such patch.
    """
    patch_size, axes = list(configuration.patch_size), len(configuration.spacing)
    pads = getattr(network, "pads_itself", False)
    strides = configuration.configuration["architecture"]["arch_kwargs"].get("strides", [])  # not every network has any
    totals = [1] * axes if pads or not strides else [prod(axis) for axis in zip(*strides)]
    least = getattr(network, "smallest_input", 1)
    if len(patch_size) != axes:
        raise UserError(
            f"the patch size {patch_size} has {len(patch_size)} axes, but the configuration has {axes}: give "
            f"{axes} numbers, in the order of the planned patch"
        )
    if any(size < least or size % total for size, total in zip(patch_size, totals)):
        needed = f"have {axes} axes of at least {least}" if pads else f"be divisible by {totals}, axis by axis"
        raise UserError(f"the patch size {patch_size} must {needed}")
    if configuration.batch_size < 1:
        raise UserError(f"the batch size must be at least 1, not {configuration.batch_size}")
    try:
        network(torch.empty(configuration.batch_size, num_input_channels, *patch_size, device="meta"))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if "too small" in reason or "more than 1" in reason:  # ours, or instance norm's, which cannot take one voxel
            raise UserError(f"the patch size {patch_size} is too small, take a larger one: {reason}") from error
        raise UserError(f"the network takes no patch of {patch_size}: {reason}") from error


def complete_architecture(architecture: dict, patch_size: Sequence[int], network: str | None, values: dict) -> dict:
    """Give an architecture of ours with all its knobs, those that nobody named at their defaults."""
    complete = to_our_architecture(architecture, patch_size, network, **values)
    arguments = complete["arch_kwargs"]
    if "patch_size" in arguments:  # of a base that is ours, it was that of the base's patch
        arguments["patch_size"] = list(patch_size)
    others = {k: v for k, v in knobs(complete["network_class_name"]).items() if k not in arguments}
    complete["arch_kwargs"] = {**arguments, **others}
    return complete
