"""Mean scores of answers with intervals, whatever kind of judge gave them.

A judge that says yes or no gives shares, which have score intervals: a bootstrap of none in a
hundred is a point. All other scores are bootstrapped over prompts.
"""

from __future__ import annotations

import numpy as np

from plugalign.evaluation.statistics.intervals import paired_share_interval, share_interval
from plugalign.evaluation.statistics.paired import (
    FloatArray,
    Interval,
    PairedBootstrap,
    mean_score,
)


def score_mean(scores: FloatArray, bootstrap: PairedBootstrap) -> Interval | None:
    """The mean over prompts of the mean of their answers.

    Args:
        scores: of answers ``(P, S)``, NaN where one is missing. bootstrap: over the P prompts.

    Returns:
        None where all are missing.
    """
    means = mean_score(scores)
    if np.isnan(means).all():
        return None
    if yes_or_no(scores):
        return share_interval(means, scores.shape[1])
    return bootstrap.mean(means)


def score_change(
    scores: FloatArray, base: FloatArray, bootstrap: PairedBootstrap
) -> Interval | None:
    """The mean over prompts of the change from the base's mean score.

    Args:
        scores, base: of answers ``(P, S)``, NaN where one is missing. bootstrap: over the P
            prompts.

    Returns:
        None where no prompt has both.
    """
    means, others = mean_score(scores), mean_score(base)
    if np.isnan(means - others).all():
        return None
    if yes_or_no(scores) and yes_or_no(base):
        return paired_share_interval(means, others)
    return bootstrap.difference(means, others)


def yes_or_no(scores: FloatArray) -> bool:
    """Whether every score that is there is 0 or 1."""
    return bool(np.isin(scores[~np.isnan(scores)], (0, 1)).all())
