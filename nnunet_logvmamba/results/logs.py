"""What a training logged epoch by epoch, by nnU-Net's names and ``seconds``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from statistics import fmean

_LINES = {
    "train_losses": r"train_loss (\S+)",
    "val_losses": r"val_loss (\S+)",
    "lrs": r"Current learning rate: (\S+)",
    "seconds": r"Epoch time: (\S+) s",
}


def read_logging(fold: Path, of_checkpoint: Mapping[str, Sequence] | None) -> Mapping[str, Sequence]:
    """Give what was logged per epoch, from a checkpoint or nnU-Net's text logs, which has more; empty without any.

    Keys are nnU-Net's (``train_losses``, ``val_losses``, ``mean_fg_dice``, ``ema_fg_dice``, ``lrs``) and ``seconds``.
    """
    text = read_text_logs(fold)
    if of_checkpoint is None or _num_epochs(of_checkpoint) < _num_epochs(text):
        return text
    return of_checkpoint


def _num_epochs(logging: Mapping[str, Sequence]) -> int:
    return sum(isfinite(loss) for loss in logging.get("train_losses", []))


def read_text_logs(fold: Path) -> dict[str, list[float]]:
    """Give what nnU-Net's text logs say, older ones first; NaN for what they do not, such as moving averages."""
    epochs: dict[int, dict[str, float]] = {}
    for log in logs_of(fold):
        epoch = None
        text = log.read_text(encoding="utf-8", errors="replace")
        for line in text[: text.rfind("\n") + 1].splitlines():  # the last one may be cut off within a number
            begun = re.search(r": Epoch (\d+)\s*$", line)
            if begun:
                epoch = int(begun[1])
                # What follows in an older log was never reached again, or belongs to an earlier training.
                epochs = {earlier: values for earlier, values in epochs.items() if earlier < epoch}
                epochs[epoch] = {}
            if epoch is None:
                continue
            for name, pattern in _LINES.items():
                if value := re.search(pattern, line):
                    epochs[epoch][name] = _number(value[1])
            if found := re.search(r"Pseudo dice \[(.*)\]", line):
                numbers = [float(word) for word in re.findall(r"(?<![\w.])\d+\.?\d*(?:e-?\d+)?(?![\w.])", found[1])]
                epochs[epoch]["mean_fg_dice"] = fmean(numbers) if numbers else nan
    if not epochs:
        return {}
    names = (*_LINES, "mean_fg_dice")
    return {name: [epochs.get(epoch, {}).get(name, nan) for epoch in range(max(epochs) + 1)] for name in names}


def _number(word: str) -> float:
    """Give the number that a word is, NaN if the disk was full within it."""
    try:
        return float(word)
    except ValueError:
        return nan


def logs_of(fold: Path) -> list[Path]:
    """Give nnU-Net's text logs of a fold in the order in which they were begun."""
    return sorted(fold.glob("training_log_*.txt"), key=_begun)


def _begun(log: Path) -> tuple[list[int], int]:
    """When a log was begun, which its name says in numbers of any width; copying changes the time of the file."""
    return [int(number) for number in re.findall(r"\d+", log.name)[:6]], log.stat().st_mtime_ns
