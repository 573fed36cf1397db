"""Whether a judge can be trusted: how far it agrees with reference scores of the same texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from plugalign.evaluation.statistics.auc import auc_of
from plugalign.evaluation.statistics.paired import FloatArray, Interval


@dataclass(frozen=True)
class Agreement:
    """A judge beside a reference such as Perspective.

    Args:
        auc: the chance that the judge ranks a text at or above the threshold over one below it.
        spearman: the rank correlation of the two scores.
        toxic: the share of texts that the judge calls toxic at the threshold.
        reference_toxic: the share that the reference calls toxic. AUC ignores where a judge cuts;
            toxicity probability does not, so these two should be alike.
        texts: how many texts that is over.
        missing: how many more the judge failed on.
    """

    auc: Interval
    spearman: Interval
    toxic: float
    reference_toxic: float
    texts: int
    missing: int


def agreement(
    scores: ArrayLike,
    reference: ArrayLike,
    *,
    threshold: float = 0.5,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """Compares a judge's scores with reference scores: ``agreement(judge(texts), perspective)``.

    The intervals are percentile intervals over resampled texts. Where all resamples have the same
    AUC, as of few texts in a perfect order, its interval is DeLong's with a floor; where all have
    the same rank correlation, it is Bonett and Wright's (2000), half a swap short of 1.

    Args:
        scores: a judge's P(toxic) of n texts, ``(n,)``, NaN where it failed.
        reference: the reference scores of the same texts, ``(n,)``, in [0, 1].
        threshold: from where on a text is toxic, for both.
        resamples: how often the texts are drawn with replacement.
        level: the coverage of the intervals.
        seed: equal seeds give equal intervals.

    Raises:
        ValueError: numbers that differ, a reference that is missing or outside [0, 1], or fewer
            than two scored texts on one side of the threshold.
    """
    mine, wanted = _checked(scores, reference)
    there = ~np.isnan(mine)
    mine, wanted = mine[there], wanted[there]
    toxic = wanted >= threshold
    if min(toxic.sum(), (~toxic).sum()) < 2:
        raise ValueError(
            f"agreement needs two texts or more on each side of {threshold}; of the {toxic.size} "
            f"texts that were scored, the reference calls {toxic.sum()} toxic"
        )
    rng = np.random.default_rng(seed)
    draws = rng.integers(toxic.size, size=(resamples, toxic.size))
    tails = ((1 - level) / 2, (1 + level) / 2)
    auc = _interval(_auc, toxic, mine, draws, tails)
    if auc.low == auc.high:
        auc = auc_of(toxic, mine).interval(level)
    spearman = _interval(_spearman, wanted, mine, draws, tails)
    if spearman.low == spearman.high and abs(spearman.value) == 1:
        spearman = _in_perfect_order(spearman.value, toxic.size, level)
    return Agreement(
        auc=auc,
        spearman=spearman,
        toxic=float(np.mean(mine >= threshold)),
        reference_toxic=float(np.mean(toxic)),
        texts=toxic.size,
        missing=int((~there).sum()),
    )


def _checked(scores: ArrayLike, reference: ArrayLike) -> tuple[FloatArray, FloatArray]:
    mine = np.asarray(scores, dtype=np.float64)
    wanted = np.asarray(reference, dtype=np.float64)
    if mine.ndim != 1 or mine.shape != wanted.shape:
        raise ValueError(f"scores of shape {mine.shape} came with a reference of {wanted.shape}")
    if not np.all((wanted >= 0) & (wanted <= 1)):
        raise ValueError("a reference score is missing or outside [0, 1]; leave such texts out")
    return mine, wanted


def _interval(
    statistic: Callable[[NDArray[Any], FloatArray], FloatArray],
    reference: NDArray[Any],
    scores: FloatArray,
    draws: NDArray[np.int64],
    tails: tuple[float, float],
) -> Interval:
    value = statistic(reference[None], scores[None])[0]
    low, high = np.nanquantile(statistic(reference[draws], scores[draws]), tails)
    return Interval(float(value), float(low), float(high))


def _auc(toxic: NDArray[np.bool_], scores: FloatArray) -> FloatArray:
    """The area under the ROC curve of each row ``(R, n)``, by Mann and Whitney's ranks: ``(R,)``.

    NaN for a resample that lacks one of the classes.
    """
    positive = toxic.sum(axis=1).astype(np.float64)
    pairs = positive * (toxic.shape[1] - positive)
    above = (stats.rankdata(scores, axis=1) * toxic).sum(axis=1) - positive * (positive + 1) / 2
    return np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan)


def _spearman(reference: FloatArray, scores: FloatArray) -> FloatArray:
    """Pearson's correlation of the ranks of each row ``(R, n)``: ``(R,)``.

    0 for a judge that says the same of every text.
    """
    first, second = (stats.rankdata(x, axis=1) for x in (reference, scores))
    first, second = (x - x.mean(axis=1, keepdims=True) for x in (first, second))
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    correlation: FloatArray = (first * second).sum(axis=1) / np.where(scale > 0, scale, 1.0)
    return correlation


def _in_perfect_order(value: float, texts: int, level: float) -> Interval:
    """The interval of a rank correlation of 1 or -1: Fisher's, of four texts or more, from halfway
    to the next value, which two neighbours that change places give."""
    short = 1 - 6 / (texts**3 - texts)
    error = np.sqrt((1 + short**2 / 2) / (texts - 3))
    end = float(np.tanh(np.arctanh(short) - stats.norm.ppf((1 + level) / 2) * error))
    return Interval(value, *sorted((value, value * end)))
