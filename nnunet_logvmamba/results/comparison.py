"""Compares trained methods case by case, after making sure that they can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import isfinite, nan
from pathlib import Path
from statistics import median

import numpy as np

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.cases import FOLD_ALL
from nnunet_logvmamba.evaluation.metrics import METRICS, RANKED, USUAL, title_of, titles
from nnunet_logvmamba.results.predicted import Prediction, of_one_kind, read_prediction, refuse_other_references
from nnunet_logvmamba.results.record import COSTS, KEYS
from nnunet_logvmamba.results.runs import INSTANCE, Run, find_folds, is_finished, is_under_way, read_run, source_of
from nnunet_logvmamba.results.statistics import (
    TIE,
    Paired,
    compare_pairs,
    holm,
    margin_of_difference,
    mean_and_standard_error,
)

AVERAGE = "average"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Score:
    """Mean and standard error over folds, or over the seeds of one fold.

    ``scored`` case values stand behind it and ``left_out`` ones had no value.
    """

    mean: float
    error: float
    runs: int
    scored: int
    left_out: int


@dataclass(frozen=True)
class Method:
    """Trainer, plans and configuration in all their runs, under the shortest name that tells it from the others.

    ``costs`` are medians over the runs of what their records say, by key; None where one says nothing.
    """

    name: str
    runs: tuple[Run, ...]
    costs: dict[str, float | None]


@dataclass(frozen=True)
class Pair:
    """Two methods, the first minus the second, in one metric and one label or ``AVERAGE``.

    ``p_holm`` is corrected for the pairs of the metric, over all labels where it is not the average. ``run_margin``
    is half the width of the 95 % interval of the difference from run to run, NaN if there is only one run.
    """

    first: str
    second: str
    metric: str
    label: str
    test: Paired
    p_holm: float
    run_margin: float

    @property
    def verdict(self) -> str:
        """Whether the difference is more than noise, in three words at most."""
        test = self.test
        excludes_zero = isfinite(test.low) and isfinite(test.high) and not test.low <= 0 <= test.high
        if not (self.p_holm < SIGNIFICANT and excludes_zero and abs(test.difference) > TIE):
            return "within noise"
        if not isfinite(self.run_margin):
            return "one training each"
        return "beyond noise" if abs(test.difference) > self.run_margin else "within noise"

    @property
    def ordered(self) -> tuple[str, str]:
        """The method that is better on the cases that both have, then the other."""
        better = (self.test.difference > 0) == (METRICS[self.metric].better == "higher")
        return (self.first, self.second) if better else (self.second, self.first)


@dataclass(frozen=True)
class Comparison:
    """Everything the tables hold. ``scores`` are metric, then method, then label or ``AVERAGE``.

    ``held_out`` says that the cases were in no fold; ``folds`` are those that predicted them together.
    ``labels`` are those of each metric. ``settings`` are those of our own metrics, by kind (``surface``, ``instance``).
    ``same_cases`` says, per metric and label or ``AVERAGE``, whether all methods have a value for the same cases. Where
    they do not, a method that fails in its hardest cases may have the better mean, so the means name no best one.
    """

    dataset: str
    methods: tuple[Method, ...]
    metrics: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]
    folds: tuple[str, ...]
    held_out: bool
    num_cases: int
    settings: dict[str, dict[str, object]]
    scores: dict[str, dict[str, dict[str, Score]]]
    same_cases: dict[str, dict[str, bool]]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]


def compare(
    paths: Sequence[Path],
    *,
    metrics: Sequence[str] | None = None,
    folds: Sequence[str] | None = None,
    against: str | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Comparison:
    """Read results folders and compare the methods in them.

    Args:
        paths: Results roots, data sets, models ``TRAINER__PLANS__CONFIGURATION`` or folds; or folders of predictions of
            held-out cases that were scored, or of such folders. Methods keep their order.
        metrics: Those to compare; by default Dice, and NSD, HD95, F1 and object IoU where every run has them.
        folds: Those to compare; all that are finished by default.
        against: Name of a method; only pairs with it are tested. All pairs by default.
        renamed: Other names for methods, by those that they would have.

    Raises:
        UserError: If there are fewer than two methods, or they cannot be compared; the message names the runs and what
            differs.
    """
    predictions = of_one_kind(paths, folds)
    runs, notes = _read(paths, folds) if predictions is None else ([*map(read_prediction, predictions)], [])
    _refuse_strangers(runs)
    names = rename(names_of(run.method for run in runs), renamed or {}, against)
    methods = tuple(
        Method(name, members := tuple(run for run in runs if run.method == key), _costs(members))
        for key, name in names.items()
    )
    if len(methods) < 2:
        raise UserError(f"there is only one method, {methods[0].name}: a comparison needs two")
    chosen, more = _metrics(runs, metrics)
    _refuse_what_cannot_be_compared(methods, chosen)
    labels = {metric: runs[0].labels_of(metric) for metric in chosen}
    scores = {metric: {method.name: _scores(method, metric, labels[metric]) for method in methods} for metric in chosen}
    pairs = [pair for metric in chosen for pair in _pairs(methods, metric, labels[metric], against)]
    comparison = Comparison(
        dataset=runs[0].dataset,
        methods=methods,
        metrics=chosen,
        labels=labels,
        folds=tuple(dict.fromkeys(fold for run in runs for fold in run.folds)),
        held_out=predictions is not None,
        num_cases=len({case for run in methods[0].runs for case in run.cases}),
        settings={kind: runs[0].settings.get(kind, {}) for kind in _kinds(chosen)},
        scores=scores,
        same_cases={metric: _same_cases(methods, metric, labels[metric]) for metric in chosen},
        pairs=tuple(pairs),
        notes=(),
    )
    return replace(comparison, notes=(*notes, *more, *_notes(comparison)))


def _read(paths: Sequence[Path], wanted: Sequence[str] | None) -> tuple[list[Run], list[str]]:
    folders = find_folds(paths)
    if wanted is not None:
        there = {folder.name.removeprefix("fold_") for folder in folders}
        lacking = [fold for fold in wanted if fold not in there]
        if lacking:
            raise UserError(
                f"there is no fold {' or '.join(lacking)} in what was named: train it, or do not ask for it"
            )
        folders = [folder for folder in folders if folder.name.removeprefix("fold_") in wanted]
    unfinished = [folder for folder in folders if not is_finished(folder)]
    finished = {folder.name.removeprefix("fold_") for folder in folders if folder not in unfinished}
    apart = [folder for folder in folders if folder.name == "fold_all"] if len(finished) > 1 else []
    if apart and wanted is not None:
        raise UserError(
            "fold all is validated on the cases that it was trained on, so it is compared alone: give --folds all, or "
            "leave it out"
        )
    folders = [folder for folder in folders if folder not in apart]
    lacking = [fold for fold in wanted or () if fold not in finished]
    if lacking and finished:
        raise UserError(f"fold {' or '.join(lacking)} is finished nowhere: finish it, or leave it out of --folds")
    runs = [read_run(folder) for folder in folders if folder not in unfinished]
    if not runs:
        lacks = "is still in training" if is_under_way(folders[0]) else "has no validation/summary.json"
        raise UserError(f"{folders[0]} {lacks}, and no other fold is finished: finish the trainings first")
    notes = [f"Left out, not finished: {folder.parent.name}/{folder.name}." for folder in unfinished]
    notes += ["Left out: fold all, which is validated on the cases that it was trained on."] * bool(apart)
    return runs, notes


def _refuse_strangers(runs: Sequence[Run]) -> None:
    """Refuse what is there twice, and more than one data set."""
    seen: dict[tuple, Run] = {}
    for run in runs:
        key = (run.dataset, run.trainer, run.plans, run.configuration, run.fold)
        if key in seen:
            raise UserError(f"{seen[key].folder} and {run.folder} are the same run twice: name one of them")
        seen[key] = run
    datasets = sorted({run.dataset for run in runs})
    if len(datasets) > 1:
        raise UserError(f"the results are of {' and '.join(datasets)}: compare one data set at a time")


Key = tuple[str, str, str]


def names_of(methods: Iterable[Key]) -> dict[Key, str]:
    """Name methods (trainer without seed, plans, configuration) by the parts in which they differ."""
    keys = list(dict.fromkeys(methods))
    differing = [part for part in range(3) if len({key[part] for key in keys}) > 1] or [0]
    names = {}
    for key in keys:
        words = [key[part] for part in differing]
        if differing[0] == 0:
            words[0] = words[0].removeprefix("nnUNetTrainer") or words[0]
        names[key] = " ".join(words)
    if len(set(names.values())) < len(names):  # e.g. a trainer of the user that is called LoGVMamba
        names = {key: " ".join(key) for key in keys}
    return names


def rename(names: Mapping[Key, str], wished: Mapping[str, str], against: str | None = None) -> dict[Key, str]:
    """Give methods other names.

    Args:
        wished: New names by those that :func:`names_of` gives.
        against: New name of a method that must be among them.

    Raises:
        UserError: If a method is not there, or two would have one name.
    """
    for old in wished:
        if old not in names.values():
            raise UserError(f"there is no method '{old}' to rename; there are {', '.join(names.values())}")
    given = {key: wished.get(name, name) for key, name in names.items()}
    for name in given.values():
        if list(given.values()).count(name) > 1:
            raise UserError(f"two methods would be called '{name}': choose another name")
    if against is not None and against not in given.values():
        raise UserError(f"there is no method '{against}' to compare with; there are {', '.join(given.values())}")
    return given


def _costs(runs: Sequence[Run]) -> dict[str, float | None]:
    costs = {}
    for key in (cost.key for cost in COSTS):
        values = [run.record[key] for run in runs if run.record and run.record.get(key) is not None]
        middle = median(values) if len(values) == len(runs) else None
        costs[key] = middle if middle is None or float in KEYS[key] else int(middle)
    return costs


# --- What cannot be compared ------------------------------------------------------------------------------------------


def _refuse_what_cannot_be_compared(methods: Sequence[Method], metrics: Sequence[str]) -> None:
    trainings: dict[tuple, dict[str, Run]] = {}
    for method in methods:
        for run in method.runs:
            trainings.setdefault((method.name, run.seed), {})[run.fold] = run
    (_, first), *others = trainings.items()
    for _, other in others:
        one, two = next(iter(first.values())), next(iter(other.values()))
        if isinstance(one, Prediction) and isinstance(two, Prediction):
            refuse_other_references(one, two)
        if first.keys() != other.keys():
            raise UserError(
                f"other folds are finished: {one.folder.parent.name} has {_listed(first)}, "
                f"{two.folder.parent.name} has {_listed(other)}; train the missing ones or choose with --folds"
            )
        for fold, run in other.items():
            _refuse_other_cases(first[fold], run)
            for kind in _kinds(metrics):
                _refuse_other_settings(first[fold], run, kind)


def _refuse_other_cases(one: Run, two: Run) -> None:
    both = f"{one.name} and {two.name}"
    if one.labels != two.labels:
        raise UserError(f"{both} have other labels: {', '.join(one.labels)} and {', '.join(two.labels)}")
    did, remedy = "were validated on", "train both with the same splits_final.json"
    if isinstance(one, Prediction):
        did, remedy = "are predictions of", "predict the same scans with both"
    if set(one.cases) != set(two.cases):
        odd = sorted(set(one.cases) ^ set(two.cases))
        where = one.name if odd[0] in one.cases else two.name
        raise UserError(f"{both} {did} other cases: {odd[0]} is only in {where} ({len(odd)} such cases); {remedy}")
    digests = [((run.record or {}).get("split") or {}).get("digest") for run in (one, two)]
    if None not in digests and digests[0] != digests[1]:
        raise UserError(
            f"{both} {did} the same cases but trained on others (their records name splits {digests[0]} "
            f"and {digests[1]}); train both with the same splits_final.json"
        )
    for (label, case), (reference, image) in one.voxels.items():
        there = two.voxels[label, case]
        if (reference, image) != there:
            raise UserError(
                f"{both} were scored against other references or at another spacing: case {case}, label {label} has "
                f"{reference} of {image} voxels in one and {there[0]} of {there[1]} in the other; validate both again"
            )
    if one.spacing is None or two.spacing is None:
        return
    if len(one.spacing) != len(two.spacing) or not np.allclose(one.spacing, two.spacing):
        raise UserError(f"{both} were planned for data of another spacing: {one.spacing} and {two.spacing}")


def _refuse_other_settings(one: Run, two: Run, kind: str) -> None:
    here, there = (run.settings.get(kind, {}) for run in (one, two))
    if here and there and here != there:
        key = next(key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key))
        raise UserError(
            f"{one.name} and {two.name} have {kind} metrics of another {key}: {here.get(key)} and {there.get(key)}; "
            f"validate both again with the same, or compare other --metrics, e.g. Dice"
        )


def _kinds(metrics: Iterable[str]) -> list[str]:
    """Kinds of our own metrics among these."""
    sources = [source_of(metric) for metric in metrics]
    return list(dict.fromkeys(source.kind for source in sources if source is not None))


def _listed(folds: dict[str, Run]) -> str:
    return ("fold " if len(folds) == 1 else "folds ") + ", ".join(sorted(folds))


def _metrics(runs: Sequence[Run], wanted: Sequence[str] | None) -> tuple[tuple[str, ...], list[str]]:
    everywhere = [metric for metric in RANKED if all(metric in run.scores for run in runs)]
    for typed in wanted or ():
        metric = typed.lower()
        if metric not in everywhere:
            lacking = [run.name for run in runs if metric not in run.scores]
            title = title_of(metric) if metric in RANKED else typed
            if metric not in RANKED or len(lacking) == len(runs):
                raise UserError(f"there is no metric '{title}' in these results; there are {titles(everywhere)}")
            source = source_of(metric)
            where = f" (validation/{source.file})" if source else ""
            raise UserError(f"{lacking[0]} has no {title}{where}: validate again, or leave it out")
    if wanted:
        return tuple(dict.fromkeys(metric.lower() for metric in wanted)), []
    notes = []
    for metric in USUAL:
        lacking = [run.name for run in runs if metric not in run.scores]
        if lacking and len(lacking) < len(runs):
            notes.append(f"{title_of(metric)} is left out, because {lacking[0]} has none ({len(lacking)} such runs).")
    return tuple(metric for metric in USUAL if metric in everywhere), notes


# --- Numbers ----------------------------------------------------------------------------------------------------------


def _values(run: Run, metric: str, label: str) -> np.ndarray:
    """One value per case, sorted by case; NaN where there is none."""
    scores = run.scores[metric].get(label, {})
    values = np.array([scores.get(case, nan) for case in sorted(run.cases)])
    return np.where(np.isfinite(values), values, nan)


def _run_means(run: Run, metric: str, labels: Sequence[str]) -> dict[str, float]:
    means = {label: mean_and_standard_error(_values(run, metric, label))[0] for label in labels}
    return {**means, AVERAGE: mean_and_standard_error(list(means.values()))[0]}


def _scores(method: Method, metric: str, labels: Sequence[str]) -> dict[str, Score]:
    by_fold: dict[str, list[dict[str, float]]] = {}
    for run in method.runs:
        by_fold.setdefault(run.fold, []).append(_run_means(run, metric, labels))
    scores = {}
    for label in (*labels, AVERAGE):
        members = labels if label == AVERAGE else (label,)
        values = np.concatenate([_values(run, metric, member) for run in method.runs for member in members])
        there = int(np.isfinite(values).sum())
        means = [[mean[label] for mean in seeds] for seeds in by_fold.values()]
        # Seeds of a fold share its cases, so they are averaged where there are several folds.
        spread = means[0] if len(means) == 1 else [mean_and_standard_error(seeds)[0] for seeds in means]
        mean, error, _ = mean_and_standard_error(spread)
        runs = int(np.isfinite(np.concatenate(means)).sum())
        scores[label] = Score(mean, error, runs, there, len(values) - there)
    return scores


def _same_cases(methods: Sequence[Method], metric: str, labels: Sequence[str]) -> dict[str, bool]:
    """Per label and for the average, whether all runs of a fold have a value for the same cases."""
    same = {}
    for label in labels:
        by_fold: dict[str, set[bytes]] = {}
        for method in methods:
            for run in method.runs:
                by_fold.setdefault(run.fold, set()).add(np.isfinite(_values(run, metric, label)).tobytes())
        same[label] = all(len(found) == 1 for found in by_fold.values())
    return {**same, AVERAGE: all(same.values())}


def _mean_over_seeds(method: Method, metric: str, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Per fold, values by label and case: (labels, cases)."""
    tables: dict[str, list[np.ndarray]] = {}
    for run in method.runs:
        tables.setdefault(run.fold, []).append(np.stack([_values(run, metric, label) for label in labels]))
    return {fold: _mean(np.stack(seeds), axis=0) for fold, seeds in sorted(tables.items())}


