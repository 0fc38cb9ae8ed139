"""Means, corrections and paired tests, against numbers worked out by hand and by SciPy."""

from math import isnan, sqrt

import numpy as np
import pytest
from scipy import stats

from nnunet_logvmamba.results.statistics import (
    compare_pairs,
    holm,
    margin_of_difference,
    mean_and_standard_error,
)


def test_the_standard_error_is_the_sample_deviation_over_the_root_of_the_count():
    mean, error, count = mean_and_standard_error([0.8, 0.9, 0.7, float("nan"), float("inf")])
    assert (mean, count) == (pytest.approx(0.8), 3)
    assert error == pytest.approx(0.1 / sqrt(3))


def test_differences_that_are_equal_but_for_rounding_share_a_rank():
    sixth = [1 - 5 / 6, 0.5 - 1 / 3, 1 / 6, 2 / 3 - 0.5, 7 / 6 - 1, 1 / 6, 5 / 6 - 2 / 3, 1 / 3 - 1 / 6, -1 / 6]
    assert len(set(map(abs, sixth))) > 1
    assert compare_pairs(sixth, higher_is_better=True).p == pytest.approx(stats.wilcoxon(np.sign(sixth)).pvalue)


def test_many_cases_are_compared_in_little_memory():
    import tracemalloc

    differences = np.random.default_rng(0).standard_normal(6000)
    tracemalloc.start()
    found = compare_pairs(differences, higher_is_better=True)
    assert tracemalloc.get_traced_memory()[1] < 400e6
    tracemalloc.stop()
    assert found.low < found.difference < found.high


def test_one_value_has_no_standard_error_and_none_has_no_mean():
    mean, error, count = mean_and_standard_error([0.8])
    assert (mean, count) == (0.8, 1)
    assert isnan(error)
    mean, error, count = mean_and_standard_error([float("nan")])
    assert isnan(mean)
    assert isnan(error)
    assert count == 0


def test_the_margin_of_a_difference_is_that_of_welchs_interval():
    first, second = [0.80, 0.83, 0.79], [0.70, 0.71, 0.75, 0.72, 0.74]
    described = [mean_and_standard_error(values) for values in (first, second)]
    margin = margin_of_difference([error for _, error, _ in described], [count for _, _, count in described])
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert margin == pytest.approx((interval.high - interval.low) / 2)
    # One mean of two values has one degree of freedom, where 12.706 stands in place of 2.
    assert margin_of_difference([0.01], [2]) == pytest.approx(0.12706, abs=1e-5)
    assert margin_of_difference([0.0, 0.0], [2, 2]) == 0
    assert isnan(margin_of_difference([0.01, float("nan")], [2, 1]))


def test_holm_multiplies_the_smallest_by_the_number_of_tests_and_never_goes_down():
    # 0.01 x 4, 0.02 x 3, then 0.03 x 2 and 0.5 x 1; sorted back.
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    # 0.04 x 3 = 0.12; 0.05 x 2 = 0.10 must not be below it; 0.9.
    assert holm([0.04, 0.05, 0.9]) == pytest.approx([0.12, 0.12, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_what_was_not_tested_does_not_count_for_holm():
    corrected = holm([float("nan"), 0.02, 0.03])
    assert isnan(corrected[0])
    assert corrected[1:] == pytest.approx([0.04, 0.04])
    assert holm([]) == []


def test_six_wins_of_six_have_the_smallest_p_that_six_cases_can():
    found = compare_pairs([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], higher_is_better=True)
    assert found.p == pytest.approx(2 / 2**6)
    assert (found.wins, found.ties, found.losses, found.cases) == (6, 0, 0, 6)
    assert found.difference == pytest.approx(0.35)
    assert 0 < found.low < 0.35 < found.high < 0.6


def test_p_is_that_of_wilcoxons_test_on_both_series():
    generator = np.random.default_rng(3)
    first, second = generator.normal(0.82, 0.05, 40), generator.normal(0.80, 0.05, 40)
    found = compare_pairs(first - second, higher_is_better=True)
    assert found.p == pytest.approx(stats.wilcoxon(first, second).pvalue)


def test_the_interval_of_a_large_normal_sample_is_that_of_the_mean():
    d = np.random.default_rng(4).normal(0.01, 0.05, 2000)
    found = compare_pairs(d, higher_is_better=True)
    half = 1.96 * d.std(ddof=1) / sqrt(len(d))
    assert found.low == pytest.approx(d.mean() - half, abs=3e-4)
    assert found.high == pytest.approx(d.mean() + half, abs=3e-4)
    assert found == compare_pairs(d, higher_is_better=True), "the bootstrap must be repeatable"


def test_lower_is_better_exchanges_wins_and_losses():
    found = compare_pairs([-1.0, -2.0, 3.0, 0.0, float("nan"), float("inf")], higher_is_better=False)
    assert (found.wins, found.ties, found.losses, found.cases) == (2, 1, 1, 4)
    assert found.difference == 0


def test_equal_methods_do_not_differ():
    found = compare_pairs([0.0] * 8, higher_is_better=True)
    assert (found.p, found.low, found.high, found.ties) == (1.0, 0.0, 0.0, 8)


def test_what_counts_as_a_tie_does_not_decide_a_test():
    found = compare_pairs(np.linspace(1e-9, 9e-7, 20), higher_is_better=True)
    assert (found.difference, found.low, found.high, found.p, found.ties) == (0, 0, 0, 1, 20)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_cases_test_nothing(count):
    found = compare_pairs([0.1] * count, higher_is_better=True)
    assert found.cases == count
    assert isnan(found.p)
    assert isnan(found.low)
