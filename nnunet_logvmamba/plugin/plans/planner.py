"""nnU-Net's planning with a network of ours, and with what a training step of it needs in memory."""

from __future__ import annotations

import contextlib
import io
import json
from math import prod
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.files import locked, read_json
from nnunet_logvmamba.networks.catalogue import Network
from nnunet_logvmamba.plugin.memory import StepMemory, budget, card_for, estimate
from nnunet_logvmamba.plugin.recipes import DEFAULT_RECIPE, OPTIMIZERS

from .architecture import build_network
from .configurations import check_configuration, complete_architecture
from .files import NNUNETS_CONFIGURATIONS, configurations_of, write_plans
from .settings import check_knobs

COPIES = OPTIMIZERS[DEFAULT_RECIPE.optimizer].copies
_NEAR = 1.3
"""Patches whose memory, guessed by their voxels, is beyond so many times the budget are not counted one by one."""


class LoGVMambaPlanner(ExperimentPlanner):
    """nnU-Net's own planner but for three things: the network, its memory, and the batch that the rest is enough for.

    Topology, spacing, how a patch shrinks and the least batch are nnU-Net's. Preprocessed data are shared with
    nnU-Net's default plans, as those of its residual encoder planners are; a low resolution, which follows from the
    patch, has its own.

    Args:
        dataset_name_or_id: As for nnU-Net.
        gpu_memory_target_in_gb: Size of the card in GiB, of which a step fills no more than ``memory.budget`` says.
        plans_name: Of the file without its ending.
        network: What is planned. Configurations that it is not made for are left out.
        knobs: Its arguments beyond nnU-Net's.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float,
        plans_name: str,
        network: Network,
        knobs: dict[str, Any],
    ):
        super().__init__(dataset_name_or_id, gpu_memory_target_in_gb, plans_name=plans_name)
        self.network, self.knobs = network, knobs
        self._pads = network.load().pads_itself
        self.budget = budget(gpu_memory_target_in_gb)
        # nnU-Net compares its estimate with a reference value that is scaled from one memory and one batch to others.
        # Ours are bytes of the least batch, so there is nothing to scale.
        self.UNet_reference_val_2d = self.UNet_reference_val_3d = self.budget
        self.UNet_reference_val_corresp_GB = self.UNet_vram_target_GB
        self.UNet_reference_val_corresp_bs_2d = self.UNet_reference_val_corresp_bs_3d = self.UNet_min_batch_size
        self._labels = LabelManager(self.dataset_json["labels"], self.dataset_json.get("regions_class_order"))
        self._largest_batch: dict[str, int] = {}
        self._counted: dict[int, tuple[int, StepMemory]] = {}
        self._steps: dict[str, StepMemory] = {}
        self.memory: dict[str, StepMemory] = {}

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Give the folder of preprocessed data; what does not hang on the patch is that of nnU-Net's default plans."""
        shared = configuration_name in ("2d", "3d_fullres")
        return f"{'nnUNetPlans' if shared else self.plans_identifier}_{configuration_name}"

    def static_estimate_VRAM_usage(  # type: ignore[override]  # the network and its knobs are of this object
        self, patch_size, input_channels, output_channels, arch_class_name, arch_kwargs, arch_kwargs_req_import
    ):
        """Give the bytes of a step with the least batch.

        Raises:
            UserError: If no patch fits.
        """
        axes, voxels = len(patch_size), prod(map(int, patch_size))
        if axes not in self.network.dims:
            return 1  # it is left out in the end
        if axes in self._counted and not self._pads:  # what is padded inside does not grow with the patch
            before, memory = self._counted[axes]
            fixed = memory.weights + memory.optimizer
            guess = fixed + (memory.peak - fixed) * voxels / before
            if guess > _NEAR * self.budget:
                return guess
        architecture = {
            "network_class_name": arch_class_name,
            "arch_kwargs": arch_kwargs,
            "_kw_requires_import": arch_kwargs_req_import,
        }
        patch = [int(size) for size in patch_size]
        try:
            configuration = {"architecture": self._ours(architecture, patch), "patch_size": patch}
            memory = self._step(configuration, input_channels, self.UNet_min_batch_size)
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            if axes in self._counted:  # a larger patch was taken
                raise self._too_small(patch, reason) from error
            shape = " x ".join(map(str, patch))
            raise UserError(f"{self.network.name} cannot be planned with a patch of {shape}: {reason}") from error
        self._counted[axes] = (voxels, memory)
        if memory.peak > self.budget and max(patch) <= 4 * self.UNet_featuremap_min_edge_length:
            raise self._too_small(patch, f"a step would need a card of {card_for(memory.peak):.1f} GiB")
        return memory.peak

    def _too_small(self, patch: list[int], why: str) -> UserError:
        return UserError(
            f"{self.network.name} does not fit a card of {self.UNet_vram_target_GB:g} GiB, not even with two patches "
            f"of {' x '.join(map(str, patch))} ({why}): name a larger --gpu-memory or another --network"
        )

    def _ours(self, architecture: dict, patch: list[int]) -> dict:
        return complete_architecture(architecture, patch, self.network.path, self.knobs)

    def _step(self, configuration: dict, channels: int, batch_size: int) -> StepMemory:
        """Count a step, or give what was counted for the same network, patch and batch."""
        what = [configuration["architecture"], list(configuration["patch_size"]), channels, batch_size]
        key = json.dumps(what, default=repr)
        if key not in self._steps:
            manager = ConfigurationManager(configuration)
            self._steps[key] = estimate(
                build_network, manager, self._labels, channels, copies=COPIES, batch_size=batch_size
            )
        return self._steps[key]

    def get_plans_for_configuration(self, spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache):
        """Plan as nnU-Net does, and put our network in the place of its own."""
        plan = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        voxels = prod(map(int, plan["patch_size"]))
        self._largest_batch[data_identifier] = round(approximate_n_voxels_dataset * self.max_dataset_covered / voxels)
        if len(spacing) in self.network.dims:
            plan["architecture"] = self._ours(plan["architecture"], list(map(int, plan["patch_size"])))
        return plan

    def save_plans(self, plans: dict) -> None:
        """Leave out what the network is not made for, fill the memory with patches, check, and replace the file.

        What nnU-Net's file of the same name holds beyond its own configurations stays; those of its own that are left
        out now go, for they are of another network.

        Raises:
            UserError: If nothing is left, or a configuration cannot be built; nothing is written then.
        """
        configurations = plans["configurations"]
        left_out = {name for name, plan in configurations.items() if not self._is_planned(plan)}
        left_out |= {name for name, plan in configurations.items() if plan.get("inherits_from") in left_out}
        for name in left_out:
            del configurations[name]
        if not configurations:
            raise UserError(
                f"{self.network.name} is for {self.network.dims[0]}D and this data set is not: name another"
            )
        recursive_fix_for_json_export(plans)
        for name, plan in configurations.items():
            self._fill(plan, plans, name)
            check_configuration(plans, self.dataset_json, name)
        recursive_fix_for_json_export(plans)
        file = Path(str(nnUNet_preprocessed)) / self.dataset_name / f"{self.plans_identifier}.json"
        with locked(file.parent):
            if file.is_file():
                there = configurations_of(read_json(file, "remove it, and the data set is planned anew"), file)
                for name in there.keys() - configurations.keys() - {*NNUNETS_CONFIGURATIONS}:
                    configurations[name] = there[name]
            write_plans(file, plans)

    def _is_planned(self, plan: dict) -> bool:
        return "spacing" not in plan or len(plan["spacing"]) in self.network.dims

    def configuration(self, name: str) -> ConfigurationManager:
        """Give a configuration that was planned."""
        return PlansManager(self.plans).get_configuration(name)

    def _fill(self, plan: dict, plans: dict, name: str) -> None:
        """Choose the largest batch that fits, within what nnU-Net allows of a data set, and remember its memory."""
        manager = PlansManager(plans)
        configuration = manager.get_configuration(name)
        channels = determine_num_input_channels(manager, configuration, self.dataset_json)

        def step(batch_size: int) -> StepMemory:
            return self._step(configuration.configuration, channels, batch_size)

        least = self.UNet_min_batch_size
        if "batch_size" not in plan:  # the second stage of a cascade has that of the full resolution
            self.memory[name] = step(configuration.batch_size)
            return
        fewest = step(least)
        batch = max(least, self._largest_batch[plan["data_identifier"]] if fewest.peak < self.budget else least)
        found = fewest if batch == least else step(batch)
        while batch > least and found.peak > self.budget:
            share = (self.budget - fewest.peak) / (found.peak - fewest.peak)  # memory grows as the batch, or nearly so
            batch = min(batch - 1, least + int(share * (batch - least)))
            found = step(batch)
        plan["batch_size"], self.memory[name] = batch, found


