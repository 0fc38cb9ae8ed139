"""Scores of two folders: every case and label, the means, and all that is needed to read them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.files import read_json, staged_files

from .cases import (
    ENDINGS,
    FOLD_ALL,
    IMAGE_INSTEAD,
    LabelMap,
    check_pairs,
    check_same_grid,
    find_cases,
    is_of_training_cases,
    read_labels,
    turned_like,
)
from .dataset_json import Labels, labels_of, read_dataset_json  # noqa: F401 - what to score is asked for here
from .metrics import COUNTS, INSTANCE_METRICS, INSTANCES, MATCH_COLUMNS, title_of
from .parallel import map_cases
from .policies import AVERAGES, BRATS_HD95_MM, BRATS_SHAPE, POLICIES
from .report import as_text_table, describe, write_csv, write_json
from .scoring import Settings, definitions, score_instances, score_masks, totals
from .tolerances import Tolerance, tolerance_of

SCORES, SUMMARY, TABLE = "scores.csv", "scores.json", "scores.txt"
"""Names of what is written; nnU-Net's own summary.json is never touched."""

FOUND = "found in the files, for want of dataset.json"
"""Where labels are from that nobody named."""

MOST_LABELS = 255
MOST_STRANGERS = 10
"""A file with more values that are no labels is hardly a segmentation of these labels."""

MADE_BY_PREDICTING = ("predict_from_raw_data_args.json", "predicted_by.json", "summary.json")
"""What nnU-Net and ``logvmamba run`` leave in folders of predictions, and nobody in one of references."""

_EMPTY = {"both_empty": (False, False), "false_positive": (False, True), "miss": (True, False)}


@dataclass(frozen=True)
class Pair:
    """One case: the file of its truth and that of its prediction."""

    case: str
    reference: Path
    prediction: Path


