"""A figure of the summary: a mean over prompts, its interval, its difference to the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from plugalign.evaluation.metrics.judged import Metric, common
from plugalign.evaluation.statistics.intervals import paired_share_interval, share_interval
from plugalign.evaluation.statistics.paired import (
    FloatArray,
    Interval,
    PairedBootstrap,
    adjust,
    sign_flip_test,
)


@dataclass(frozen=True)
class Figure:
    """One figure of one method.

    Attributes:
        value: the mean over prompts, None where there is none; low, high: its interval.
        missing: what it lacks, counted.
        difference: to the base, over what both have.
        difference_cut_alike: the difference to the base with this method's support.
        p_value: that method and base are exchangeable; p_adjusted: over the methods.
        ratio_to_plain: of the value to the base's.
        base: the base's value where it is another than in the base's own row.
    """

    value: float | None
    low: float | None
    high: float | None
    missing: int = 0
    difference: Interval | None = None
    difference_cut_alike: Interval | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    ratio_to_plain: float | None = None
    base: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As summary.json has it: without what there is none of, but for the value itself."""
        found: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Interval):
                found[each.name] = {"value": value.value, "low": value.low, "high": value.high}
            elif value is not None or each.name in ("value", "low", "high"):
                found[each.name] = value
        return found


@dataclass(frozen=True)
class Figures:
    """Makes figures.

    Args:
        bootstrap: for numbers that are no shares.
        samples: answers to a prompt.
    """

    bootstrap: PairedBootstrap
    samples: int

    def mean(self, values: FloatArray, lost: int) -> Figure:
        """The mean of per-prompt numbers ``(P,)``."""
        return _figure(None if _none(values) else self.bootstrap.mean(values), lost)

    def of_shares(self, values: FloatArray, lost: int, samples: int = 1) -> Figure:
        """The mean of per-prompt shares ``(P,)``, each of so many answers."""
        return _figure(None if _none(values) else share_interval(values, samples), lost)

    def difference(
        self, values: FloatArray, base: FloatArray, *, shares: bool = False
    ) -> Interval | None:
        """``mean(values - base)`` of per-prompt numbers, None where no prompt has both."""
        if _none(values - base):
            return None
        return (paired_share_interval if shares else self.bootstrap.difference)(values, base)

    def judged(self, metric: Metric, scores: FloatArray, lost: int) -> Figure:
        """A metric of a judge's scores ``(P, S)``."""
        values = metric(scores)
        if metric.is_share:
            return self.of_shares(values, lost)
        if _are_shares(values, scores):
            return self.of_shares(values, lost, self.samples)
        return self.mean(values, lost)

    def judged_difference(
        self, metric: Metric, scores: FloatArray, base: FloatArray
    ) -> Interval | None:
        """A metric's difference over the samples that both have scores of."""
        scores, base = common(scores, base)
        values, before = metric(scores), metric(base)
        shares = _are_shares(values, scores) and _are_shares(before, base)
        return self.difference(values, before, shares=metric.is_share or shares)


def tested(
    figures: Mapping[str, Figure],
    metric: Metric,
    pairs: Mapping[str, tuple[FloatArray, FloatArray]],
) -> dict[str, Figure]:
    """The figures with p-values, adjusted over the methods.

    Args:
        pairs: by method, its scores and the base's ``(P, S)``.
    """
    values = {name: tuple(map(metric, common(*pair))) for name, pair in pairs.items()}
    p_values = {
        name: sign_flip_test(after, before)
        for name, (after, before) in values.items()
        if not _none(after - before)
    }
    adjusted = adjust(p_values)
    return {
        name: replace(f, p_value=p_values[name], p_adjusted=adjusted[name])
        if name in p_values
        else f
        for name, f in figures.items()
    }


def _figure(interval: Interval | None, lost: int) -> Figure:
    if interval is None:
        return Figure(None, None, None, lost)
    return Figure(interval.value, interval.low, interval.high, lost)


def _are_shares(values: FloatArray, scores: FloatArray) -> bool:
    """Whether per-prompt numbers ``(P,)`` are shares, since the judge says yes or no only."""
    there, known = scores[~np.isnan(scores)], values[~np.isnan(values)]
    return bool(np.isin(there, (0, 1)).all() and np.all((known >= 0) & (known <= 1)))


def _none(values: FloatArray) -> bool:
    return bool(np.isnan(values).all())
