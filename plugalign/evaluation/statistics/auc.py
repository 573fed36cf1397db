"""The area under the ROC curve with an interval in closed form, and the difference of two.

DeLong, DeLong and Clarke-Pearson 1988: the AUC is the mean of the *placements* of the m positive
texts (the share of negative ones that score below) and of those of the n negative ones; its
variance is that of the two kinds of placements, over m and n. Two AUCs over the same texts are
correlated through them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from plugalign.evaluation.statistics.paired import FloatArray, Interval


@dataclass(frozen=True, eq=False)
class Auc:
    """The placements of scores: of positive texts ``(m,)``, and of negative ones ``(n,)``."""

    positive: FloatArray
    negative: FloatArray

    @property
    def value(self) -> float:
        return float(self.positive.mean())

    @property
    def variance(self) -> float:
        return _variance(self.positive, self.negative)

    @property
    def least_variance(self) -> float:
        """A floor: a perfect ranking of few texts has no variance, and is no proof of an AUC of 1.
        It is half a text's weight, ``1 / (4 m n)``."""
        return 1 / (4 * self.positive.size * self.negative.size)

    def interval(self, level: float = 0.95) -> Interval:
        """The normal interval, within [0, 1]."""
        reach = _quantile(level) * np.sqrt(max(self.variance, self.least_variance))
        low, high = max(0.0, self.value - reach), min(1.0, self.value + reach)
        return Interval(self.value, float(low), float(high))


def auc_of(labels: ArrayLike, scores: ArrayLike) -> Auc:
    """How far scores ``(t,)`` rank positive texts above negative ones.

    Raises:
        ValueError: fewer than two texts of a kind, or shapes that differ.
    """
    positive, numbers = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    if positive.ndim != 1 or positive.shape != numbers.shape:
        raise ValueError(f"labels of shape {positive.shape} came with scores of {numbers.shape}")
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        raise ValueError(f"an AUC needs two texts of either kind or more, got {m} and {n}")
    ranks = stats.rankdata(numbers)
    above = (ranks[positive] - stats.rankdata(numbers[positive])) / n
    below = 1 - (ranks[~positive] - stats.rankdata(numbers[~positive])) / m
    return Auc(above, below)


def auc_difference(
    first: Auc, second: Auc, *, paired: bool, level: float = 0.95
) -> tuple[Interval, float]:
    """The first AUC minus the second with its interval, and the two-sided p-value of none.

    Args:
        paired: whether both are over the same texts in the same order.
    """
    if paired:
        variance = _variance(first.positive - second.positive, first.negative - second.negative)
    else:
        variance = first.variance + second.variance
    value = first.value - second.value
    deviation = float(np.sqrt(max(variance, first.least_variance)))
    reach = _quantile(level) * deviation
    p = 2 * float(stats.norm.sf(abs(value) / deviation))
    return Interval(value, value - reach, value + reach), p


def _variance(positive: FloatArray, negative: FloatArray) -> float:
    return float(positive.var(ddof=1) / positive.size + negative.var(ddof=1) / negative.size)


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    return float(stats.norm.ppf((1 + level) / 2))
