"""Scores of our own beside nnU-Net's ``summary.json``, written so that no validation is lost for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_logvmamba.files import replace_text

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

FOLDER = "validation"
"""In the folder of a fold: nnU-Net's predictions of the validation cases and all scores of them."""


def write_scores(
    trainer: nnUNetTrainer,
    name: str,
    what: str,
    score: Callable[[nnUNetTrainer, Path], dict | None],
    in_words: Callable[[dict], str],
) -> Path | None:
    """Score what a trainer has predicted for its validation cases, write a JSON file, and say the means in the log.

    Where the files cannot be scored or the scores not written, the log says why and no file is left, neither half of
    one nor an older one. nnU-Net's ``summary.json`` is never touched.

    Args:
        name: Of the file, in the folder ``validation`` of the fold.
        what: What is scored, in the plural, for the log.
        score: Gives the content from the trainer and the folder ``validation``; None where there is nothing to score.
        in_words: Gives the means of a content in words.

    Returns:
        The file, or None on ranks above 0 and where there is none.
    """
    if trainer.local_rank != 0:
        return None
    from nnunet_logvmamba.evaluation.cases import CaseError  # late, since only the end of a training needs them
    from nnunet_logvmamba.evaluation.report import as_json

    target = Path(trainer.output_folder) / FOLDER / name
    try:
        target.unlink(missing_ok=True)
        content = score(trainer, target.parent)
        if content is None:
            return None
        replace_text(target, as_json(content))
    except (CaseError, OSError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        trainer.print_to_log_file(f"No {name}, {what} cannot be scored: {reason}", also_print_to_console=True)
        return None
    trainer.print_to_log_file(f"{what.capitalize()} ({name}): {in_words(content)}", also_print_to_console=True)
    return target


def mean_in_words(metric: str, mean: float | None, unit: str = "1") -> str:
    """Give ``mean nsd 0.9000``, with the unit where there is one."""
    if mean is None:
        return f"mean {metric} undefined"
    return f"mean {metric} {mean:.4f}{'' if unit == '1' else f' {unit}'}"
