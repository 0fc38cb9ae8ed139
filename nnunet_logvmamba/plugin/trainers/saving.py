"""Checkpoints of our trainers: each is whole or not there, and ``--c`` takes the first that is whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_logvmamba.errors import Refused, UserError
from nnunet_logvmamba.files import FULL, replacing
from nnunet_logvmamba.networks.blocks.images import times
from nnunet_logvmamba.plugin.checkpoint_damage import damage_of
from nnunet_logvmamba.plugin.checkpoints import CHECKPOINTS, DamagedError, read_checkpoint, why_outdated

from .weights import bare_network, marked_weights

# Writing


def save_whole(trainer: nnUNetTrainer, filename: str, save: Callable[[str], None]) -> None:
    """Save a checkpoint beside its name, read its checksums once, and only then give it the name.

    Args:
        save: nnU-Net's own ``save_checkpoint``.

    Raises:
        Refused: If it cannot be written or is not whole; what had the name before stays, and nothing is left beside it.
    """
    if trainer.local_rank != 0 or trainer.disable_checkpointing:
        save(filename)
        return
    _as_plain_numbers(trainer)
    target = Path(filename)
    marked = marked_weights(bare_network(trainer), f"{target.parent.name}/{target.name}")
    with disk_in_words(target, None), replacing(target) as temporary, marked:
        try:
            save(str(temporary))
        except RuntimeError:  # torch does not pass on what the system said
            _append(temporary)
            raise
        damage = damage_of(temporary)
        if damage is not None:
            raise OSError(errno.EIO, f"what was read back is not what was written, {damage}", str(target))


@contextmanager
def disk_in_words(folder: Path, numbers: Collection[int] | None = (*FULL, errno.EROFS)) -> Iterator[None]:
    """Turn a disk that is full or became read-only into one sentence.

    Args:
        folder: Named where the system does not say which file it was.
        numbers: Which of the system's errors; None means all.

    Raises:
        Refused: In place of such an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (numbers is not None and error.errno not in numbers):
            raise
        full = error.errno in FULL
        reason = os.strerror(error.errno).lower() if full else error.strerror
        raise Refused(
            f"{error.filename or folder} could not be written ({reason}): {'make room' if full else 'put that right'}, "
            "then go on with nnUNetv2_train … --c; what was saved before is as it was."
        ) from error


def _append(path: Path) -> None:
    """Raise the OSError that writing to a file ends with, if it does."""
    with path.open("ab") as file:
        file.write(bytes(1 << 20))
        os.fsync(file.fileno())


