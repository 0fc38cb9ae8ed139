"""Reads what nnU-Net leaves in its results folders: which trainings there are, and their scores case by case."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_logvmamba import files
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.dataset_json import Labels, channels_of, labels_of
from nnunet_logvmamba.evaluation.metrics import INSTANCE_METRICS, INSTANCES, RANKED, SURFACE_METRICS
from nnunet_logvmamba.results.logs import logs_of
from nnunet_logvmamba.results.record import RECORD_NAME, read_record

SUMMARY = "summary.json"
IN_USE = "in_use.lock"
"""File of a fold that the process holds which trains or validates there, if the trainer is one of ours."""


@dataclass(frozen=True)
class Source:
    """A file of ours in the folder ``validation``, and the metrics in it."""

    kind: str
    file: str
    metrics: tuple[str, ...]


SURFACE = Source("surface", "surface.json", SURFACE_METRICS)
INSTANCE = Source("instance", "instances.json", INSTANCE_METRICS)
SOURCES = (SURFACE, INSTANCE)


def source_of(metric: str) -> Source | None:
    """Give the file of ours that a metric comes from; None for those of nnU-Net's summary."""
    return next((source for source in SOURCES if metric in source.metrics), None)


_SETTINGS = re.compile(r"policy|tolerance|unit|hd95|nsd|spacing")


@dataclass(frozen=True)
class Training:
    """One fold of one training, finished or not: the names in its folders, and the files in them that it has anyway."""

    folder: Path
    dataset: str
    trainer: str
    plans: str
    configuration: str
    plans_json: dict
    dataset_json: dict
    record: dict | None

    @property
    def fold(self) -> str:
        """Number of the fold, or ``all``."""
        return self.folder.name.removeprefix("fold_")

    @property
    def name(self) -> str:
        """How the training is called in messages."""
        return f"{self.folder.parent.name}/{self.folder.name}"


@dataclass(frozen=True)
class Run(Training):
    """A finished fold, with the scores of its final validation.

    ``scores`` are metric, then label, then case. ``voxels`` are, per label and case, the reference's voxels and those
    of the whole image. ``settings`` are those of our own metrics by kind: policy and tolerance of the surface metrics,
    how instances are recovered and matched for those of instances. ``labels`` are those of the data set.
    ``references`` are the files that nnU-Net scored against, which may be on another machine.
    """

    labels: tuple[str, ...]
    cases: tuple[str, ...]
    scores: dict[str, dict[str, dict[str, float]]]
    voxels: dict[tuple[str, str], tuple[int, int]]
    references: dict[str, Path]
    settings: dict[str, dict[str, object]]
    spacing: tuple[float, ...] | None

    @property
    def folds(self) -> tuple[str, ...]:
        """The fold that was validated."""
        return (self.fold,)

    @property
    def epochs_scored(self) -> str | None:
        """After how many epochs of how many the weights were that were validated, such as ``4 of 6``.

        None where they are the final ones, or no record tells. Of an adopted model the record may know only the epochs
        since, which are fewer than those that were validated.
        """
        record = self.record or {}
        done, validated = record.get("epochs_done"), record.get("validated_epochs")
        return None if done is None or validated is None or validated >= done else f"{validated} of {done}"

    def labels_of(self, metric: str) -> tuple[str, ...]:
        """What a metric has values for: the labels of the data set, or its instances as one."""
        return (INSTANCES,) if source_of(metric) is INSTANCE else self.labels

    @property
    def seed(self) -> int | None:
        """The seed that the trainer's name ends with."""
        match = re.search(r"_seed(\d+)$", self.trainer)
        return None if match is None else int(match[1])

    @property
    def method(self) -> tuple[str, str, str]:
        """What is compared, see :func:`method_of`."""
        return method_of(self.trainer, self.plans, self.configuration)


def method_of(trainer: str, plans: str, configuration: str) -> tuple[str, str, str]:
    """Trainer without its seed, plans, configuration."""
    return re.sub(r"_seed\d+$", "", trainer), plans, configuration


