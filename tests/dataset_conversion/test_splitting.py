"""Folds and held-out cases: no group on both sides, kinds spread, names alone decide."""

from collections import Counter

import pytest

from dataset_conversion.core import sources, splitting
from dataset_conversion.core.cases import Case, ConversionError


@pytest.mark.parametrize(("num_cases", "num_folds"), [(2, 2), (4, 4), (5, 5), (17, 5)])
def test_folds_partition_the_cases(num_cases, num_folds):
    cases = [f"case_{number}" for number in range(num_cases)]
    splits = splitting.make_splits(cases)
    assert len(splits) == num_folds
    assert sorted(case for fold in splits for case in fold["val"]) == sorted(cases)
    for fold in splits:
        assert sorted(fold["train"] + fold["val"]) == sorted(cases)
    sizes = [len(fold["val"]) for fold in splits]
    assert max(sizes) - min(sizes) <= 1


def test_folds_do_not_depend_on_the_order_of_the_cases_and_are_shuffled():
    cases = [f"case_{number:02d}" for number in range(20)]
    assert splitting.make_splits(cases) == splitting.make_splits(cases[::-1])
    assert splitting.make_splits(cases)[0]["val"] != cases[:4]


def test_no_group_lies_on_both_sides_of_a_fold():
    cases = [f"case_{number:03d}" for number in range(1, 60)]
    for fold in splitting.make_splits(cases, lambda case: (sources.trailing_number(case) + 2) // 3):
        sides = [{(sources.trailing_number(case) + 2) // 3 for case in fold[side]} for side in ("train", "val")]
        assert not sides[0] & sides[1]


def test_every_fold_gets_its_share_of_each_stratum():
    cases = {f"patient{number:03d}_{phase}": "abcde"[number % 5] for number in range(100) for phase in ("ed", "es")}
    splits = splitting.make_splits(cases, lambda case: case[:10], cases.__getitem__)
    for fold in splits:
        assert Counter(cases[case] for case in fold["val"]) == dict.fromkeys("abcde", 8)
        assert not {case[:10] for case in fold["train"]} & {case[:10] for case in fold["val"]}


def test_a_held_out_share_takes_whole_groups_of_every_stratum():
    cases = [
        Case(f"c{number:03d}", (), group=f"g{number // 2:03d}", stratum="ab"[number // 2 % 2]) for number in range(80)
    ]
    training, testing = splitting.hold_out(cases, 0.2)
    assert Counter(case.stratum for case in testing) == {"a": 8, "b": 8}
    assert not {case.group for case in training} & {case.group for case in testing}
    assert splitting.hold_out(cases[::-1], 0.2)[1][::-1] == testing
    with pytest.raises(ConversionError, match="leaves one side empty"):
        splitting.hold_out(cases[:4], 0.1)


def test_a_group_on_both_sides_of_a_split_is_refused():
    cases = [Case("a1", (), group="a"), Case("a2", (), group="a"), Case("b", ())]
    with pytest.raises(ConversionError, match="Group a lies on both sides"):
        splitting.require_groups_apart([{"train": ["a1", "b"], "val": ["a2"]}], cases, [])
    with pytest.raises(ConversionError, match="Group a lies on both sides"):
        splitting.require_groups_apart([], cases[:1], cases[1:2])


def test_one_subject_cannot_be_split():
    with pytest.raises(ConversionError, match="at least 2"):
        splitting.make_splits(["a_1", "a_2"], lambda case: "a")
