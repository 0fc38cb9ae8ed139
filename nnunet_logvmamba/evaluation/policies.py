"""What a score is worth where a mask is empty, a policy per community; and in which order means are taken."""

from __future__ import annotations

from dataclasses import dataclass

from .metrics import Metric

NAN = float("nan")

BRATS_HD95_MM = 373.12866
"""Diagonal of the BraTS grid, 240 x 240 x 155 voxels of 1 mm; it means nothing on another grid."""

BRATS_SHAPE = (155, 240, 240)
"""Slices, rows, columns."""


@dataclass(frozen=True)
class Outcome:
    """Scores of one pair with an empty mask; NaN leaves the pair out of the mean, and it is counted.

    ``overlap`` is the value of Dice, IoU and the scores of instances, ``hd95`` that of HD95, ``nsd`` that of the
    bounded scores of surfaces.
    """

    overlap: float
    hd95: float
    nsd: float

    def score_of(self, metric: Metric) -> float:
        """Give the value of a metric."""
        if metric.of != "surfaces":
            return self.overlap
        return self.nsd if metric.bounded else self.hd95


@dataclass(frozen=True)
class Policy:
    """What to do with empty masks.

    Attributes:
        name: As users say it.
        text: Where it comes from.
        both_empty: Nothing there and nothing found.
        false_positive: Nothing there but something found.
        miss: Something there but nothing found.
    """

    name: str
    text: str
    both_empty: Outcome
    false_positive: Outcome
    miss: Outcome

    def outcome(self, *, truth_empty: bool, prediction_empty: bool) -> Outcome | None:
        """Give the scores of a pair of which a mask is empty, None where neither is."""
        if truth_empty and prediction_empty:
            return self.both_empty
        if truth_empty:
            return self.false_positive
        return self.miss if prediction_empty else None


_PERFECT = Outcome(overlap=1.0, hd95=0.0, nsd=1.0)
_LEFT_OUT = Outcome(overlap=NAN, hd95=NAN, nsd=NAN)
# The distance to nothing is infinite, and no mean can hold it: left out and counted.
_WRONG = Outcome(overlap=0.0, hd95=NAN, nsd=0.0)
_FARTHEST = Outcome(overlap=0.0, hd95=BRATS_HD95_MM, nsd=0.0)
_FIFTY = Outcome(overlap=0.0, hd95=50.0, nsd=0.0)

POLICIES = {
    policy.name: policy
    for policy in (
        Policy("brats", "BraTS challenge until 2022; HD95 in mm on its grid", _PERFECT, _FARTHEST, _FARTHEST),
        Policy("nnunet", "nnU-Net's summary.json, carried on to surfaces", _LEFT_OUT, _WRONG, _WRONG),
        Policy("umamba", "U-Mamba's scripts for organs and endoscopy", _PERFECT, _WRONG, _WRONG),
        Policy(
            "paper",
            "LoG-VMamba's public evaluator; leaves out the failures and so flatters: only to compare with its tables",
            _PERFECT,
            _LEFT_OUT,
            _LEFT_OUT,
        ),
        Policy("segmamba", "SegMamba's script, which counts a correct empty mask as a failure", _FIFTY, _FIFTY, _FIFTY),
    )
}
DEFAULT_POLICY = "nnunet"

AVERAGES = {
    "class-first": "mean over the cases of each label, then over the labels",
    "frame-first": "mean over the labels that are in the truth or the prediction of a case, then over the cases",
}


def policy_for(*names: str | None) -> str:
    """Give the policy that is customary for a data set: ``brats`` where one of its names says so, else ``nnunet``."""
    return "brats" if any("brats" in (name or "").lower() for name in names) else DEFAULT_POLICY
