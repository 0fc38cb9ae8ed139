"""Folds and held-out cases, with whole groups on one side and kinds of cases spread evenly."""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from dataset_conversion.core.cases import Case, ConversionError

SPLIT_SEED = 12345
MAX_FOLDS = 5


def make_splits(
    cases: Collection[str],
    group_of: Callable[[str], str] = str,
    stratum_of: Callable[[str], str] = lambda case: "",
) -> list[dict[str, list[str]]]:
    """Cross-validation folds over sorted, seeded-shuffled groups; no group is on both sides of a fold.

    Five folds, or one per group where there are fewer groups. In cases of each stratum folds differ by at most the size
    of its largest group; over several strata such differences may add up.

    Args:
        group_of: Case name to the patient (or sequence) it belongs to; by default every case is its own group.
        stratum_of: Case name to the kind of case it is; by default there is one kind.

    Raises:
        ConversionError: With fewer than two groups nothing can be held out.
    """
    groups = group_cases(cases, group_of)
    if len(groups) < 2:
        raise ConversionError(
            f"Only {len(groups)} subject found in {len(cases)} case(s), such as {min(cases)}; at least 2 are needed to "
            "train and validate."
        )
    folds: list[list[str]] = [[] for _ in range(min(MAX_FOLDS, len(groups)))]
    held: list[Counter[tuple[str, ...]]] = [Counter() for _ in folds]
    for stratum, group in _shuffled(groups, stratum_of):
        # Large groups come first, each into the fold that has least of its kind, then least of all.
        fold = min(range(len(folds)), key=lambda index: (held[index][stratum], len(folds[index])))
        folds[fold].extend(groups[group])
        held[fold][stratum] += len(groups[group])
    return splits_from_folds(cases, folds)


def group_cases(cases: Iterable[str], group_of: Callable[[str], str]) -> dict[str, list[str]]:
    """Cases of each group, both sorted."""
    groups: dict[str, list[str]] = {}
    for case in sorted(cases):
        groups.setdefault(group_of(case), []).append(case)
    return {group: groups[group] for group in sorted(groups)}


def _shuffled(
    groups: Mapping[str, Sequence[str]], stratum_of: Callable[[str], str]
) -> list[tuple[tuple[str, ...], str]]:
    """Stratum and name of every group, stratum by stratum, within each large groups first, otherwise shuffled."""
    order = list(groups)
    random.Random(SPLIT_SEED).shuffle(order)
    order.sort(key=lambda group: -len(groups[group]))
    strata = {group: tuple(sorted({stratum_of(case) for case in groups[group]})) for group in order}
    return [(strata[group], group) for group in sorted(order, key=lambda group: strata[group])]


def splits_from_folds(cases: Iterable[str], folds: Sequence[Collection[str]]) -> list[dict[str, list[str]]]:
    """nnU-Net's list of training and validation cases from the validation cases of each fold."""
    everything = set(cases)
    return [{"train": sorted(everything - set(fold)), "val": sorted(fold)} for fold in folds]


def hold_out(cases: Sequence[Case], share: float) -> tuple[list[Case], list[Case]]:
    """Cases to train on and cases to test on: whole groups, ``share`` of the cases of each stratum.

    The choice depends on names, groups and strata only. A stratum that has a single group stays with the training.

    Raises:
        ConversionError: If nothing would be left on one side.
    """
    by_name = {case.name: case for case in cases}
    groups = group_cases(by_name, lambda name: by_name[name].group or name)
    chosen: set[str] = set()
    ordered = _shuffled(groups, lambda name: by_name[name].stratum)
    for stratum in sorted({stratum for stratum, _ in ordered}):
        members = [group for other, group in ordered if other == stratum]
        wanted = share * sum(len(groups[group]) for group in members)
        for group in reversed(members[1:]):  # small groups first, so that the share is met closely
            if 2 * wanted >= len(groups[group]):
                chosen.update(groups[group])
                wanted -= len(groups[group])
    if not chosen or len(chosen) == len(cases):
        raise ConversionError(
            f"A test share of {share:g} of {len(cases)} case(s) in {len(groups)} group(s) leaves one side empty; "
            "add cases, or choose another share or protocol."
        )
    return [case for case in cases if case.name not in chosen], [case for case in cases if case.name in chosen]


def require_groups_apart(
    splits: Sequence[Mapping[str, Sequence[str]]], cases: Sequence[Case], test_cases: Sequence[Case]
) -> None:
    """Raise a ConversionError if a group lies on both sides of a fold, or among training and test cases."""
    group_of = {case.name: case.group or case.name for case in (*cases, *test_cases)}
    sides = [(fold["train"], fold["val"]) for fold in splits]
    sides.append(([case.name for case in cases], [case.name for case in test_cases]))
    for first, second in sides:
        case_of = {group_of[case]: case for case in reversed(first)}
        for case in second:
            if group_of[case] in case_of:
                raise ConversionError(
                    f"Group {group_of[case]} lies on both sides of a split, with case {case_of[group_of[case]]} and "
                    f"with case {case}; take one of them out of the source, rename the group if two are called alike, "
                    "or choose another protocol."
                )
