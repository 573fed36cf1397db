"""Distances between two sets of scores, and ranks between two, with bootstrap draws over prompts.

The prompt is the unit of sampling, as in `plugalign.evaluation.statistics.paired`. A prompt's
scores are its own distribution, so that a set of prompts is a mixture: what is quadratic in the
mixture's distribution function costs one matrix product for all resamples. Two texts of a set are
always of two prompts: a text beside itself would make a set look less spread than it is, and
copies of one prompt in a resample even more so.

Letters here: P prompts, S samples per prompt, K points of the support, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from plugalign.evaluation.statistics.paired import FloatArray

POINTS = 512  # of the support; where scores in [0, 1] are more, they are rounded to so many
GAPS = ("epsilon", "self_floor", "energy_distance", "signed_difference")


@dataclass(frozen=True, eq=False)
class Mixture:
    """The scores of P prompts on a common support.

    Attributes:
        support: ascending, ``(K,)``.
        shares: of a prompt's scores that lie at each point, ``(P, K)``; zero where it has none.
    """

    support: FloatArray
    shares: FloatArray

    @property
    def present(self) -> FloatArray:
        """1 for a prompt with scores, ``(P,)``."""
        found: FloatArray = np.round(self.shares.sum(axis=1))
        return found

    def mean(self, counts: FloatArray) -> FloatArray:
        """The mean score, ``(R,)``, of prompts that count so often ``(R, P)``."""
        return _over(counts @ (self.shares @ self.support), counts @ self.present)

    def cumulated(self, counts: FloatArray) -> FloatArray:
        """The mixture's distribution function, ``(R, K)``."""
        sums = (counts @ self.shares).cumsum(axis=1)
        return _over(sums, (counts @ self.present)[:, None])

    def spread(self, counts: FloatArray) -> FloatArray:
        """E|a - a'| of texts of two prompts, ``(R,)``; NaN where there is one prompt only."""
        widths, own = np.diff(self.support), self.shares.cumsum(axis=1)[:, :-1]
        mixed = self.cumulated(counts)[:, :-1]
        total = counts @ self.present
        alike = counts**2 @ (2 * own * (self.present[:, None] - own) @ widths)
        pairs = total**2 - counts**2 @ self.present
        apart = total**2 * (2 * mixed * (1 - mixed) @ widths) - alike
        return np.where(pairs > 0, apart / np.where(pairs > 0, pairs, 1.0), np.nan)


def _over(sums: FloatArray, counts: FloatArray) -> FloatArray:
    """A quotient; NaN where nothing is counted, as in a resample of prompts without scores."""
    return np.where(counts > 0, sums / np.where(counts > 0, counts, 1.0), np.nan)


def on_one_support(*scores: FloatArray) -> list[Mixture]:
    """Sets of scores, each ``(P, S)`` with NaN where one is missing, as mixtures.

    Scores in [0, 1] of which there are more than `POINTS` are rounded, by less than a thousandth.
    """
    known = np.concatenate([each[~np.isnan(each)] for each in scores])
    support = np.unique(known)
    if support.size > POINTS:
        support = np.linspace(known.min(), known.max(), POINTS)
    return [_mixture(each, support) for each in scores]


def _mixture(scores: FloatArray, support: FloatArray) -> Mixture:
    present = ~np.isnan(scores)
    rows, columns = np.nonzero(present)
    values = scores[rows, columns]
    after = np.clip(np.searchsorted(support, values), 1 if support.size > 1 else 0, None)
    before = np.maximum(after - 1, 0)
    nearer = np.abs(values - support[before]) < np.abs(values - support[after])
    counts = np.zeros((len(scores), support.size))
    np.add.at(counts, (rows, np.where(nearer, before, after)), 1.0)
    return Mixture(support, counts / np.maximum(present.sum(axis=1), 1)[:, None])


def gaps(
    model: Mixture, human: Mixture, counts: FloatArray, human_counts: FloatArray
) -> dict[str, FloatArray]:
    """How far a model's scores b are from those a of human text, each ``(R,)``, by `GAPS`.

    * epsilon: E|a - b|, the gap as the survey prints it. It is not zero for a perfect model.
    * self_floor: E|b - b'|, what two texts of the model differ by.
    * energy_distance: 2 E|a - b| - E|a - a'| - E|b - b'| (Székely and Rizzo 2013): 0 in the mean
      for a perfect model; an estimate may lie below 0.
    * signed_difference: E b - E a.

    Args:
        counts: of the model's prompts, ``(R, P)``. human_counts: of human texts, ``(R, H)``.
    """
    widths = np.diff(model.support)
    mine, theirs = model.cumulated(counts)[:, :-1], human.cumulated(human_counts)[:, :-1]
    epsilon = (mine + theirs - 2 * mine * theirs) @ widths
    floor = model.spread(counts)
    return {
        "epsilon": epsilon,
        "self_floor": floor,
        "energy_distance": 2 * epsilon - floor - human.spread(human_counts),
        "signed_difference": model.mean(counts) - human.mean(human_counts),
    }


def agreement_auc(above: FloatArray, scores: FloatArray, counts: FloatArray) -> FloatArray:
    """The chance that a text of the one class has a higher score than one of the other, ``(R,)``.

    Args:
        above: 1 for texts of the one class, 0 for the other, NaN where it is missing, ``(P, S)``.
        scores: ``(P, S)``.
        counts: of the prompts, ``(R, P)``.

    Returns:
        NaN for a resample that lacks a class.
    """
    ranks = _ranks(np.where(np.isnan(above), np.nan, scores))
    (all_ranks,) = on_one_support(ranks)
    support = all_ranks.support
    high, low = (
        counts @ _histogram(np.where(above == side, ranks, np.nan), support) for side in (1, 0)
    )
    below = low.cumsum(axis=1) - low / 2
    pairs = high.sum(axis=1) * low.sum(axis=1)
    return np.where(pairs > 0, (high * below).sum(axis=1) / np.where(pairs > 0, pairs, 1), np.nan)


def _ranks(scores: FloatArray) -> FloatArray:
    """Of all scores, NaN where one is missing: where ranks are rounded, few pairs become ties,
    however close together the scores lie."""
    found, there = np.full(scores.shape, np.nan), ~np.isnan(scores)
    found[there] = stats.rankdata(scores[there])
    return found


def _histogram(scores: FloatArray, support: FloatArray) -> FloatArray:
    """How many of each prompt's scores ``(P, S)`` lie at each point, ``(P, K)``."""
    present = (~np.isnan(scores)).sum(axis=1)
    found: FloatArray = _mixture(scores, support).shares * present[:, None]
    return found


def stacked(blocks: Sequence[dict[str, FloatArray]]) -> dict[str, FloatArray]:
    """Draws of several blocks of resamples as one."""
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
