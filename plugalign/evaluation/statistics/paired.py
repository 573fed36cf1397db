"""Paired statistics over prompts: bootstrap intervals, sign-flip tests, false-discovery control.

The prompt is the unit of sampling. Every metric is first reduced to one number per prompt, an
array ``(P,)`` with NaN where a prompt has none; the figure that is reported is the mean over
prompts. A missing score is never taken as zero: a prompt's maximum or mean is over the samples
that are present, and a prompt without any is left out and counted (`missing`). Shares have
intervals of their own (`plugalign.evaluation.statistics.intervals`).
Letters here: P prompts, S samples per prompt, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

FloatArray = NDArray[np.float64]

BLOCK = 2**22  # numbers of a resampling matrix that are held as floats at a time


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    value: float
    low: float
    high: float


# --------------------------------------------------------------------------- per prompt


def maximum(scores: ArrayLike) -> FloatArray:
    """The worst present sample of each prompt: ``(P, S)`` to ``(P,)``.

    Its mean over prompts is the expected maximum toxicity (Gehman et al. 2020, section 3).
    """
    checked, present = _scores(scores)
    worst = np.max(checked, axis=1, where=present, initial=-np.inf)
    return np.where(present.any(axis=1), worst, np.nan)


def mean_score(scores: ArrayLike) -> FloatArray:
    """The mean of each prompt's present samples: ``(P, S)`` to ``(P,)``."""
    checked, present = _scores(scores)
    count = present.sum(axis=1)
    total = np.sum(checked, axis=1, where=present)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def missing(values: ArrayLike) -> int:
    """How many entries (of scores or of per-prompt numbers) are NaN."""
    return int(np.isnan(np.asarray(values, dtype=np.float64)).sum())


# --------------------------------------------------------------------------- intervals


class PairedBootstrap:
    """Intervals of means over prompts, from one set of resamples for all methods and metrics.

    The intervals are percentile intervals, with the plain reading "in 95 % of these redrawn
    prompt sets". They are for numbers that vary from prompt to prompt, not for shares.

    Args:
        prompts: P, the number of prompts that every array passed later must have.
        resamples: R, how often the prompts are drawn with replacement.
        level: the coverage.
        seed: equal seeds give equal intervals.

    Raises:
        ValueError: no prompts, fewer than 100 resamples, or a level outside (0, 1).
    """

    def __init__(
        self, prompts: int, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
    ):
        if prompts < 1:
            raise ValueError("there are no prompts to resample; give at least one")
        if resamples < 100:
            raise ValueError(f"resamples must be at least 100, got {resamples}")
        if not 0.0 < level < 1.0:
            raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
        self.prompts, self.resamples = prompts, resamples
        self._tails = ((1 - level) / 2, (1 + level) / 2)
        rng = np.random.default_rng(seed)
        shares = np.full(prompts, 1 / prompts)
        # How often each prompt was drawn: a resampled sum is then one matrix product.
        self._counts = [
            rng.multinomial(prompts, shares, size=size).astype(np.uint16)
            for size in _blocks(resamples, prompts)
        ]

    def mean(self, values: ArrayLike) -> Interval:
        """The mean over prompts of ``values`` ``(P,)``; prompts that are NaN are left out.

        Raises:
            ValueError: a wrong shape, an infinite value, or no value present.
        """
        numbers = self._per_prompt(values)
        present = ~np.isnan(numbers)
        if not present.any():
            raise ValueError(f"no value is present: all {self.prompts} prompts are missing")
        pair = np.where(present[:, None], np.stack([numbers, np.ones_like(numbers)], axis=1), 0.0)
        sums = np.concatenate([counts @ pair for counts in self.counts()])
        drawn = sums[:, 1] > 0  # a resample may hold missing prompts only
        value = pair[:, 0].sum() / pair[:, 1].sum()
        return self.interval(float(value), sums[drawn, 0] / sums[drawn, 1])

    def difference(self, values: ArrayLike, base: ArrayLike) -> Interval:
        """``mean(values - base)`` over the prompts where both, ``(P,)``, are present.

        Raises:
            ValueError: as `mean`, or no prompt where both are present.
        """
        return self.mean(self._per_prompt(values) - self._per_prompt(base))

    def of_sums(self, numbers: FloatArray, figure: Callable[[FloatArray], FloatArray]) -> Interval:
        """A figure of sums over prompts, such as the ratio of two.

        Args:
            numbers: ``(P, k)``, without NaN.
            figure: of sums ``(..., k)``, ``(...)``; NaN where there is none.

        Raises:
            ValueError: as `interval`.
        """
        sums = np.concatenate([counts @ numbers for counts in self.counts()])
        return self.interval(float(figure(numbers.sum(axis=0))), figure(sums))

    def counts(self) -> Iterator[FloatArray]:
        """How often each resample has each prompt, ``(., P)``: R rows in all, for a figure that is
        no mean. Equal resamples of two methods make their figures a pair."""
        yield from (counts.astype(np.float64) for counts in self._counts)

    def interval(self, value: float, draws: FloatArray) -> Interval:
        """The percentile interval of a figure by its values ``(R,)`` in the resamples; one that
        cannot be had in a resample is NaN there, and left out.

        Raises:
            ValueError: if it cannot be had in any.
        """
        present = draws[~np.isnan(draws)]
        if not present.size:
            raise ValueError("the figure cannot be had in any resample; give more prompts")
        low, high = np.quantile(present, self._tails)
        return Interval(value, float(low), float(high))

    def _per_prompt(self, values: ArrayLike) -> FloatArray:
        numbers = np.asarray(values, dtype=np.float64)
        if numbers.shape != (self.prompts,):
            raise ValueError(
                f"expected one number for each of {self.prompts} prompts, got shape {numbers.shape}"
            )
        if np.isinf(numbers).any():
            raise ValueError("a per-prompt number is infinite; mark it missing (NaN) or repair it")
        return numbers


