"""What a difference between two methods amounts to; the tests are SciPy's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads stats when it is used

TIE = 1e-6
"""Differences up to this size count as ties."""

RESAMPLES = 9999
AT_ONCE = 10_000_000
"""Numbers that the bootstrap holds at a time."""


def mean_and_standard_error(values: Sequence[float] | np.ndarray) -> tuple[float, float, int]:
    """Mean, its standard error (sample standard deviation over the root of the count) and the count.

    Values that are NaN or infinite are left out. Of one value the standard error is NaN, of none the mean as well.
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        return float("nan"), float("nan"), 0
    error = float(finite.std(ddof=1) / np.sqrt(finite.size)) if finite.size > 1 else float("nan")
    return float(finite.mean()), error, int(finite.size)


def margin_of_difference(errors: Sequence[float], counts: Sequence[int], *, confidence: float = 0.95) -> float:
    """Half the width of the confidence interval of a sum or difference of independent means.

    Student's t with the degrees of freedom of Welch and Satterthwaite: out of two values each, the interval is up to
    6.4 times as wide as twice the standard error would say.

    Args:
        errors: Standard error of each mean.
        counts: Values behind each mean, at least two.

    Returns:
        NaN if an error is unknown.

    References: Welch (1947), doi:10.1093/biomet/34.1-2.28.
    """
    variances = np.square(np.asarray(errors, dtype=float))
    total = variances.sum()
    if not np.isfinite(total) or total == 0:
        return float(total)
    shares = variances / total
    freedom = 1 / np.sum(np.square(shares) / (np.asarray(counts) - 1))
    return float(scipy.stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(total))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct a family of p-values for their number, after Holm (1979).

    The smallest of m is multiplied by m, the next by m - 1 and so on; none may be smaller than the one before it, none
    exceeds 1. NaN (nothing was tested) stays NaN and does not count.
    """
    given = np.asarray(p_values, dtype=float)
    corrected = np.full(given.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    factors = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(given[order] * factors))
    return corrected.tolist()


@dataclass(frozen=True)
class Paired:
    """Two methods on the same cases.

    ``difference`` is the mean of first minus second over ``cases`` that both have a value for; ``low`` and ``high``
    bound its bootstrap confidence interval; ``wins`` are cases where the first is better.
    """

    cases: int
    difference: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int


def compare_pairs(
    differences: Sequence[float] | np.ndarray, *, higher_is_better: bool, confidence: float = 0.95
) -> Paired:
    """Test paired differences: Wilcoxon's signed-rank test, two-sided, and a BCa bootstrap over the cases.

    Differences that are NaN or infinite are left out, those up to ``TIE`` count as zero throughout. Zeros say nothing
    about the direction and are dropped by the test; where all are zero, p is 1. Fewer than two cases, or differences
    that are all equal, have an interval without width or none (NaN). The bootstrap is seeded, so equal input gives
    equal output.

    Args:
        differences: First minus second, one per case.
        higher_is_better: For wins and losses only.
        confidence: Of the interval.
    """
    d = np.asarray(differences, dtype=float)
    d = d[np.isfinite(d)]
    d = np.where(np.abs(d) <= TIE, 0, d)
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    if not higher_is_better:
        wins, losses = losses, wins
    ties = int(d.size) - wins - losses
    if d.size == 0:
        return Paired(0, *(float("nan"),) * 4, 0, 0, 0)
    mean = float(d.mean())
    if d.size == 1:
        return Paired(1, mean, float("nan"), float("nan"), float("nan"), wins, ties, losses)
    # Equal differences share a rank, which 1 - 5/6 and 1/6, equal but for rounding, would not.
    p = float(scipy.stats.wilcoxon(d.round(9)).pvalue) if np.any(d != 0) else 1.0
    if np.ptp(d) <= TIE:
        low = high = mean
    else:
        generator = np.random.default_rng(0)
        found = scipy.stats.bootstrap(
            (d,),
            np.mean,
            confidence_level=confidence,
            n_resamples=RESAMPLES,
            batch=max(1, AT_ONCE // d.size),
            method="BCa",
            random_state=generator,
        )
        low, high = map(float, found.confidence_interval)
    return Paired(int(d.size), mean, low, high, p, wins, ties, losses)