@dataclass(frozen=True)
class Evaluation:
    """Rows of the table, one per case and label, and the summary of them."""

    rows: list[dict]
    columns: list[str]
    summary: dict

    def write(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write table, summary and text into a folder; all of them or none.

        Raises:
            UserError: If the folder is not empty while ``overwrite`` is False.
        """
        with staged_files(folder, overwrite=overwrite, last=(SUMMARY,)) as staged:
            write_csv(staged / SCORES, self.rows, ["case", "label", *self.columns])
            write_json(staged / SUMMARY, self.summary)
            (staged / TABLE).write_text(as_text(self.summary) + "\n", encoding="utf-8")


def find_dataset_json(predictions: Path, references: Path) -> Path | None:
    """Give nnU-Net's ``dataset.json`` beside the predictions or the references, or above: where nnU-Net puts it."""
    predictions, references = Path(predictions).absolute(), Path(references).absolute()
    candidates = (predictions, references, references.parent, *predictions.parents[:2])
    return next((path for path in (folder / "dataset.json" for folder in candidates) if path.is_file()), None)


def dataset_names(dataset_json: Path) -> list[str]:
    """Give what nnU-Net calls the data set of a ``dataset.json``: the folders above it, and the plans beside it."""
    names = [folder.name for folder in dataset_json.absolute().parents if re.match(r"Dataset\d+_", folder.name)]
    plans = dataset_json.with_name("plans.json")
    if plans.is_file():
        content = read_json(plans, "remove it, or copy it anew")
        names += [content["dataset_name"]] if isinstance(content, dict) and "dataset_name" in content else []
    return [name for name in names if isinstance(name, str)]


def find_pairs(
    predictions: Path,
    references: Path,
    *,
    endings: Sequence[str] = ENDINGS,
    suffixes: Sequence[str] = (),
    predicted_only: bool = False,
) -> tuple[list[Pair], list[str]]:
    """Pair the files of two folders by the names of their cases.

    Args:
        endings: Of the files to look at.
        suffixes: Of a name, not part of the case; such as ``_label``.
        predicted_only: Take the predicted cases though there are more references.

    Returns:
        The pairs, sorted by case, and the cases that have a reference but no prediction.

    Raises:
        UserError: If a case is on one side only, naming the first; or a folder is empty.
    """
    predictions, references = Path(predictions), Path(references)
    marks = [[name for name in MADE_BY_PREDICTING if (folder / name).is_file()] for folder in (predictions, references)]
    if marks[1] and not marks[0]:
        raise UserError(
            f"{references} holds predictions, for {marks[1][0]} is in it, and {predictions} has none of nnU-Net's: the "
            f"predictions come first, then the references; if these are to be the references, move {marks[1][0]} away"
        )
    predicted, true = (find_cases(folder, endings=endings, suffixes=suffixes) for folder in (predictions, references))
    unscored = check_pairs(predicted, true, predictions, references, predicted_only=predicted_only)
    return [Pair(case, true[case], predicted[case]) for case in sorted(predicted)], unscored


def find_labels(pairs: Sequence[Pair], *, processes: int = 1) -> Labels:
    """Take the values that occur in any file as the labels, where there is no ``dataset.json``.

    Raises:
        UserError: If there are so many that the files must be instance maps, or none at all.
    """
    true, predicted = (
        set().union(*side) for side in zip(*map_cases(_values_of, pairs, processes=processes, text="labels"))
    )
    found = sorted((true | predicted) - {0})
    if len(found) > MOST_LABELS:
        remedy = "if they are instance maps, add --instances"
        for name, many, few in (("references", true, predicted), ("predictions", predicted, true)):
            if len(many) > MOST_LABELS >= len(few):
                remedy += f"; if the {name}, which alone have so many, are images, name the folder of segmentations"
        raise UserError(f"the files hold {len(found)} labels; {remedy}")
    if not found:
        raise UserError("the files hold nothing but background, and there is no dataset.json: name it: --dataset-json")
    return Labels({str(value): (value,) for value in found}, None, FOUND)


def _values_of(pair: Pair) -> tuple[set[int], set[int]]:
    """Those of the truth and those of the prediction."""
    true, predicted = (set(np.unique(read_labels(path).values).tolist()) for path in (pair.reference, pair.prediction))
    return true, predicted


def evaluate(
    pairs: Sequence[Pair],
    labels: Labels | None,
    settings: Settings,
    *,
    tolerances: Mapping[str, float] | float | None = None,
    spacing: Sequence[float] | None = None,
    position: bool = True,
    turn: bool = False,
    average: str = "class-first",
    processes: int = 1,
) -> Evaluation:
    """Score every case and label.

    A case of one slice is scored as the plane it is, also beside volumes; its volume is then that of the slice.

    Args:
        pairs: What to score.
        labels: Labels and regions; None takes the files for instance maps.
        settings: Which scores, and how; its tolerances are set here.
        tolerances: Of NSD, one for all or by label; for the others the published one of the structure, or 2.
        spacing: Voxel size to use in place of the files', one value or one per axis of the array (slices, rows,
            columns), in mm; ones count voxels. Of three values, a slice takes those of its two axes.
        position: Refuse files whose origin or direction differ, but for predictions on the reference's grid in another
            orientation, which are turned; otherwise voxels are compared as they are stored.
        turn: Turn such predictions also where positions are not compared, as nnU-Net's reorienting readers do.
        average: ``class-first`` or ``frame-first``, see ``AVERAGES``.
        processes: How many cases to score at a time.

    Raises:
        UserError: If a file cannot be read, or truth and prediction do not lie on the same grid, or hold values that
            are no labels; the sentence names the file.
    """
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {', '.join(AVERAGES)}, not {average!r}")
    read = partial(_read_pair, spacing=spacing, position=position, turn=turn)
    first, _ = read(pairs[0])
    names = [INSTANCES] if labels is None else list(labels.values)
    chosen = _tolerances(names, tolerances, first.unit) if "nsd" in settings.metrics else {}
    settings = replace(settings, tolerances={name: tolerance.value for name, tolerance in chosen.items()})
    kind = first.unit, first.values.ndim
    work = partial(_score_case, labels=labels, settings=settings, read=read, kind=kind)
    results = map_cases(work, pairs, processes=processes, text="cases")
    rows = [row for case in results for row in case]
    columns = settings.columns()
    axes = {row["_axes"] for row in rows}
    slices = sorted({row["case"] for row in rows if row["_axes"] == 2}) if len(axes) > 1 else []
    if "volume_difference" in columns and slices:
        _areas_to_volumes(rows, {pair.case: pair.reference for pair in pairs})
    summary = {
        "cases": [pair.case for pair in pairs],
        "labels": {name: list(value) for name, value in labels.values.items()} if labels else {INSTANCES: "any"},
        "labels_from": labels.source if labels else "instance maps",
        "ignored_label": labels.ignored if labels else None,
        "metrics": definitions(settings, first.unit, max(axes), slices=bool(slices)),
        "policy": {"name": settings.policy, **_described(settings.policy)},
        "hd95": settings.joining if "hd95" in settings.metrics else None,
        "tolerances": {name: vars(tolerance) for name, tolerance in chosen.items()},
        "unit": first.unit,
        "spacing": "of each file" if spacing is None else list(spacing),
        "position": "the same in truth and prediction" if position else "not compared" + ", but turned" * turn,
        "average": {"name": average, "definition": AVERAGES[average]},
        **_means(rows, columns, names, average),
    }
    counted = [row for row in rows if "tp" in row and (row["_true"] or row["_predicted"])]
    at_border = [row["case"] for row in counted if not any(row[name] for name in MATCH_COLUMNS)]
    summary["notes"] = [FOLD_ALL] * is_of_training_cases(pairs[0].prediction.parent)
    summary["notes"] += _notes(summary, first, slices)
    if at_border:
        summary["notes"].append(
            f"{len(at_border)} case(s) have no instance further than {settings.border} px from the border, in volumes "
            f"also from the first and last slice, the first is '{at_border[0]}'; --border 0 keeps them"
        )
    return Evaluation([{k: v for k, v in row.items() if not k.startswith("_")} for row in rows], columns, summary)


def _areas_to_volumes(rows: Sequence[dict], references: Mapping[str, Path]) -> None:
    """Turn the volume differences of slices beside volumes, which are areas in squares of the unit, into volumes."""
    for row in rows:
        if row["_axes"] == 2 and row["_thickness"] is None:
            raise UserError(
                f"{references[row['case']]} is one slice of unknown thickness among volumes, so it has no "
                "volume_difference: leave that out, or give the voxel size with --spacing"
            )
        if row["_axes"] == 2:
            row["volume_difference"] *= row["_thickness"] / 1000


def _notes(summary: dict, first: LabelMap, slices: Sequence[str]) -> list[str]:
    """Say what a reader of the numbers should not miss."""
    notes = []
    if slices:
        notes.append(
            f"{len(slices)} of {len(summary['cases'])} cases are one slice, the first is '{slices[0]}'; their "
            "distances are those of outlines within the slice"
        )
    halves = sum(len(one[kind]) for one in summary["empty_masks"].values() for kind in ("false_positive", "miss"))
    if summary["policy"]["name"] == "brats" and summary["hd95"] and halves and first.values.shape != BRATS_SHAPE:
        notes.append(f"HD95 of {halves} half-empty pair(s) is {BRATS_HD95_MM}, a BraTS diagonal; this is another grid")
    return notes


def _described(name: str) -> dict:
    policy = POLICIES[name]
    return {
        "source": policy.text,
        "scores": "overlap: Dice, IoU and instance scores; null: left out of the mean and counted",
        **{case: vars(getattr(policy, case)) for case in ("both_empty", "false_positive", "miss")},
    }


def _tolerances(names: Sequence[str], given: Mapping[str, float] | float | None, unit: str) -> dict[str, Tolerance]:
    given = (
        {} if given is None else _by_label(given, names) if isinstance(given, Mapping) else dict.fromkeys(names, given)
    )
    return {
        name: Tolerance(given[name], unit, "given by the user") if name in given else tolerance_of(name, unit)
        for name in names
    }


def _by_label(given: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Tolerances by the labels they are for, which may be written in any capitalisation."""
    found: dict[str, float] = {}
    for written, value in given.items():
        alike = [written] if written in names else [name for name in names if name.casefold() == written.casefold()]
        if len(alike) > 1:
            raise UserError(
                f"a tolerance for '{written}' may be that of {' or '.join(alike)}: write it as the label is"
            )
        if not alike:
            lower = {name.casefold(): name for name in names}
            near = difflib.get_close_matches(written.casefold(), lower, n=1)
            hint = f" (did you mean {lower[near[0]]}?)" if near else ""
            raise UserError(f"a tolerance for '{written}', which is no label{hint}; the labels are {', '.join(names)}")
        if alike[0] in found:
            raise UserError(f"two tolerances for the label '{alike[0]}': give one")
        found[alike[0]] = value
    return found


def _with_spacing(read: LabelMap, spacing: Sequence[float] | None, path: Path) -> LabelMap:
    if spacing is None:
        return read
    axes = read.values.ndim
    if len(spacing) not in (1, axes, 3):
        raise UserError(f"{path} has {axes} axes, but --spacing has {len(spacing)} values")
    wide, thickness = tuple(spacing), read.thickness
    if len(wide) == 1:
        wide, thickness = wide * axes, wide[0]
    elif len(wide) > axes:  # of a slice
        axis = read.slice_axis or 0
        wide, thickness = wide[:axis] + wide[axis + 1 :], wide[axis]
    return replace(read, spacing=wide, thickness=thickness, unit="px" if set(spacing) == {1.0} else "mm")


def _read_pair(pair: Pair, *, spacing: Sequence[float] | None, position: bool, turn: bool) -> tuple[LabelMap, LabelMap]:
    """Read truth and prediction; the truth has the spacing to score with."""
    truth, prediction = read_labels(pair.reference), read_labels(pair.prediction)
    if position or turn:
        prediction = turned_like(prediction, truth)
    check_same_grid(truth, prediction, pair.reference, pair.prediction, position=position)
    if truth.unit == "px" and prediction.unit == "mm":
        truth = replace(truth, spacing=prediction.spacing, thickness=prediction.thickness, unit="mm")
    return _with_spacing(truth, spacing, pair.reference), prediction


def _score_case(
    pair: Pair,
    *,
    labels: Labels | None,
    settings: Settings,
    read: Callable[[Pair], tuple[LabelMap, LabelMap]],
    kind: tuple[str, int],
) -> list[dict]:
    truth, prediction = read(pair)
    if truth.unit != kind[0]:
        raise UserError(
            f"{pair.reference} has {truth.values.ndim} axes in {truth.unit}, the first case {kind[1]} in {kind[0]}; "
            f"put them into folders of their own"
        )
    if labels is None:
        masks = {INSTANCES: (truth.values > 0, prediction.values > 0)}
    else:
        check_values(truth.values, labels, pair.reference)
        check_values(prediction.values, labels, pair.prediction)
        both = truth.values, prediction.values
        masks = {name: _masks(*both, values, labels.ignored) for name, values in labels.values.items()}
    rows = []
    for name, (true, predicted) in masks.items():
        row: dict = {"case": pair.case, "label": name, "_true": bool(true.any()), "_predicted": bool(predicted.any())}
        row |= {"_axes": truth.values.ndim, "_thickness": truth.thickness}
        try:
            row |= score_masks(true, predicted, spacing=truth.spacing, label=name, settings=settings)
            if labels is None and set(settings.metrics) & set(INSTANCE_METRICS):
                row |= score_instances(truth.values, prediction.values, settings=settings)
        except ValueError as error:
            raise UserError(f"{pair.prediction}: {error}") from error
        rows.append(row)
    return rows


def check_values(values: np.ndarray, labels: Labels, path: Path) -> None:
    """Refuse a map with values that are no labels.

    Raises:
        UserError: Naming the file and the first such value.
    """
    known = {0, *(() if labels.ignored is None else (labels.ignored,))}.union(*labels.values.values())
    strangers = sorted(set(np.unique(values).tolist()) - known)
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise UserError(
            f"{path} holds the value {strangers[0]}{more}, which is no label; the labels are "
            f"{', '.join(map(str, sorted(known)))}, {labels.source}"
            + (f"; {IMAGE_INSTEAD}" if len(strangers) > MOST_STRANGERS else "")
        )


def _masks(
    truth: np.ndarray, prediction: np.ndarray, values: tuple[int, ...], ignored: int | None
) -> tuple[np.ndarray, np.ndarray]:
    true, predicted = (np.isin(voxels, values) for voxels in (truth, prediction))
    if ignored is not None:
        scored = truth != ignored
        true, predicted = true & scored, predicted & scored
    return true, predicted


def _means(rows: Sequence[dict], columns: Sequence[str], names: Sequence[str], average: str) -> dict:
    by_label = {name: [row for row in rows if row["label"] == name] for name in names}
    means: dict[str, dict] = {name: {} for name in names}
    edge_cases = {}
    for name, own in by_label.items():
        for column in columns:
            values = {row["case"]: row[column] for row in own}
            means[name][column] = describe(values.values())
            if column in COUNTS:
                means[name][column]["sum"] = sum(values.values())
            means[name][column]["left_out"] = [case for case, value in values.items() if not math.isfinite(value)]
        edge_cases[name] = {
            kind: [row["case"] for row in own if (row["_true"], row["_predicted"]) == there]
            for kind, there in _EMPTY.items()
        }
    return {
        "mean": means,
        "overall": {
            column: _overall(rows, means, column, average)
            | ({"sum": sum(row[column] for row in rows)} if column in COUNTS else {})
            for column in columns
        },
        "empty_masks": edge_cases,
    }


def _overall(rows: Sequence[dict], means: dict, column: str, average: str) -> dict:
    if average == "class-first":
        found = {name: one[column] for name, one in means.items() if one[column]["mean"] is not None}
        return {
            "mean": describe(one["mean"] for one in found.values())["mean"],
            "labels": len(found),
            "labels_left_out": [name for name in means if name not in found],
            "cases": min((one["cases"] for one in found.values()), default=0),
        }
    frames: dict[str, list[float]] = {}
    for row in rows:
        values = frames.setdefault(row["case"], [])
        if (row["_true"] or row["_predicted"]) and math.isfinite(row[column]):
            values.append(row[column])
    described = describe(float(np.mean(values)) if values else float("nan") for values in frames.values())
    return {
        "mean": described["mean"],
        "std": described["std"],
        "cases": described["cases"],
        "left_out": [case for case, values in frames.items() if not values],
    }


def as_text(summary: dict, width: int | None = None) -> str:
    """Lay the summary out for reading: means, standard deviations and case counts, and how they came about.

    Args:
        width: Characters that a line of the table may have; None for as many as it takes.
    """
    columns = list(summary["metrics"])
    units = {column: summary["metrics"][column]["unit"] for column in columns}
    shown = {column: "" if unit == "1" else f" [{unit}]" for column, unit in units.items()}
    header = ["label", *(title_of(column) + shown[column] for column in columns)]
    rows = [[name, *(_mean_cell(scores[column]) for column in columns)] for name, scores in summary["mean"].items()]
    if len(rows) > 1:
        rows.append([f"all, {summary['average']['name']}", *(_mean_cell(summary["overall"][c]) for c in columns)])
    lines = [as_text_table(header, rows, width), ""]
    counted = [column for column in columns if column in COUNTS]
    for name, scores in summary["mean"].items() if counted else ():
        lines.append(f"total of {name}: {totals({column: scores[column]['sum'] for column in counted})}")
    lines.append("mean ± standard deviation over cases (cases behind the mean)")
    lines.append(f"cases: {len(summary['cases'])}" + _others(summary))
    if summary["labels_from"] == FOUND:
        lines.append(f"labels: {', '.join(summary['labels'])}, {FOUND}")
    lines.append(f"average: {summary['average']['definition']}")
    lines.append(f"empty masks: policy {summary['policy']['name']} ({summary['policy']['source']})")
    lines += [
        f"  {name}: " + ", ".join(f"{kind.replace('_', ' ')} {len(cases)}" for kind, cases in kinds.items() if cases)
        for name, kinds in summary["empty_masks"].items()
        if any(kinds.values())
    ]
    lines += [f"{title_of(column)}: {text['definition']}" for column, text in summary["metrics"].items()]
    lines += [
        f"tolerance of {name}: {one['value']:g} {one['unit']} ({one['source']})"
        for name, one in summary["tolerances"].items()
    ]
    lines += [f"note: {note}" for note in summary["notes"]]
    given = summary["spacing"]
    lines.append(f"spacing: {given if isinstance(given, str) else ' '.join(map(str, given))}, unit {summary['unit']}")
    return "\n".join(lines)


def _mean_cell(scores: dict) -> str:
    if scores["mean"] is None:
        return "- (0)"
    spread = "" if scores.get("std") is None else f" ± {scores['std']:.4f}"
    return f"{scores['mean']:.4f}{spread} ({scores['cases']})"


def _others(summary: dict) -> str:
    cases, folder = summary.get("cases_not_scored"), Path(summary.get("predictions", "")).resolve()
    if not cases:
        return ""
    if folder.name == "validation" and re.fullmatch(r"fold_\d+", folder.parent.name):
        return f"; {len(cases)} more references are of the cases of other folds, which this one trained on"
    return f", {len(cases)} more without a prediction"
