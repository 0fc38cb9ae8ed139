"""One row per family of trainers: its word, its text and what it trains. The classes are made from the rows."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_logvmamba.errors import Refused
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.networks.finite import watch
from nnunet_logvmamba.plugin.plans import build_network, is_ours
from nnunet_logvmamba.plugin.recipes import PUBLISHED_RECIPES, RECIPES
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


_SWIN_UMAMBA = catalogue.row("SwinUMamba")
_SWIN = {"network_name": catalogue.row("LoGVMambaSwinUNet").path, "default_recipe": RECIPES["paper"]}

FAMILIES: dict[str, dict[str, Any]] = {
    "LoGVMamba": {
        "text": "LoG-VMamba: local and global tokens around a selective scan; a configuration of ours is built as it "
        "stands."
    },
    "LVMamba": {"text": "Ablation: local tokens only.", "block_family": "l"},
    "GVMamba": {"text": "Ablation: global tokens only.", "block_family": "g"},
    "VMamba": {"text": "Ablation: neither local nor global tokens, the plain VSS block.", "block_family": "vss"},
    "NoSSM": {
        "text": "Control: the blocks without their state-space part, y = D * u in place of the scan and no global "
        "tokens.",
        "block_family": "no_ssm",
        "base": _NoSSM,
    },
    "LoGVMambaSwin": {
        "text": "The paper's 2D network: VMamba encoder, LoG-VMamba decoder; a configuration of ours is built as it "
        "stands.",
        **_SWIN,
    },
    "VMambaSwin": {
        "text": "What the paper's 2D network is built on: the same with VSS blocks in the decoder (Swin-UMamba†).",
        "block_family": "vss",
        **_SWIN,
    },
    f"{_SWIN_UMAMBA.trainer}D": {
        "text": "Swin-UMamba†: VMambaSwin by its authors' name, with their recipe.",
        "block_family": "vss",
        "network_name": _SWIN["network_name"],
        "default_recipe": PUBLISHED_RECIPES[_SWIN_UMAMBA.recipe],
        "published_recipe": _SWIN_UMAMBA.recipe,
    },
    "StockNetwork": {
        "text": "The network as nnU-Net plans it, trained with our recipes, seeds and lengths, for comparisons on "
        "equal terms.",
        "stock": True,
        "published_recipe": "sgd",
    },
}
for _network in catalogue.NETWORKS:
    _row = {
        "text": f"{_network.line}.",
        "network_name": _network.path,
        "default_recipe": PUBLISHED_RECIPES[_network.recipe],
        "published_recipe": _network.recipe,
    }
    FAMILIES.setdefault(_network.trainer, _row)
"""By the word in a trainer's name, at least one for each network of the catalogue: its docstring ``text``, the class it
is made from (``base``, else RecipeTrainer), whether it builds nnU-Net's network (``stock``), and attributes of
:class:`RecipeTrainer`."""


def made(name: str, base: type[RecipeTrainer], text: str | None, **attributes: Any) -> type[RecipeTrainer]:
    """Make a trainer, under the module that pickles and checkpoints know."""
    return type(name, (base,), {"__module__": __package__, "__qualname__": name, "__doc__": text, **attributes})


def _trainer(
    word: str, text: str, base: type[RecipeTrainer] = RecipeTrainer, stock: bool = False, **attributes: Any
) -> type[RecipeTrainer]:
    build = _builder(attributes.get("block_family"), attributes.get("network_name"), stock)
    return made(PREFIX + word, base, text, build_network_architecture=build, **attributes)


TRAINER_OF_FAMILY = {word: _trainer(word, **row) for word, row in FAMILIES.items()}
