"""Weights and checkpoints that belong to another trainer or network are refused in one sentence."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn, optim

from nnunet_logvmamba.errors import Refused
from nnunet_logvmamba.plugin.checkpoints import first_difference

_MARK = "nnunet_logvmamba"
"""Where a state dict carries its checksum, among what torch itself notes of a module."""


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


def refuse_other_optimizer(optimizer: optim.Optimizer, checkpoint: dict, source: object) -> None:
    """Raise Refused if a checkpoint's optimizer is of another kind: torch would take its settings, or stop later."""
    there = (checkpoint.get("optimizer_state") or {}).get("param_groups")
    if there is None:
        return
    here = optimizer.state_dict()["param_groups"]
    kinds = [_kind(groups) for groups in (here, there)]
    if kinds[0] == kinds[1] and [len(group["params"]) for group in here] == [len(group["params"]) for group in there]:
        return
    differs = f"{kinds[1]}, not {kinds[0]}" if kinds[0] != kinds[1] else "it decays other parameters"
    raise Refused(
        f"{source if isinstance(source, str) else 'The checkpoint'} was trained with another optimizer than is asked "
        f"for now ({differs}): put the recipe back and continue, or train another configuration with "
        "-pretrained_weights."
    )


def _kind(groups: list[dict]) -> str:
    if "betas" not in groups[0]:
        return "SGD" if "momentum" in groups[0] else "another"
    return "AdamW" if groups[0].get("decoupled_weight_decay") else "Adam"


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
    mark = metadata.get(_MARK)
    if mark is not None and mark["checksum"] != _checksum(own):
        raise Refused(
            f"The weights in {mark['file']} are not those that its training saved, so the file is damaged: copy it "
            "anew (logvmamba check MODEL_FOLDER reads all files of a model), or, if they were changed on purpose, save "
            "them as a plain dict(...)."
        )


@contextmanager
def marked_weights(network: nn.Module, file: str) -> Iterator[None]:
    """Have a network put a checksum of its weights beside them while they are saved, for whoever loads them.

    torch does not look at the checksums of a file, and nnU-Net reads it before it asks for any code of ours.

    Args:
        file: What the checkpoint will be called.
    """

    def mark(_module: nn.Module, weights: dict, _prefix: str, metadata: dict) -> None:
        metadata[_MARK] = {"file": file, "checksum": _checksum(weights)}

    hook = network.register_state_dict_post_hook(mark)
    try:
        yield
    finally:
        hook.remove()


def _checksum(weights: Mapping[str, torch.Tensor]) -> int:
    checksum = 0
    for key in sorted(weights):
        content = weights[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        checksum = zlib.crc32(content.numpy(), zlib.crc32(key.encode(), checksum))
    return checksum
