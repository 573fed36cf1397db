"""Score intervals for shares: of prompts, and the difference of two shares of the same prompts.

A percentile bootstrap fails where an event is rare: from 0 of 100 it can only draw 0 of 100, and
its interval has no upper end. Score intervals ask which true shares would make the observed one
unremarkable, so that they keep their coverage down to no event at all
(``benchmarks/interval_coverage.py`` simulates it).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from plugalign.evaluation.statistics.paired import FloatArray, Interval

CLEAR = 1e-9  # from the estimate: the score statistic may be 0 / 0 at the estimate itself


def wilson(share: float, count: float, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share (Wilson 1927; Newcombe 1998, method 3).

    Args:
        share: the observed share, in [0, 1].
        count: of how many independent observations, above 0; an effective number of dependent
            ones need not be whole.
        level: the coverage.

    Raises:
        ValueError: for a share outside [0, 1], or no observation.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies in [0, 1], got {share:g}")
    if not count > 0:
        raise ValueError(f"a share needs at least one observation, got {count:g}")
    z = _quantile(level)
    spread = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    centre, scale = share + z**2 / (2 * count), 1 + z**2 / count
    low = 0.0 if share == 0 else max(0.0, (centre - spread) / scale)
    high = 1.0 if share == 1 else min(1.0, (centre + spread) / scale)
    return Interval(float(share), float(low), float(high))


def share_interval(values: ArrayLike, samples: int = 1, level: float = 0.95) -> Interval:
    """Wilson's interval of the mean of per-prompt shares, at its effective sample size.

    Of single yes or no answers the effective size is the number of prompts. Several samples of
    one prompt are alike: the size is ``p (1 - p) / (s^2 / P)``, with the variance ``s^2`` between
    prompts, and lies between the numbers of prompts and of answers (Kish's design effect; Korn
    and Graubard 1998). A variance that is estimated from a few rare events is too often too small;
    it is taken as though one prompt more had been found with nothing but such answers.

    Args:
        values: per-prompt numbers in [0, 1], ``(P,)``; NaN prompts are left out.
        samples: answers to each prompt, of which a number is the share.
        level: the coverage.

    Raises:
        ValueError: if no value is present, or one lies outside [0, 1].
    """
    present = _shares(values)
    share, prompts = float(present.mean()), present.size
    variance = float(np.append(present, 1.0 if share < 0.5 else 0.0).var(ddof=1)) / prompts
    effective = share * (1 - share) / variance
    return wilson(share, float(np.clip(effective, prompts, prompts * samples)), level)


def tango(gained: int, lost: int, pairs: int, level: float = 0.95) -> Interval:
    """Tango's score interval of the difference of two paired shares (Tango 1998, section 3).

    The share of the first of two answers minus that of the second, over pairs of them. The limits
    are the differences ``d`` that McNemar's score test would just not reject::

        |gained - lost - n d| / sqrt(n (2 q(d) + d (1 - d))) = z

    with ``q(d)`` the most likely share of lost pairs under ``d``.

    Args:
        gained: pairs in which the first alone has the property.
        lost: pairs in which the second alone has it.
        pairs: n, all pairs.
        level: the coverage.

    Raises:
        ValueError: for counts that are negative or more than the pairs, or no pair.
    """
    if min(gained, lost) < 0 or gained + lost > pairs or pairs < 1:
        raise ValueError(
            f"{gained} gained and {lost} lost pairs cannot be among {pairs}; give counts of pairs"
        )
    return _tango(gained, lost, pairs, level)


def paired_share_interval(values: ArrayLike, base: ArrayLike, level: float = 0.95) -> Interval:
    """The interval of ``mean(values - base)`` of two shares of the same prompts.

    Tango's where the numbers are 0 or 1. Where they are shares of several answers it is the
    normal one after one prompt more of either kind was added: one in which only the method has
    the property, one in which only the base has it (after Agresti and Min 2005, "Wald+2").

    Args:
        values: ``(P,)``, each in [0, 1] or NaN.
        base: the base's, of the same prompts; prompts where either is NaN are left out.
        level: the coverage.

    Raises:
        ValueError: if no prompt has both, or a number lies outside [0, 1].
    """
    first, second = (np.asarray(x, dtype=np.float64) for x in (values, base))
    both = ~np.isnan(first - second)
    if not both.any():
        raise ValueError("no prompt has a value of both the method and the base")
    first, second = _shares(first[both]), _shares(second[both])
    change = first - second
    if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
        return tango(int((change == 1).sum()), int((change == -1).sum()), change.size, level)
    more = np.append(change, [1.0, -1.0])
    reach = _quantile(level) * float(more.std()) / np.sqrt(more.size)
    low, high = max(-1.0, more.mean() - reach), min(1.0, more.mean() + reach)
    return Interval(float(change.mean()), float(low), float(high))


def median_interval(values: ArrayLike, level: float = 0.95) -> Interval | None:
    """The interval of a median between two order statistics (inverted sign test), whatever the
    distribution; it covers at least ``level``.

    Args:
        values: independent numbers.

    Returns:
        None where even all of them cannot make sure of it: for fewer than six at 95 %.
    """
    numbers = np.asarray(values, dtype=np.float64)
    found = stats.quantile_test(numbers, p=0.5).confidence_interval(level)
    if np.isnan(found.low) or np.isnan(found.high):
        return None
    return Interval(float(np.median(numbers)), float(found.low), float(found.high))


@cache
def _tango(gained: int, lost: int, pairs: int, level: float) -> Interval:
    z, estimate = _quantile(level), (gained - lost) / pairs

    def excess(difference: float) -> float:
        """The squared numerator minus ``z^2`` times the variance: above 0 outside the interval."""
        linear = -gained - lost + (2 * pairs - gained + lost) * difference
        constant = -lost * difference * (1 - difference)
        root = np.sqrt(max(linear**2 - 8 * pairs * constant, 0.0))
        variance = 2 * (root - linear) / (4 * pairs) + difference * (1 - difference)
        return float((gained - lost - pairs * difference) ** 2 - z**2 * pairs * variance)

    low, high = -1.0, 1.0
    if estimate - CLEAR > -1:
        low = optimize.brentq(excess, -1.0, estimate - CLEAR, xtol=1e-12)
    if estimate + CLEAR < 1:
        high = optimize.brentq(excess, estimate + CLEAR, 1.0, xtol=1e-12)
    return Interval(estimate, float(low), float(high))


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    return float(stats.norm.ppf((1 + level) / 2))


def _shares(values: ArrayLike) -> FloatArray:
    numbers = np.asarray(values, dtype=np.float64)
    present: FloatArray = numbers[~np.isnan(numbers)]
    if not present.size:
        raise ValueError(f"no value is present: all {numbers.size} prompts are missing")
    if present.min() < 0 or present.max() > 1:
        raise ValueError("a share lies in [0, 1]; this is a metric of another kind")
    return present