def _by_case(method: Method, by_fold: Mapping[str, np.ndarray]) -> np.ndarray:
    """Put folds side by side, (labels, cases); of a case that several folds were validated on, the mean."""
    cases = {run.fold: sorted(run.cases) for run in method.runs}
    columns: dict[str, list[np.ndarray]] = {}
    for fold, values in by_fold.items():
        for case, column in zip(cases[fold], values.T, strict=True):
            columns.setdefault(case, []).append(column)
    return np.stack([_mean(np.stack(found), axis=0) for found in columns.values()], axis=1)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is there, NaN where nothing is."""
    there = np.isfinite(values)
    count = there.sum(axis)
    return np.where(count, np.where(there, values, 0).sum(axis) / np.maximum(count, 1), nan)


def _pairs(methods: Sequence[Method], metric: str, labels: Sequence[str], against: str | None) -> list[Pair]:
    found = []
    for first, second in combinations(methods, 2):
        if against is not None and against not in (first.name, second.name):
            continue
        here, there = (_mean_over_seeds(method, metric, labels) for method in (first, second))
        differences = _by_case(first, {fold: here[fold] - there[fold] for fold in here})
        everywhere = {fold: _in_every_run((first, second), fold, metric, labels) for fold in here}
        for index, label in enumerate((*labels, AVERAGE)):
            values = _mean(differences, axis=0) if label == AVERAGE else differences[index]
            test = compare_pairs(values, higher_is_better=METRICS[metric].better == "higher")
            margin = _run_margin(first, second, metric, labels, label, everywhere)
            found.append(Pair(first.name, second.name, metric, label, test, nan, margin))
    corrected: dict[int, float] = {}
    for family in ([pair.label == AVERAGE for pair in found], [pair.label != AVERAGE for pair in found]):
        members = [index for index, belongs in enumerate(family) if belongs]
        corrected.update(zip(members, holm([found[index].test.p for index in members])))
    return [replace(pair, p_holm=corrected[index]) for index, pair in enumerate(found)]


def _in_every_run(methods: Sequence[Method], fold: str, metric: str, labels: Sequence[str]) -> np.ndarray:
    """Where all runs of a fold have a value: (labels, cases)."""
    runs = [run for method in methods for run in method.runs if run.fold == fold]
    return np.stack(
        [np.logical_and.reduce([np.isfinite(_values(run, metric, label)) for run in runs]) for label in labels]
    )


def _run_margin(
    first: Method, second: Method, metric: str, labels: Sequence[str], label: str, everywhere: Mapping[str, np.ndarray]
) -> float:
    """Margin of the difference between two methods from run to run, on the cases that all runs have.

    With several folds, of the differences fold by fold, seeds averaged; with one, from the spread over seeds of both.

    Args:
        everywhere: Per fold, where all runs have a value: (labels, cases).
    """
    rows = [index for index, name in enumerate(labels) if label in (name, AVERAGE)]
    by_fold: list[dict[str, list[float]]] = [{}, {}]
    for table, method in zip(by_fold, (first, second)):
        for run in method.runs:
            values = np.stack([_values(run, metric, labels[row]) for row in rows])
            means = _mean(np.where(everywhere[run.fold][rows], values, nan), axis=1)
            table.setdefault(run.fold, []).append(float(_mean(means, axis=0)))
    if len(by_fold[0]) > 1:
        differences = [np.mean(by_fold[0][fold]) - np.mean(by_fold[1][fold]) for fold in by_fold[0]]
        spreads = [mean_and_standard_error(differences)]
    else:
        spreads = [mean_and_standard_error(next(iter(table.values()))) for table in by_fold]
    return margin_of_difference([error for _, error, _ in spreads], [count for _, _, count in spreads])


# --- What has to be said beside the numbers ---------------------------------------------------------------------------


def _notes(comparison: Comparison) -> list[str]:
    notes = []
    methods = comparison.methods
    if "all" in comparison.folds and not comparison.held_out:
        notes.append(FOLD_ALL)
    earlier = {
        method.name: sorted({run.epochs_scored for run in method.runs if run.epochs_scored}) for method in methods
    }
    if any(earlier.values()) and not comparison.held_out:
        listed = "; ".join(f"{name} after {', '.join(epochs)} epochs" for name, epochs in earlier.items() if epochs)
        notes.append(f"Not the final weights, as with --val_best: {listed}.")
    if any(len(method.runs) == 1 for method in methods):
        notes.append(
            "A method with one run has no standard error: how much it would change from one training to the next is "
            "unknown, and no difference to it counts as beyond noise."
        )
    for metric in comparison.metrics:
        left_out = {name: labels[AVERAGE].left_out for name, labels in comparison.scores[metric].items()}
        if any(left_out.values()):
            counts = ", ".join(f"{name} {count}" for name, count in left_out.items())
            reason = "no cell, true or predicted" if source_of(metric) is INSTANCE else "an empty mask"
            notes.append(
                f"{title_of(metric)}: values that do not exist ({reason}) are left out of the means: {counts}."
            )
    if comparison.num_cases < 6:
        least = 2 / 2**comparison.num_cases
        notes.append(f"With {comparison.num_cases} cases no p-value can be below {least:.3g}, whatever the methods do.")
    records = [(method, [run.record for run in method.runs]) for method in methods]
    lacking = [method.name for method, found in records if None in found]
    if lacking:
        notes.append(f"No record of what it cost (written by our trainers only): {', '.join(lacking)}.")
    for what, read in _CIRCUMSTANCES.items():
        said = {method.name: sorted({read(record) for record in found if record}) for method, found in records}
        if len({value for values in said.values() for value in values}) > 1:
            listed = "; ".join(f"{name} {', '.join(values)}" for name, values in said.items() if values)
            notes.append(f"Not trained alike, {what}: {listed}.")
    return notes


def _device_words(record: dict) -> str:
    device = record.get("device") or {}
    return str(device.get("name") or device.get("type"))


def _recipe_words(record: dict) -> str:
    recipe = dict(record.get("recipe") or {})
    words = f"{recipe.pop('optimizer', None)} {recipe.pop('initial_lr', None)}"
    return "".join([words, *(f", {name} {value}" for name, value in recipe.items())])


_CIRCUMSTANCES = {
    "device": _device_words,
    "recipe": _recipe_words,
    "iterations": lambda record: str((record.get("epochs_done") or 0) * (record.get("iterations_per_epoch") or 0)),
    "patch": lambda record: "x".join(map(str, record.get("patch_size") or [])),
    "batch": lambda record: str(record.get("batch_size")),
    "nnunet_logvmamba": lambda record: str((record.get("versions") or {}).get("nnunet_logvmamba")),
    "nnU-Net": lambda record: str((record.get("versions") or {}).get("nnunetv2")),
    "torch": lambda record: str((record.get("versions") or {}).get("torch")),
}


def conclusion(comparison: Comparison, metric: str) -> str:
    """One or two sentences: which method is best on average, and from which ones the data cannot tell it.

    Where the averages cover different cases, no method is called the best; the pairs are, on the cases that both have.
    """
    scores = {name: labels[AVERAGE] for name, labels in comparison.scores[metric].items()}
    known = {name: score.mean for name, score in scores.items() if isfinite(score.mean)}
    if not known:
        return f"{title_of(metric)}: no case has a value."
    pairs = [pair for pair in comparison.pairs if (pair.metric, pair.label) == (metric, AVERAGE)]
    if not comparison.same_cases[metric][AVERAGE]:
        counts = _counted(scores)
        verdicts = _verdicts(pairs)
        parts = [f"{better} is {_in_words(found)}" for better, found in verdicts.items() if _in_words(found)]
        return (
            f"{title_of(metric)}: the averages cover different cases (values: {counts}), so none is called the best; "
            f"on the cases that both have, {'; '.join(parts) or 'no pair differs beyond noise'}."
        )
    best = METRICS[metric].best(known)
    pairs = [pair for pair in pairs if best in (pair.first, pair.second)]
    verdicts = _verdicts(pairs)
    parts = [words] if (words := _in_words(verdicts.pop(best, {}))) else []
    within = [_other(pair, best) for pair in pairs if pair.verdict == "within noise"]
    if within:
        parts.append(f"within noise of {_and(within)}: these data do not tell them apart")
    worse = [name for name, found in verdicts.items() if _in_words(found)]
    if worse:
        counted = "classes" if len(comparison.labels[metric]) > 1 else "runs"
        parts.append(f"worse than {_and(worse)} case by case, since the average counts {counted} and not cases")
    return f"{title_of(metric)}: {best} has the best average" + (f"; it is {'; '.join(parts)}." if parts else ".")


def _counted(scores: Mapping[str, Score]) -> str:
    """Say how many values each method has, at once for those that have as many, where these are three or more."""
    counts = {name: f"{score.scored} of {score.scored + score.left_out}" for name, score in scores.items()}
    usual, times = Counter(counts.values()).most_common(1)[0]
    if times < 3:
        return ", ".join(f"{name} {count}" for name, count in counts.items())
    return ", ".join([*(f"{name} {count}" for name, count in counts.items() if count != usual), f"all others {usual}"])


def _verdicts(pairs: Iterable[Pair]) -> dict[str, dict[str, list[str]]]:
    """By the method that is better case by case: verdicts, and whom they are about."""
    found: dict[str, dict[str, list[str]]] = {}
    for pair in pairs:
        better, other = pair.ordered
        found.setdefault(better, {}).setdefault(pair.verdict, []).append(other)
    return found


def _in_words(verdicts: Mapping[str, Sequence[str]]) -> str:
    """What a method is, but for what is within noise; empty if nothing."""
    parts = []
    if "beyond noise" in verdicts:
        parts.append(f"beyond noise better than {_and(verdicts['beyond noise'])}")
    if "one training each" in verdicts:
        parts.append(
            f"better on these cases than {_and(verdicts['one training each'])}, which may be the luck of that "
            "training, since one of the two or both were trained once"
        )
    return "; ".join(parts)


def _other(pair: Pair, name: str) -> str:
    return pair.second if pair.first == name else pair.first


def indistinguishable(comparison: Comparison, metric: str, label: str, best: str) -> set[str]:
    """Methods that ``best`` is not beyond noise better than, by a test or for want of one."""
    beyond = {
        _other(pair, best)
        for pair in comparison.pairs
        if (pair.metric, pair.label) == (metric, label)
        and best in (pair.first, pair.second)
        and (pair.verdict == "beyond noise" and pair.ordered[0] == best)
    }
    return {method.name for method in comparison.methods} - beyond - {best}


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
