"""Makes figures of the numbers that answers have, prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from plugalign.evaluation.metrics.likelihood import pooled_perplexity
from plugalign.evaluation.metrics.metric import Metric
from plugalign.evaluation.statistics.figure import Figure
from plugalign.evaluation.statistics.intervals import paired_share_interval, share_interval
from plugalign.evaluation.statistics.missing import common
from plugalign.evaluation.statistics.paired import (
    FloatArray,
    Interval,
    PairedBootstrap,
    adjust,
    sign_flip_test,
)
from plugalign.evaluation.statistics.power import paired_power


@dataclass(frozen=True)
class FigureMaker:
    """Makes figures: with intervals for shares where numbers are shares, else a bootstrap.

    Args:
        bootstrap: for numbers that are no shares.
        samples: answers to a prompt.
    """

    bootstrap: PairedBootstrap
    samples: int

    def mean(self, values: FloatArray, lost: int) -> Figure:
        """The mean of per-prompt numbers ``(P,)``."""
        return _figure(None if _none(values) else self.bootstrap.mean(values), lost)

    def shares(self, values: FloatArray, lost: int, samples: int = 1) -> Figure:
        """The mean of per-prompt shares ``(P,)``, each of so many answers."""
        return _figure(None if _none(values) else share_interval(values, samples), lost)

    def difference(
        self, values: FloatArray, base: FloatArray, *, shares: bool = False
    ) -> Interval | None:
        """``mean(values - base)`` of per-prompt numbers, None where no prompt has both."""
        if _none(values - base):
            return None
        return (paired_share_interval if shares else self.bootstrap.difference)(values, base)

    def corpus_perplexity(self, sums: FloatArray, base: FloatArray, lost: int) -> Figure:
        """The perplexity of all answers' tokens together, with its difference to the base's.

        Args:
            sums, base: negative log-likelihoods and tokens of each prompt, ``(P, 2)``.
        """
        if not (sums[:, 1].any() and base[:, 1].any()):
            return _figure(None, lost)
        found = _figure(self.bootstrap.of_sums(sums, pooled_perplexity), lost)
        if sums is base:
            return found
        difference = self.bootstrap.of_sums(
            np.concatenate([sums, base], axis=1),
            lambda both: pooled_perplexity(both[..., :2]) - pooled_perplexity(both[..., 2:]),
        )
        return replace(found, difference=difference)

    def metric(self, metric: Metric, scores: FloatArray, lost: int) -> Figure:
        """A metric of the answers' numbers ``(P, S)``, such as a judge's scores."""
        values = metric(scores)
        if metric.is_share:
            return self.shares(values, lost)
        if metric.of_answers or _are_shares(values, scores):
            return self.shares(values, lost, self.samples)
        return self.mean(values, lost)

    def metric_difference(
        self, metric: Metric, scores: FloatArray, base: FloatArray
    ) -> Interval | None:
        """A metric's difference over the answers that both have numbers of."""
        scores, base = common(scores, base)
        values, before = metric(scores), metric(base)
        shares = _are_shares(values, scores) and _are_shares(before, base)
        return self.difference(values, before, shares=metric.threshold is not None or shares)


def tested(
    figures: Mapping[str, Figure],
    metric: Metric,
    pairs: Mapping[str, tuple[FloatArray, FloatArray]],
) -> dict[str, Figure]:
    """The figures with p-values, adjusted over the methods, and what so many prompts can show.

    Args:
        pairs: by method, its answers' numbers and the base's ``(P, S)``.
    """
    values = {name: tuple(map(metric, common(*pair))) for name, pair in pairs.items()}
    p_values = {
        name: sign_flip_test(after, before)
        for name, (after, before) in values.items()
        if not _none(after - before)
    }
    adjusted = adjust(p_values)
    found = dict(figures)
    for name, p in p_values.items():
        after, before = values[name]
        power = paired_power(after - before)
        found[name] = replace(found[name], p_value=p, p_adjusted=adjusted[name], power=power)
    return found


def _figure(interval: Interval | None, lost: int) -> Figure:
    if interval is None:
        return Figure(None, None, None, lost)
    return Figure(interval.value, interval.low, interval.high, lost)


def _are_shares(values: FloatArray, scores: FloatArray) -> bool:
    """Whether per-prompt numbers ``(P,)`` are shares, since each answer has 0 or 1."""
    there, known = scores[~np.isnan(scores)], values[~np.isnan(values)]
    return bool(np.isin(there, (0, 1)).all() and np.all((known >= 0) & (known <= 1)))


def _none(values: FloatArray) -> bool:
    return bool(np.isnan(values).all())
