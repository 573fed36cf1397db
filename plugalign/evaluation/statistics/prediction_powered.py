"""PPI++: the mean of human labels, by a few of them and a judge's scores of many texts.

A judge is biased, but where its scores go along with the labels they tell of the texts that nobody
has labelled. With n labelled and N other texts (Angelopoulos, Duchi and Zrnic 2023, "PPI++",
section 6)::

    theta = lambda mean(judge of the others) + mean(label - lambda judge)

It is unbiased whatever the judge is worth; lambda is the weight of the least variance, so that a
worthless judge counts for nothing. Labels that are all alike have no variance, and are no proof
that all texts are so: their mean has Wilson's interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from plugalign.evaluation.statistics.intervals import share_interval
from plugalign.evaluation.statistics.paired import Interval

FEWEST = 10  # labelled texts


@dataclass(frozen=True)
class PredictionPowered:
    """An estimate of the mean label.

    Attributes:
        mean: with its interval.
        labels_alone: that of the labels without a judge.
        weight: lambda.
        labelled: n, the number of labelled units.
    """

    mean: Interval
    labels_alone: Interval
    weight: float
    labelled: int


def prediction_powered(
    labels: ArrayLike, judged: ArrayLike, others: ArrayLike, level: float = 0.95
) -> PredictionPowered:
    """The mean label of all texts.

    Args:
        labels: of n units, ``(n,)``, in [0, 1]: texts, or prompts with the mean over their labelled
            texts.
        judged: the judge's scores of the same, ``(n,)``.
        others: its scores of N units without labels, ``(N,)``; N may be 0.
        level: the coverage.

    Raises:
        ValueError: for fewer than 10 labelled units, other shapes, or a number that is missing.
    """
    y, f, rest = (np.asarray(x, dtype=np.float64) for x in (labels, judged, others))
    if y.shape != f.shape or y.ndim != 1 or rest.ndim != 1:
        raise ValueError(f"labels {y.shape} and scores {f.shape} must be of the same texts")
    if y.size < FEWEST:
        raise ValueError(f"{FEWEST} labelled texts are needed, got {y.size}; label more")
    if np.isnan(np.concatenate([y, f, rest])).any():
        raise ValueError("a label or a score is missing; leave such texts out")
    if np.ptp(y) == 0:
        alike = share_interval(y, level=level)
        return PredictionPowered(alike, alike, weight=0.0, labelled=y.size)
    weight = _weight(y, f, rest.size)
    corrected = y - weight * f
    theta = corrected.mean() + (weight * rest.mean() if rest.size else 0.0)
    variance = corrected.var(ddof=1) / y.size
    variance += weight**2 * rest.var(ddof=1) / rest.size if rest.size > 1 else 0.0
    return PredictionPowered(
        mean=_interval(theta, variance, y.size, level),
        labels_alone=_interval(y.mean(), y.var(ddof=1) / y.size, y.size, level),
        weight=weight,
        labelled=y.size,
    )


def _weight(labels: np.ndarray, judged: np.ndarray, others: int) -> float:
    """lambda, within [0, 1]."""
    if others < 2 or np.ptp(judged) == 0:  # rounding gives equal scores a variance
        return 0.0
    spread = judged.var(ddof=1)
    both = float(np.cov(labels, judged, ddof=1)[0, 1])
    return float(np.clip(both / ((1 + labels.size / others) * spread), 0.0, 1.0))


def _interval(value: float, variance: float, count: int, level: float) -> Interval:
    """Student's, since a variance of a few labels is itself uncertain; within [0, 1], as labels
    are."""
    reach = float(stats.t.ppf((1 + level) / 2, count - 1)) * float(np.sqrt(variance))
    found = np.clip([value, value - reach, value + reach], 0.0, 1.0)
    return Interval(*map(float, found))