def plan(
    dataset: str, gpu_memory_gib: float, plans_name: str, network: Network, knobs: dict[str, Any], *, processes: int
) -> LoGVMambaPlanner:
    """Plan a data set, after its fingerprint is taken if there is none.

    Args:
        dataset: Full name.
        gpu_memory_gib: Of the card.
        plans_name: Of the file without its ending.
        network: What is planned.
        knobs: Its arguments beyond nnU-Net's.
        processes: For the fingerprint.

    Returns:
        The planner, which knows ``plans`` and the ``memory`` of every configuration.

    Raises:
        UserError: If something does not fit; no plans are written then.
    """
    check_knobs(knobs, network.path)
    file = Path(str(nnUNet_preprocessed)) / dataset / "dataset_fingerprint.json"
    if not file.is_file():
        try:
            extract_fingerprint_dataset(int(dataset[len("Dataset") :].partition("_")[0]), num_processes=processes)
        except Exception as error:  # of readers, of which every one has its own
            raise UserError(
                f"nnU-Net could not take the fingerprint of {dataset} ({str(error).splitlines()[0]}): "
                f"logvmamba check {Path(str(nnUNet_raw)) / dataset} says what is wrong"
            ) from error
    read_json(file, "remove it, and it is taken anew")
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            planner = LoGVMambaPlanner(dataset, gpu_memory_gib, plans_name, network, knobs)
            planner.plan_experiment()
        except UserError:
            raise
        except (KeyError, TypeError, IndexError, ValueError, AssertionError) as error:
            raise UserError(
                f"{file} is not as nnU-Net writes it ({error!r}): remove it, and it is taken anew"
            ) from error
    return planner
