"""One HTML page about one training: curves, scores, its worst and best cases, commands, versions, configuration.

What the page says is collected here; ``page.html`` and ``page.css`` lay it out.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from statistics import fmean, median, stdev

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.cases import FOLD_ALL
from nnunet_logvmamba.evaluation.dataset_json import labels_of
from nnunet_logvmamba.evaluation.metrics import METRICS, USUAL
from nnunet_logvmamba.results.logs import read_logging
from nnunet_logvmamba.results.page import pictures
from nnunet_logvmamba.results.page.cases import Cases, Reader, Sources
from nnunet_logvmamba.results.record import COSTS, name_alone
from nnunet_logvmamba.results.runs import SURFACE, Run, Training, read_fold
from nnunet_logvmamba.results.statistics import mean_and_standard_error


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows in words."""

    png: bytes
    words: str

    @property
    def base64(self) -> str:
        """The PNG as it stands in a page."""
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Table:
    """Rows of words, the first of each its name, below a head if there is one."""

    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """A case: its picture, and what of it is not there."""

    caption: str
    picture: Picture | None
    lacking: str = ""


@dataclass(frozen=True)
class Scores:
    """What a page has of the final validation; colours by name in the legends; without figures, none were wanted.

    ``warnings`` are about the scores, ``notes`` about the figures.
    """

    warnings: Sequence[str]
    table: Table
    plots: Picture
    note: str
    labels: Mapping[str, str]
    errors: Mapping[str, str]
    notes: Sequence[str]
    figures: Sequence[Figure] | None
    every_case: Table


@dataclass(frozen=True)
class Facts:
    """All that a page says, in the order of the page."""

    title: str
    fold: str
    subject: str
    cards: Mapping[str, str]
    curves: Picture | None
    scores: Scores | None
    commands: str
    commands_are_guessed: bool
    versions: Table
    settings: Table
    configuration: str
    whole_configuration: str


def build(
    fold: Path,
    read_by: Callable[[Training], Reader],
    *,
    num_cases: int = 3,
    sources: Sources | None = None,
    say: Callable[[str], object] = lambda note: None,
) -> str:
    """Give the page about a fold; everything is in it, and it loads nothing.

    Args:
        fold: Folder ``fold_X`` of a trained model. Without a final validation, the page has no scores and says so.
        read_by: Gives the reader of what nnU-Net alone can read.
        num_cases: Worst cases to show, and as many best ones.
        sources: For the pictures of the cases.
        say: Called with every sentence of the page about something that is not there, or not what it seems.

    Raises:
        UserError: If it is no such folder, or a file in it or a wanted image cannot be read.
    """
    training = read_fold(fold)
    reader = read_by(training)
    logging = read_logging(training.folder, reader.logging())
    if not isinstance(training, Run) and not logging:
        raise UserError(f"{training.folder} holds neither a checkpoint nor a log nor a validation: train first")
    facts = _facts(training, reader, logging, sources or Sources(), num_cases)
    if facts.scores is not None:
        scores = facts.scores
        for note in [*scores.warnings, *scores.notes, *(figure.lacking for figure in scores.figures or [])]:
            if note:
                say(note)
    layout = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return layout.get_template("page.html").render(page=facts)


def _facts(
    training: Training, reader: Reader, logging: Mapping[str, Sequence], sources: Sources, num_cases: int
) -> Facts:
    title = training.trainer.removeprefix("nnUNetTrainer") or "nnUNetTrainer"
    subject = f"{training.dataset} · {training.configuration} of {training.plans} · fold {training.fold}"
    curves = None
    if logging.get("train_losses"):
        curves = Picture(pictures.curves(logging), "loss, Dice, learning rate and seconds against the epoch")
    record = training.record or {}
    versions = [(name, str(value)) for name, value in record.get("versions", {}).items() if value]
    return Facts(
        title=title,
        fold=training.folder.name,
        subject=f"{subject} · trainer {training.trainer}",
        cards=_cards(training, logging),
        curves=curves,
        scores=_scores(training, reader, sources, num_cases) if isinstance(training, Run) else None,
        commands=_commands(training),
        commands_are_guessed=training.record is None,
        versions=Table(versions),
        settings=Table([(name, str(value)) for name, value in _settings(record).items() if value not in (None, "")]),
        configuration=training.configuration,
        whole_configuration=json.dumps(_without_folders(reader.configuration()), indent=2, default=str),
    )


