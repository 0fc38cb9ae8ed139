"""Weights and checkpoints that belong to another trainer or network are refused in one sentence."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_logvmamba.errors import Refused
from nnunet_logvmamba.plugin.checkpoints import first_difference


def refuse_foreign_checkpoint(trainer: nnUNetTrainer, checkpoint: dict, source: object) -> None:
    """Raise Refused unless a checkpoint was written by a trainer of this name and fits its network."""
    name = source if isinstance(source, str) else "the checkpoint"
    writer = checkpoint.get("trainer_name")
    if writer != type(trainer).__name__:
        raise Refused(
            f"{name} was written by the trainer {writer}, not by {type(trainer).__name__}: continue with "
            f"-tr {writer}, or remove the file to start anew."
        )
    weights = {key.removeprefix("module."): value for key, value in checkpoint["network_weights"].items()}
    difference = first_difference(bare_network(trainer), weights)
    if difference is not None:
        raise Refused(
            f"{name} holds another network than configuration '{trainer.configuration_name}' builds ({difference}): "
            f"use the plans it was trained with, or remove the file to start anew."
        )


def bare_network(trainer: nnUNetTrainer) -> nn.Module:
    """Give a trainer's network without what several GPUs and compilation wrap around it."""
    network = trainer.network.module if trainer.is_ddp else trainer.network
    return getattr(network, "_orig_mod", network)


def _refuse_other_weights(network: nn.Module, weights: dict, prefix: str, metadata: dict, strict: bool, *_) -> None:
    # nnUNetv2_predict loads weights into the network itself, so the network has to speak for us.
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    difference = first_difference(network, own) if strict else None
    if difference is not None:
        raise Refused(
            f"These weights belong to another network than the plans describe ({difference}): use the plans.json that "
            f"was written when they were trained."
        )
