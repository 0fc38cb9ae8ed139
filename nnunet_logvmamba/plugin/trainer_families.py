"""One row per family of trainers: its word, its text and what it trains; nothing of it needs torch."""

from __future__ import annotations

from typing import Any

from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.plugin.recipes import PUBLISHED_RECIPES, RECIPES

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
"""By the word in a trainer's name, at least one for each network of the catalogue: its docstring ``text``, whether it
builds nnU-Net's network (``stock``), and attributes of ``RecipeTrainer``."""