# --- Numbers ----------------------------------------------------------------------------------------------------------


def _cards(training: Training, logging: Mapping[str, Sequence]) -> dict[str, str]:
    cards = {}
    if isinstance(training, Run):
        for metric in _metrics(training):
            means = [
                mean_and_standard_error(list(training.scores[metric].get(label, {}).values()))[0]
                for label in training.labels_of(metric)
            ]
            cards[f"mean {_titled(training, metric)}"] = _number(mean_and_standard_error(means)[0], metric)
        cards["cases"] = str(len(training.cases))
    if len(logging.get("train_losses") or []):
        cards["epochs"] = str(len(logging["train_losses"]))
    if seconds := [one for one in logging.get("seconds", []) if isfinite(one)]:  # none of an epoch that was cut off
        cards["median epoch"] = f"{median(seconds):.1f} s"
    for cost in COSTS:
        value = (training.record or {}).get(cost.key)
        if value and cost.unit:  # the time is known from the log
            cards[cost.title] = f"{cost.text(value)} {cost.unit}"
    return cards


def _metrics(run: Run) -> list[str]:
    return [metric for metric in USUAL if metric in run.scores]


def _titled(run: Run, metric: str) -> str:
    unit = run.settings.get(SURFACE.kind, {}).get("unit") if METRICS[metric].unit == "distance" else None
    return METRICS[metric].title + (f" ({unit})" if isinstance(unit, str) else "")


def _number(value: float, metric: str) -> str:
    return f"{value:.{METRICS[metric].decimals}f}" if isfinite(value) else "-"


def _spread(values: Sequence[float], metric: str) -> str:
    if not values:
        return "-"
    return _number(fmean(values), metric) + (f" ± {_number(stdev(values), metric)}" if len(values) > 1 else "")


# --- Scores and cases -------------------------------------------------------------------------------------------------


def _scores(run: Run, reader: Reader, sources: Sources, num_cases: int) -> Scores:
    finite = {
        metric: {
            label: [value for value in run.scores[metric].get(label, {}).values() if isfinite(value)]
            for label in run.labels_of(metric)
        }
        for metric in _metrics(run)
    }
    labels = labels_of(run.dataset_json, "dataset.json")
    painted = sorted({value for key in labels.names for value in key} - {0, labels.ignored})
    colours = {_name_of_value(value, labels.names): pictures.colour_of(value) for value in painted}
    note = "Mean ± standard deviation over cases; a case without a value (both masks empty, or one of them for a "
    note += "distance) is left out."
    for kind, settings in run.settings.items():
        words = ", ".join(f"{key} {value}" for key, value in sorted(settings.items()))
        note += f" {kind.capitalize()} metrics: {words}." if words else ""
    means = _means_of_cases(run)
    shown = Cases(run, sources, reader, labels.ignored) if num_cases else None
    lacking = "No images were found: name their folder with --images, or set nnUNet_raw."
    return Scores(
        warnings=_warnings(run),
        table=_table_of_classes(run, finite),
        plots=Picture(pictures.box_plots(finite, colours), "one box per class, one dot per case"),
        note=note,
        labels=colours,
        errors=pictures.ERRORS,
        notes=[] if shown is None or shown.there_are_images else [lacking],
        figures=None if shown is None else _figures(run, means, shown, num_cases),
        every_case=_table_of_cases(run, means),
    )


def _warnings(run: Run) -> list[str]:
    warnings = [FOLD_ALL] * (run.fold == "all")
    if run.epochs_scored:
        warnings.append(f"Not the final weights, as with --val_best: scored after {run.epochs_scored} epochs.")
    return warnings