def _as_plain_numbers(trainer: nnUNetTrainer) -> None:
    """Turn NumPy's numbers in the log into Python's of the same value, so that the file is read without NumPy."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(one) for one in value]
        return value.item() if isinstance(value, np.generic) else value

    for values in trainer.logger.get_checkpoint().values():
        values[:] = plain(values)
    trainer._best_ema = plain(trainer._best_ema)


# Reading


@dataclass(frozen=True)
class Whole:
    """A checkpoint to load.

    Attributes:
        source: What nnU-Net takes: a path, or the content.
        content: What is in it.
        why: Why it was chosen, None where there was no choice.
        best_ema: The moving average of the Dice that ``checkpoint_best.pth`` beside it was saved for.
    """

    source: str | dict[str, Any]
    content: dict[str, Any]
    why: str | None = None
    best_ema: float | None = None


def read_whole(source: str | dict[str, Any], *, choose: bool) -> Whole:
    """Read the checkpoint that is to be loaded, as data.

    Args:
        source: Path that nnU-Net has chosen, because it is there; the content is given as it is.
        choose: Take the first of final, latest and best beside it that is whole and of the training that began last,
            as ``--c`` does, but no final of fewer epochs than another, which was made longer since; else that file or
            none.

    Raises:
        Refused: If there is none that is whole, or one holds more than data.
        FileNotFoundError: If there is no choice and no file.
    """
    if not isinstance(source, str):
        return Whole(source, source)
    path = Path(source)
    if not choose or path.name not in CHECKPOINTS:
        try:
            return Whole(source, _read(path))
        except DamagedError as error:
            raise Refused(f"{error}, or go on with --c, which takes the next checkpoint that is whole.") from error
    whole, why_not = {}, {}
    for candidate in (path.with_name(name) for name in CHECKPOINTS):
        try:
            whole[candidate] = _read(candidate)
        except FileNotFoundError:
            why_not[candidate] = "not there"
        except DamagedError as error:
            why_not[candidate] = f"damaged ({error.damage})"
    outdated = why_outdated(whole)
    whole = {candidate: content for candidate, content in whole.items() if candidate not in outdated}
    why_not |= outdated
    reasons = "; ".join(
        f"{name} is {why_not[path.with_name(name)]}" for name in CHECKPOINTS if path.with_name(name) in why_not
    )
    if not whole:
        raise Refused(
            f"{path.parent} holds no whole checkpoint ({reasons}): copy one back, or remove them to start anew."
        )
    chosen, content = next(iter(whole.items()))
    why = f"--c goes on from {chosen.name}, which has {content.get('current_epoch')} epoch(s)"
    best = whole.get(path.with_name("checkpoint_best.pth"), {})
    return Whole(str(chosen), content, f"{why}; {reasons}" if reasons else why, best.get("_best_ema"))


@contextmanager
def as_file(source: str | dict[str, Any]) -> Iterator[str]:
    """Give a file with a checkpoint, which is what nnU-Net loads, although it says that the content would do."""
    if isinstance(source, str):
        yield source
        return
    with TemporaryDirectory() as folder:
        file = os.path.join(folder, CHECKPOINTS[0])
        torch.save(source, file)
        yield file


def say_and_keep_best(trainer: nnUNetTrainer, found: Whole) -> None:
    """Say in the log why a checkpoint was chosen, and let no later epoch be a best that is worse than the one saved.

    nnU-Net saves ``latest`` before it knows whether the same epoch is a new best.
    """
    if found.why is not None:
        trainer.print_to_log_file(found.why)
    if found.best_ema is not None:
        trainer._best_ema = max(found.best_ema, trainer._best_ema or 0)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_checkpoint(path)
    except DamagedError:
        raise
    except UserError as error:
        raise Refused(f"{error}.") from error


def check_pretrained_weights(command: Sequence[str]) -> None:
    """Refuse a file that ``-pretrained_weights`` names before nnU-Net reads it, which would run what it holds.

    Args:
        command: ``sys.argv``.

    Raises:
        Refused: If it is damaged, or holds more than data.
    """
    for path in _pretrained_weights(command):
        if path.is_file():
            try:
                read_checkpoint(path)
            except UserError as error:
                raise Refused(f"{error}.") from error


def check_patch_of_pretrained_weights(command: Sequence[str], patch_size: Sequence[int]) -> None:
    """Refuse weights of another patch for a network whose weights are those of one: their shapes need not tell.

    Args:
        command: ``sys.argv``.
        patch_size: Voxels per axis that the network is built for.

    Raises:
        ValueError: Naming the file and both patches.
    """
    for path in filter(Path.is_file, _pretrained_weights(command)):
        arguments = read_checkpoint(path).get("init_args", {})
        if not {"plans", "configuration"} <= arguments.keys():
            continue  # bare weights say nothing of where they come from
        there = PlansManager(arguments["plans"]).get_configuration(arguments["configuration"]).patch_size
        if list(there) != list(patch_size):
            raise ValueError(
                f"{path} was trained with the patch {times(there)}, and this configuration has {times(patch_size)}, "
                "for which the network has weights of its own: write one with that patch (logvmamba plans --patch-size)"
            )


def _pretrained_weights(command: Sequence[str]) -> list[Path]:
    found = []
    for word, following in zip(command, [*command[1:], ""]):
        option, sign, value = word.partition("=")
        if len(option) > len("-p") and "-pretrained_weights".startswith(option):  # argparse takes parts of it
            found.append(Path(value if sign else following))
    return found
