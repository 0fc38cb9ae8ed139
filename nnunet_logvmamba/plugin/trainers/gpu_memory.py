"""What a training says about the memory of its GPU: before the first epoch, and where it does not suffice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import distributed, nn

from nnunet_logvmamba.errors import Refused
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.networks.costs import gib
from nnunet_logvmamba.plugin.memory import ERROR, StepMemory, card_for, estimate
from nnunet_logvmamba.plugin.plans import knobs, to_our_architecture
from nnunet_logvmamba.plugin.recipes import OPTIMIZERS

from .weights import bare_network

if TYPE_CHECKING:
    from .recipe_trainer import RecipeTrainer


def available(device: torch.device) -> tuple[int, int] | None:
    """Give the bytes of a GPU that this process has or can get, and all that there are; None for another device."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device), total


def announce(trainer: RecipeTrainer) -> None:
    """Write into the log what a step is estimated to hold and what there is, on a GPU."""
    found = available(trainer.device)
    if found is None:
        return
    usable, total = found
    try:
        memory = of_step(trainer)
    except Exception as error:  # whatever a network does: an estimate is no reason to stop
        trainer.print_to_log_file(f"GPU memory: not estimated ({type(error).__name__}: {error}).")
        return
    compiled = ", without torch.compile" if trainer._do_i_compile() else ""
    trainer.print_to_log_file(
        f"GPU memory: a step is estimated at {gib(memory.peak)} GiB{compiled} (weights and means "
        f"{gib(memory.weights + memory.optimizer)}, kept for the backward pass {gib(memory.kept)}); "
        f"{gib(usable)} of {gib(total)} GiB can be had."
    )
    if memory.peak * (1 + ERROR) > usable:
        trainer.print_to_log_file(f"ATTENTION: that may not fit; {_ways(trainer, memory, usable)}")


@contextmanager
def in_words(trainer: RecipeTrainer) -> Iterator[None]:
    """End a training whose GPU is out of memory with a sentence that says what would fit."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        found = available(trainer.device)
        if found is None:
            raise
        usable, total = found
        try:
            memory = of_step(trainer)
            needed, ways = f"is estimated at {gib(memory.peak)} GiB", _ways(trainer, memory, usable)
        except Exception as failure:  # which must not hide that memory is what is missing
            needed, ways = f"cannot be estimated ({failure})", "take a smaller batch or patch, or a larger GPU."
        sentence = (
            f"Training ended in epoch {trainer.current_epoch}: the GPU is out of memory, where a step {needed} and "
            f"{gib(usable)} of {gib(total)} GiB could be had; {ways}"
        )
        trainer.print_to_log_file(sentence, also_print_to_console=False)
        raise Refused(sentence) from error


def of_step(trainer: RecipeTrainer, batch_size: int | None = None, **arguments: object) -> StepMemory:
    """Count a step of a training, with another batch or other arguments of its network."""
    content = trainer.configuration_manager.configuration
    if arguments:
        architecture = to_our_architecture(
            content["architecture"], content["patch_size"], trainer.network_name, **arguments
        )
        content = {**content, "architecture": architecture}

    def build(configuration: ConfigurationManager, channels: int, classes: int, several: bool) -> nn.Module:
        return trainer.build_network_architecture(
            trainer.plans_manager, configuration, channels, classes, several and trainer.enable_deep_supervision
        )

    return estimate(
        build,
        ConfigurationManager(content),
        trainer.label_manager,
        trainer.num_input_channels,
        copies=OPTIMIZERS[trainer.recipe.optimizer].copies,
        batch_size=batch_size or trainer.batch_size,
    )


def _ways(trainer: RecipeTrainer, memory: StepMemory, usable: int) -> str:
    """Say what fits: smaller plans, checkpointing, a smaller batch; each with a command whose network is the same."""
    # Where it ought to have fitted, the estimate is too low, so what fits is as much below it.
    limit = int(min(usable, memory.peak) / (1 + ERROR))
    number = trainer.plans_manager.dataset_name[len("Dataset") :].partition("_")[0].lstrip("0")
    derived = (
        f"logvmamba plans -d {number} -p {trainer.plans_manager.plans_name} -c {trainer.configuration_name} --name"
    )
    row = catalogue.NAMES.get(type(bare_network(trainer)).__name__)  # None for one of nnU-Net's own
    network = "" if row is None or row is catalogue.DEFAULT else f" --network {row.name}"
    kept = "" if trainer.plan_names_our_network else " --keep-network"
    ways = []
    if row is not None and (card := int(card_for(limit))) >= 2:
        ways.append(f"plans for {card} GiB (logvmamba plan -d {number} --gpu-memory {card}{network})")
    if _can_checkpoint(trainer, row):
        less = of_step(trainer, checkpointing=True).peak
        if less <= limit:
            ways.append(f"checkpointing, {gib(less)} GiB ({derived} NEW{network} --set checkpointing=true)")
    if trainer.batch_size > 1:
        one = of_step(trainer, 1).peak
        each = max(1.0, (memory.peak - one) / (trainer.batch_size - 1))
        batch = min(trainer.batch_size - 1, 1 + int((limit - one) / each))
        if batch >= 1 and (less := of_step(trainer, batch).peak) <= limit:
            # A configuration has the batch of all GPUs, of which the trainer has its share.
            whole = batch * (distributed.get_world_size() if trainer.is_ddp else 1)
            ways.append(f"a batch of {whole}, {gib(less)} GiB ({derived} NEW{kept} --batch-size {whole})")
    if not ways:
        return "neither a smaller batch nor checkpointing would fit: take a smaller patch or network, or a larger GPU."
    return f"what would fit: {', or '.join(ways)}."


def _can_checkpoint(trainer: RecipeTrainer, row: catalogue.Network | None) -> bool:
    """Whether there is a switch that is still off."""
    arguments = trainer.configuration_manager.network_arch_init_kwargs
    return row is not None and "checkpointing" in knobs(row.path) and not arguments.get("checkpointing", False)