def _table_of_classes(run: Run, finite: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    rows = []
    for label in dict.fromkeys(label for labels in finite.values() for label in labels):
        row = [label]
        for metric, labels in finite.items():
            found = labels.get(label)
            row += ["", ""] if found is None else [_spread(found, metric), f"{len(found)} of {len(run.cases)}"]
        rows.append(row)
    return Table(rows, ["class", *(word for metric in finite for word in (_titled(run, metric), "scored"))])


def _means_of_cases(run: Run) -> dict[str, float]:
    """Mean Dice over the labels of each case."""
    dice = run.scores["dice"]
    values = {case: [dice[label].get(case, nan) for label in run.labels] for case in run.cases}
    return {case: mean_and_standard_error(row)[0] for case, row in values.items()}


def _table_of_cases(run: Run, means: Mapping[str, float]) -> Table:
    columns = [(metric, label) for metric in _metrics(run) for label in run.labels_of(metric)]
    rows = []
    for case in sorted(means, key=lambda case: (means[case] if isfinite(means[case]) else 2, case)):
        numbers = [_number(run.scores[metric].get(label, {}).get(case, nan), metric) for metric, label in columns]
        rows.append([case, _number(means[case], "dice"), *numbers])
    return Table(rows, ["case", "mean Dice", *(f"{METRICS[metric].title} {label}" for metric, label in columns)])


def _figures(run: Run, means: Mapping[str, float], shown: Cases, num_cases: int) -> list[Figure]:
    ranked = sorted((case for case in means if isfinite(means[case])), key=lambda case: (means[case], case))
    count = min(num_cases, (len(ranked) + 1) // 2)
    figures = []
    for title, cases in (("Worst", ranked[:count]), ("Best", ranked[::-1][: min(count, len(ranked) - count)])):
        for rank, case in enumerate(cases, start=1):
            dice = run.scores["dice"]
            labels = ", ".join(f"{label} {_number(dice[label].get(case, nan), 'dice')}" for label in run.labels)
            caption = f"{title} {rank}: {case}, mean Dice {means[case]:.4f} ({labels})"
            found = shown.read(case)
            if isinstance(found, str):
                figures.append(Figure(caption, None, found))
            else:
                alone = found.image is None and shown.there_are_images
                lacking = f"No image of {case} was found: name its folder with --images." if alone else ""
                figures.append(Figure(caption, Picture(pictures.paint(found), caption), lacking))
    return figures


def _name_of_value(value: int, names: Mapping[tuple[int, ...], str]) -> str:
    """Its own name, else the smallest region that holds it, without those inside that do not."""
    if (value,) in names:
        return names[value,]
    around = min((key for key in names if value in key), key=len)
    inside = [set(key) for key in names if set(key) < set(around) and value not in key]
    largest = [key for key in inside if not any(key < other for other in inside)]
    rest = " or ".join(name for key, name in names.items() if set(key) in largest)
    words = f"{names[around]} without {rest}" if rest else names[around]
    alike = [other for other in around if other not in set().union(*inside)]
    return words if len(alike) == 1 else f"{words} (label {value})"


# --- What was trained -------------------------------------------------------------------------------------------------


def _commands(training: Training) -> str:
    if training.record is None:
        number = re.sub(r"^Dataset0*(\d+)_.*", r"\1", training.dataset)
        words = f"nnUNetv2_train {number} {training.configuration} {training.fold}"
        return f"{words} -tr {training.trainer} -p {training.plans}"
    sessions = training.record.get("sessions", [])
    return "\n".join(f"# {s.get('started')}, from epoch {s.get('first_epoch')}\n{s.get('command')}" for s in sessions)


def _settings(record: Mapping) -> dict[str, object]:
    recipe, split, device = (record.get(key) or {} for key in ("recipe", "split", "device"))
    cases = f"{split.get('training_cases')} for training, {split.get('validation_cases')} for validation"
    return {
        "network": record.get("network"),
        "recipe": ", ".join(f"{name} {value}" for name, value in recipe.items()),
        "seed": record.get("seed"),
        "epochs × iterations": f"{record.get('epochs')} × {record.get('iterations_per_epoch')}" if record else None,
        "patch": " × ".join(map(str, record.get("patch_size", []))),
        "batch": record.get("batch_size"),
        "cases": cases if split else None,
        "device": device.get("name") or device.get("type"),
    }


def _without_folders(content: object) -> object:
    """The same, with absolute paths reduced to their last names: a page may be mailed."""
    if isinstance(content, Mapping):
        return {key: _without_folders(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_folders(value) for value in content]
    return name_alone(content) if isinstance(content, str) else content