def find_folds(paths: Sequence[Path]) -> list[Path]:
    """Give the folders of folds at or below results roots, data sets, models and folds, in that order, each once.

    Raises:
        UserError: If a path does not exist or there is no fold below it.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder: name a folder of results, of a data set, a model or a fold")
        here = folds_below(absolute(path))
        if not here:
            raise UserError(
                f"{path} holds no trained model: expected are folders TRAINER__PLANS__CONFIGURATION with fold_0, …, "
                f"as nnUNetv2_train makes them"
            )
        for fold in here:
            found.setdefault(fold.resolve(), fold)
    return list(found.values())


def absolute(path: Path) -> Path:
    """Give the absolute path; a link stays one, unless only what it leads to is called like a model or a fold."""
    here, there = Path(os.path.abspath(path)), path.resolve()
    named = [one for one in (here, there) if is_fold(one) or _is_model(one)]
    return named[0] if named else here


def is_fold(path: Path) -> bool:
    """True if a path is called like a fold of a model."""
    return re.fullmatch(r"fold_(\d+|all)", path.name) is not None and _is_model(path.parent)


def folds_of(model: Path) -> list[Path]:
    """Give the folders of folds in that of a model, fold 10 behind fold 9; none if it is not called like a model."""
    folds = [child for child in model.iterdir() if is_fold(child) and child.is_dir()]
    return sorted(folds, key=lambda fold: (len(fold.name), fold.name))


def folds_below(path: Path) -> list[Path]:
    """Give the folders of folds at or below a folder; none if there are none."""
    if is_fold(path):
        return [path]
    if _is_model(path):
        return folds_of(path)
    children = sorted(child for child in path.iterdir() if child.is_dir())
    if not path.name.startswith("Dataset"):
        # nnU-Net's name for a data set; the number in it has any number of digits.
        children = [child for child in children if child.name.startswith("Dataset") or _is_model(child)]
        return [fold for child in children for fold in folds_below(child)]
    return [fold for child in children if _is_model(child) for fold in folds_below(child)]


def _is_model(path: Path) -> bool:
    return len(path.name.split("__")) == 3


def is_finished(fold: Path) -> bool:
    """True if nnU-Net's final validation wrote its scores, and no training was begun in the folder after that."""
    return (fold / "validation" / SUMMARY).is_file() and not is_under_way(fold) and not _lacks_validation(fold)


def _lacks_validation(fold: Path) -> bool:
    """True if, by nnU-Net's logs, a training without a record of ours ended and its validation did not.

    Its scores are then those of an earlier training, which nnU-Net leaves until the new ones are there.
    """
    if (fold / RECORD_NAME).is_file():
        return False
    for log in reversed(logs_of(fold)):
        text = log.read_text(encoding="utf-8", errors="replace")
        if "Mean Validation Dice" in text:
            return False
        if re.search(r": Epoch \d+\s*$", text, re.MULTILINE):
            return True
    return False


def is_begun(fold: Path) -> bool:
    """True if a training was begun in the folder, by what nnU-Net writes: a log, then checkpoints."""
    return any(next(fold.glob(kind), None) for kind in ("training_log_*.txt", "checkpoint_*.pth"))


def is_under_way(fold: Path) -> bool:
    """True if the training that began last has not ended: by its checkpoints, or by its record.

    One that its user stopped early has ended once it was validated; its record says so until it goes on.
    """
    try:
        record = read_record(fold) or {}
    except UserError:  # whoever needs it says so
        record = {}
    if record.get("validated_epochs") is not None:
        return False
    final, latest, best = (fold / f"checkpoint_{name}.pth" for name in ("final", "latest", "best"))
    if not final.is_file() and (latest.is_file() or best.is_file()):
        return True
    if latest.is_file() and latest.stat().st_mtime_ns > final.stat().st_mtime_ns:  # nnU-Net removes it at the end
        return True
    return (record.get("epochs_done") or 0) < (record.get("epochs") or 0)


def read_json(path: Path) -> dict:
    """Read a JSON file that holds a table.

    Raises:
        UserError: If it is missing or damaged.
    """
    try:
        content = files.read_json(path, "validate again with nnUNetv2_train … --val")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: copy the whole results folder, or validate again with --val") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold what nnU-Net writes: validate again with nnUNetv2_train … --val")
    return content


def read_dataset_json(model: Path) -> dict:
    """Read ``dataset.json`` of a trained model.

    Raises:
        UserError: If it is missing, damaged, or lacks labels, channels or file ending as nnU-Net has them.
    """
    path = model / "dataset.json"
    content = read_json(path)
    try:
        labels_of(content, str(path))
        channels_of(content, str(path))
    except UserError as error:
        raise UserError(f"{error}: correct it there") from error
    ending = content.get("file_ending")
    if not isinstance(ending, str) or not ending:
        raise UserError(f"{path} has no 'file_ending' as nnU-Net's dataset.json has: add it there, such as .nii.gz")
    return content


def read_fold(fold: Path) -> Training:
    """Read a fold, finished or not.

    Raises:
        UserError: If it is no folder of a fold; errors as for :func:`read_training`.
    """
    named = absolute(fold)
    if not fold.is_dir() or not is_fold(named):
        raise UserError(f"{fold} is not the folder of a fold: name TRAINER__PLANS__CONFIGURATION/fold_0 or the like")
    fold = named
    return read_run(fold) if is_finished(fold) else read_training(fold)


def read_training(fold: Path) -> Training:
    """Read what a fold has before it is finished.

    Raises:
        UserError: If a file is missing, damaged or not nnU-Net's; the message names it.
    """
    model = fold.parent
    dataset_json, plans_json = read_dataset_json(model), read_json(model / "plans.json")
    dataset = plans_json.get("dataset_name", model.parent.name)
    if not isinstance(dataset, str) or not dataset:
        raise UserError(f"{model / 'plans.json'}: 'dataset_name' is {dataset!r}: write {model.parent.name} there")
    trainer, plans, configuration = model.name.split("__")
    return Training(fold, dataset, trainer, plans, configuration, plans_json, dataset_json, read_record(fold))


