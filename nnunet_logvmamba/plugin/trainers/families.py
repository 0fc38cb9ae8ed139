"""Makes the class of every family of trainers from its row."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_logvmamba.cores import keep_to_usable_threads
from nnunet_logvmamba.errors import Refused
from nnunet_logvmamba.networks.finite import watch
from nnunet_logvmamba.plugin.plans import build_network, is_ours
from nnunet_logvmamba.plugin.trainer_families import FAMILIES
from nnunet_logvmamba.plugin.trainer_names import PREFIX

from .recipe_trainer import RecipeTrainer
from .weights import _refuse_other_weights


def _builder(block_family: str | None, network_name: str | None = None, stock: bool = False):
    """Give a ``build_network_architecture`` for a trainer.

    Args:
        block_family: Family of the blocks; None takes the one that the plan says, or LoG.
        network_name: Dotted path of the network; None takes the one that the plan says, or the default.
        stock: Build nnU-Net's network, and refuse a configuration that names ours, lest a comparison compare nothing.
    """

    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        keep_to_usable_threads()  # after nnU-Net's commands, predictions too, have asked for all cores
        sizes = num_input_channels, num_output_channels, enable_deep_supervision
        if stock and is_ours(configuration_manager.configuration["architecture"]):
            raise Refused(
                "nnUNetTrainerStockNetwork trains the network that nnU-Net planned, but this configuration names "
                "LoG-VMamba: use nnU-Net's own configuration, or one written by logvmamba plans --keep-network."
            )
        overrides: dict[str, Any] = {} if block_family is None else {"family": block_family}
        try:
            if stock:
                network = watch(nnUNetTrainer.build_network_architecture(plans_manager, configuration_manager, *sizes))
            else:
                network = build_network(configuration_manager, *sizes, network_name, **overrides)
        except ValueError as error:
            raise Refused(f"The network cannot be built from this plan: {error}.") from error
        network.register_load_state_dict_pre_hook(_refuse_other_weights)
        return network

    return staticmethod(build_network_architecture)


class _NoSSM(RecipeTrainer):
    def initialize(self):
        """Build as the base does and log how many parameters the state-space part accounts for."""
        super().initialize()
        with torch.device("meta"):
            whole = _builder("log")(
                self.plans_manager,
                self.configuration_manager,
                self.num_input_channels,
                self.label_manager.num_segmentation_heads,
                self.enable_deep_supervision,
            )
        here, there = (sum(p.numel() for p in network.parameters()) for network in (self.network, whole))
        self.print_to_log_file(
            f"NoSSM has {here:,} parameters, LoG-VMamba {there:,}: the state-space part accounts for {there - here:,}."
        )


def made(name: str, base: type[RecipeTrainer], text: str | None, **attributes: Any) -> type[RecipeTrainer]:
    """Make a trainer, under the module that pickles and checkpoints know."""
    return type(name, (base,), {"__module__": __package__, "__qualname__": name, "__doc__": text, **attributes})


def _trainer(
    word: str, text: str, base: type[RecipeTrainer], stock: bool = False, **attributes: Any
) -> type[RecipeTrainer]:
    build = _builder(attributes.get("block_family"), attributes.get("network_name"), stock)
    return made(PREFIX + word, base, text, build_network_architecture=build, **attributes)


TRAINER_OF_FAMILY = {
    word: _trainer(word, base=_NoSSM if word == "NoSSM" else RecipeTrainer, **row) for word, row in FAMILIES.items()
}