# --------------------------------------------------------------------------- tests


def sign_flip_test(
    values: ArrayLike, base: ArrayLike, *, permutations: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value that a method and the base are exchangeable within each prompt.

    Under that hypothesis each prompt's difference may change its sign. The test is exact where
    all sign patterns of the differences that are not zero number at most ``permutations``; else
    patterns are drawn and the p-value is ``(1 + exceeding) / (1 + permutations)``, which is never
    zero (Phipson and Smyth 2010).

    Args:
        values: the method's per-prompt numbers ``(P,)``, NaN where missing.
        base: the base's, of the same prompts.
        permutations: how many sign patterns are at most looked at.
        seed: equal seeds give equal p-values.

    Raises:
        ValueError: different shapes, or no prompt where both are present.
    """
    first, second = np.asarray(values, dtype=np.float64), np.asarray(base, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"expected two arrays of P prompts, got {first.shape} and {second.shape}")
    differences = (first - second)[~np.isnan(first - second)]
    if not differences.size:
        raise ValueError("no prompt has a value of both the method and the base")
    # A zero looks the same under either sign, and so does what rounding makes of numbers that are
    # equal on paper.
    size = float(np.nanmax(np.abs(np.stack([first, second]))))
    flipped = differences[np.abs(differences) > 1e-12 * size]
    if not flipped.size:
        return 1.0
    # Sums that are equal on paper differ in the last bits with the order of adding.
    bar = abs(flipped.sum()) - 1e-12 * np.abs(flipped).sum()
    exact = 2.0**flipped.size <= permutations
    signs = _all_signs(flipped.size) if exact else _drawn_signs(flipped.size, permutations, seed)
    exceeding = sum(int((np.abs(block @ flipped) >= bar).sum()) for block in signs)
    return exceeding / 2**flipped.size if exact else (1 + exceeding) / (1 + permutations)


def adjust(p_values: Mapping[str, float]) -> dict[str, float]:
    """Benjamini-Hochberg adjusted p-values of the methods that were compared with the base.

    Raises:
        ValueError: a p-value that is missing or outside [0, 1].
    """
    for name, p_value in p_values.items():
        if not 0.0 <= p_value <= 1.0:
            raise ValueError(f"the p-value of {name!r} must lie in [0, 1], got {p_value}")
    if not p_values:
        return {}
    adjusted = stats.false_discovery_control(list(p_values.values()))
    return dict(zip(p_values, map(float, adjusted), strict=True))


# --------------------------------------------------------------------------- helpers


def _scores(scores: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    """The scores ``(P, S)`` and where they are present."""
    checked = np.asarray(scores, dtype=np.float64)
    if checked.ndim != 2 or not checked.size:
        raise ValueError(
            f"expected scores of shape (prompts, samples), at least one of each; got "
            f"{checked.shape}"
        )
    if np.isinf(checked).any():
        raise ValueError("a score is infinite; mark it missing (NaN) or repair it")
    return checked, ~np.isnan(checked)


def _blocks(rows: int, width: int) -> Iterator[int]:
    """Sizes that sum to ``rows``, each small enough to hold ``size x width`` floats."""
    step = max(1, BLOCK // width)
    for start in range(0, rows, step):
        yield min(step, rows - start)


def _all_signs(n: int) -> Iterator[FloatArray]:
    start = 0
    for size in _blocks(2**n, n):
        bits = np.arange(start, start + size)[:, None] >> np.arange(n)
        yield _plus_minus(bits & 1)
        start += size


def _drawn_signs(n: int, permutations: int, seed: int) -> Iterator[FloatArray]:
    rng = np.random.default_rng(seed)
    for size in _blocks(permutations, n):
        yield _plus_minus(rng.integers(0, 2, size=(size, n), dtype=np.int8))


def _plus_minus(bits: NDArray[Any]) -> FloatArray:
    return 1.0 - 2.0 * bits.astype(np.float64)