def read_run(fold: Path) -> Run:
    """Read a finished fold; errors as for :func:`read_training`."""
    training = read_training(fold)
    ending, names = training.dataset_json["file_ending"], labels_of(training.dataset_json, "dataset.json")
    summary_file = fold / "validation" / SUMMARY
    summary = read_json(summary_file)
    scores: dict[str, dict[str, dict[str, float]]] = {}
    voxels: dict[tuple[str, str], tuple[int, int]] = {}
    references: dict[str, Path] = {}
    cases: list[str] = []
    labels: dict[str, None] = {}
    try:
        for entry in summary["metric_per_case"]:
            case = case_of(entry["prediction_file"], ending)
            cases.append(case)
            references[case] = Path(entry.get("reference_file", ""))
            for key, metrics in entry["metrics"].items():
                label = names.name_of(key)
                labels[label] = None
                store(scores, metrics, label, case)
                total = sum(int(metrics[name]) for name in ("TP", "FP", "FN", "TN"))
                voxels[label, case] = int(metrics["n_ref"]), total
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:  # int() of infinity, the last
        raise UserError(f"{summary_file} is not what nnU-Net 2.8 writes ({error!r}): validate again") from error
    if not cases:
        raise UserError(f"{summary_file} holds no case: validate again with nnUNetv2_train … --val")
    settings = {}
    for source in SOURCES:
        path = fold / "validation" / source.file
        if path.is_file():
            settings[source.kind] = _add_scores(source, path, scores, names, tuple(cases))
    spacing = training.plans_json.get("original_median_spacing_after_transp")
    try:
        spacing = None if spacing is None else tuple(map(float, spacing))
    except (TypeError, ValueError) as error:
        file = fold.parent / "plans.json"
        raise UserError(f"{file} has a spacing that is none ({spacing!r}): copy it anew") from error
    return Run(
        **vars(training),
        labels=tuple(sorted(labels, key=lambda label: _place(label, names))),
        cases=tuple(cases),
        scores=scores,
        voxels=voxels,
        references=references,
        settings=settings,
        spacing=spacing,
    )


def _add_scores(source: Source, path: Path, scores: dict, names: Labels, cases: tuple[str, ...]) -> dict:
    """Add the metrics of a file of ours, and give their settings."""
    content = read_json(path)
    there = set()
    try:
        for case, key, metrics in _rows(content):
            there.add(case)
            found = {name: value for name, value in metrics.items() if name.lower() in source.metrics}
            label = key if key in names.values else names.name_of(key)  # ours has names, also such as 1
            store(scores, found, INSTANCES if source is INSTANCE else label, case)
        settings = dict(content["settings"].items()) if source is INSTANCE else settings_of(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}): validate again, or remove it") from error
    if there != set(cases):
        odd = min(there ^ set(cases), key=str)
        raise UserError(f"{path} and {SUMMARY} beside it have other cases ({odd}): validate again, or remove it")
    return settings


def _rows(content: dict) -> Iterator[tuple[str, str, dict]]:
    """Case, label and metrics; from one row per case and label, or from nnU-Net's nested form."""
    if "scores" in content:
        for row in content["scores"]:
            yield row["case"], row["label"], {name: row[name] for name in row if name not in ("case", "label")}
        return
    for entry in content["metric_per_case"]:
        for key, metrics in entry["metrics"].items():
            yield entry["case"], key, metrics


def settings_of(content: dict) -> dict[str, object]:
    """Give what surface metrics were measured with, of the content of a file of scores."""
    return {key: _plain(value) for key, value in content.items() if _SETTINGS.match(key.lower())}


def _plain(setting: object) -> object:
    """A setting without where it comes from: ``{"name": x, "source": …}`` is x, equal values per label are one."""
    if isinstance(setting, dict):
        for key in ("name", "value"):
            if key in setting:
                return setting[key]
        values = {label: _plain(value) for label, value in setting.items()}
        first = next(iter(values.values()), None)
        return first if all(value == first for value in values.values()) else values
    return setting


def store(scores: dict, metrics: dict, label: str, case: str) -> None:
    """Add the metrics of a case and label that can be compared; a value of None is none."""
    for metric, value in metrics.items():
        if metric.lower() in RANKED:
            number = math.nan if value is None else float(value)
            scores.setdefault(metric.lower(), {}).setdefault(label, {})[case] = number


def _place(label: str, names: Labels) -> int:
    """Where dataset.json has a label; those that it does not name come last, in the order of the summary."""
    listed = list(names.values)
    return listed.index(label) if label in listed else len(listed)


def case_of(file: str, ending: str) -> str:
    """Name of the case that a file of any system's path holds."""
    return re.split(r"[\\/]", file)[-1].removesuffix(ending)
