"""Reads predictions of cases that were in no fold, as ``logvmamba run`` and studies make and score them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_logvmamba import files
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.dataset_json import labels_of
from nnunet_logvmamba.results import runs
from nnunet_logvmamba.results.record import RECORD_NAME

PREDICTED_BY = "predicted_by.json"
"""In a folder of predictions: which scans, by which model and with which of its folds."""
SCORED_AGAINST = "scored_against.json"
"""Digests of the references that predictions were scored against; where it is not, they are not scored."""
SCORES = "scores"
"""Folder of the scores of the predictions beside it."""

_AGAIN = "give the command that predicted again, with --references"


@dataclass(frozen=True)
class Prediction(runs.Run):
    """Held-out cases, predicted with one or more folds of a training together, with their scores.

    ``folder`` is that of the predictions, ``predicted_with`` names the folds, and ``digests`` are those of the
    references by file. The record is that of the first fold.
    """

    predicted_with: tuple[str, ...]
    digests: dict[str, str]

    @property
    def folds(self) -> tuple[str, ...]:
        """The folds that predicted together."""
        return self.predicted_with

    @property
    def fold(self) -> str:
        """The same in one word."""
        return "+".join(self.predicted_with)

    @property
    def name(self) -> str:
        """How the predictions are called in messages."""
        return str(self.folder)


def predictions_at(path: Path) -> list[Path]:
    """Give a folder if it holds such predictions, else those in it that do, in the order of their names.

    It is none where there are trainings, beside which somebody may have put predictions.
    """
    if (path / PREDICTED_BY).is_file():
        return [path]
    if not path.is_dir() or runs.folds_below(runs.absolute(path)):
        return []
    return sorted(child for child in path.iterdir() if (child / PREDICTED_BY).is_file())


def read_prediction(folder: Path) -> Prediction:
    """Read predictions that are scored.

    Raises:
        UserError: If they are not finished or not scored, or a file is missing or damaged; the message names it.
    """
    said = _read(folder / PREDICTED_BY)
    if said.get("finished") is not True:
        raise UserError(f"{folder} is not predicted to its end: give the command that began it again")
    scored = folder / SCORES / "scores.json"
    if not (folder / SCORED_AGAINST).is_file() or not scored.is_file():
        raise UserError(f"{folder} is not scored: {_AGAIN}")
    try:
        trainer, plans, configuration = said["model"].split("__")
        dataset, folds = str(said["dataset"]), tuple(map(str, said["folds"]))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / PREDICTED_BY} is not what logvmamba writes ({error!r}): predict again") from error
    dataset_json, summary = runs.read_dataset_json(folder), _read(scored)
    scores, cases = _scores_in(folder / SCORES / "scores.csv")
    return Prediction(
        folder=folder,
        dataset=dataset,
        trainer=trainer,
        plans=plans,
        configuration=configuration,
        plans_json=_read(folder / "plans.json"),
        dataset_json=dataset_json,
        record=said.get(RECORD_NAME),
        labels=tuple(labels_of(dataset_json, "dataset.json").values),
        cases=cases,
        scores=scores,
        voxels={},
        references={},
        settings={runs.SURFACE.kind: runs.settings_of(summary)},
        spacing=None,
        predicted_with=folds,
        digests={name: str(digest) for name, digest in _read(folder / SCORED_AGAINST).items()},
    )


def _read(path: Path) -> dict:
    """Read a file of a folder of predictions."""
    try:
        content = files.read_json(path, _AGAIN)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: copy the whole folder of predictions, or {_AGAIN}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold what logvmamba writes: {_AGAIN}")
    return content


def _scores_in(table: Path) -> tuple[dict[str, dict[str, dict[str, float]]], tuple[str, ...]]:
    """Give scores by metric, label and case, and the cases."""
    scores: dict[str, dict[str, dict[str, float]]] = {}
    cases: dict[str, None] = {}
    try:
        with table.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                case, label = row.pop("case"), row.pop("label")
                cases[case] = None
                runs.store(scores, {metric: value or None for metric, value in row.items()}, label, case)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{table} cannot be read ({error!r}): {_AGAIN}") from error
    if not cases:
        raise UserError(f"{table} holds no case: {_AGAIN}")
    return scores, tuple(cases)


def refuse_other_references(one: Prediction, two: Prediction) -> None:
    """Refuse what was predicted with other folds or scored against other references.

    Raises:
        UserError: In one sentence.
    """
    both = f"{one.name} and {two.name}"
    if one.predicted_with != two.predicted_with:
        here, there = (", ".join(each.predicted_with) for each in (one, two))
        raise UserError(f"{both} are predicted with folds {here} and with {there}: predict both with the same")
    differing = sorted(name for name in one.digests if two.digests.get(name, one.digests[name]) != one.digests[name])
    if differing:
        raise UserError(
            f"{both} were scored against other references, {differing[0]} is the first: score both against the same, "
            f"{_AGAIN.replace('give', 'by giving', 1)}"
        )


def of_one_kind(paths: Sequence[Path], wanted: Sequence[str] | None) -> list[Path] | None:
    """Give the folders of predictions among paths; None if there are none, and trainings are meant.

    Raises:
        UserError: If there are both, or folds are to be chosen.
    """
    found = {path: predictions_at(path) for path in paths}
    folders = list({folder.resolve(): folder for each in found.values() for folder in each}.values())
    if not folders:
        return None
    others = [path for path, there in found.items() if not there]
    if others:
        raise UserError(f"{folders[0]} holds predictions and {others[0]} none: compare predictions, or trainings")
    if wanted is not None:
        raise UserError(f"--folds chooses among trainings, and {folders[0]} holds predictions: leave it out")
    return folders
