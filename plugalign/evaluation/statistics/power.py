"""What so many prompts can show: the power of a paired comparison, from the differences' spread.

A two-sided paired t-test of level alpha finds a true mean difference d, of differences with
standard deviation s, with probability ``power`` at about

    n = (z_{1 - alpha/2} + z_power)^2 (s / d)^2 + z_{1 - alpha/2}^2 / 2

prompts (Guenther 1981, "Sample size formulas for normal theory t tests"; the last term makes up for
s being estimated). The permutation test of the report has the same power for many prompts; of n
prompts its p-value is at least 2^(1 - n), so that fewer than six show nothing at the level .05. It
is planning, and no second test: of a difference that these prompts do not show, it says how many
would, were it as large as it looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

POWER, LEVEL = 0.8, 0.95


@dataclass(frozen=True)
class Power:
    """What a comparison of so many prompts can show.

    Attributes:
        prompts: how many there were.
        needed: how many would show a difference as large as the observed one; None for none.
        detectable: the smallest difference that as many prompts as there were show; None where
            they are too few to show any, and where all differences are equal: their spread says
            nothing then.
    """

    prompts: int
    needed: int | None
    detectable: float | None


def paired_power(
    differences: ArrayLike, *, power: float = POWER, level: float = LEVEL
) -> Power | None:
    """The power of a paired comparison, from its differences ``(P,)``, NaN where there is none.

    Args:
        power: the probability with which a difference is to be found.
        level: one minus the level of the test.

    Returns:
        None for fewer than two differences, whose spread is unknown.

    Raises:
        ValueError: for a power or a level outside (0, 1).
    """
    for name, value in (("power", power), ("level", level)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}")
    values = np.asarray(differences, dtype=np.float64)
    values = values[~np.isnan(values)]
    if values.size < 2:
        return None
    mean, spread = abs(float(values.mean())), float(values.std(ddof=1))
    tail = float(stats.norm.ppf((1 + level) / 2))
    both, small = tail + float(stats.norm.ppf(power)), tail**2 / 2
    fewest = math.ceil(1 - math.log2(1 - level) - 1e-9)
    needed = None
    if mean > 1e-12 * max(1.0, float(np.abs(values).max())):
        needed = max(fewest, math.ceil((both * spread / mean) ** 2 + small))
    known = values.size >= fewest and values.size > small and spread > 0
    detectable = both * spread / math.sqrt(values.size - small) if known else None
    return Power(values.size, needed, detectable)
