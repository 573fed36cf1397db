"""Scores from log-probabilities: what is left of an answer when the question is taken off.

    s(item) = sum_k k softmax_k [log p(k | item) - mean over content-free items of log p(k)]

k = 0 … K - 1 are the answers from low to high. An answer that is probable whatever is asked, for
its length, its words or its letter, is so behind a content-free item too, and drops out (after
Zhao et al. 2021, contextual calibration). Letters here: I items, W wordings, R orders of the
answers (1 where none are shown), K answers; NaN where nothing was asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.values.questionnaire.instrument import Instrument
from plugalign.values.questionnaire.questions import Format, Question, orders


@dataclass(frozen=True, eq=False)
class Readings:
    """All that one respondent answered in one format.

    Attributes:
        log_p: log p of each answer ``(I, W, R, K)``, by place in the scale.
    """

    instrument: Instrument
    format: Format
    log_p: FloatArray

    @property
    def rotations(self) -> int:
        """How many of the R orders are rotations; behind them stands the scale turned round."""
        return 1 if self.format == "options" else self.instrument.levels

    def by_letter(self) -> FloatArray:
        """``log_p`` of the rotations by letter instead of by answer, ``(I, W, K, K)``."""
        rotations = orders(self.instrument.levels)[: self.rotations]
        turned = [self.log_p[:, :, r, list(order)] for r, order in enumerate(rotations)]
        return np.stack(turned, axis=2)

    def scores(self, *, debiased: bool = True) -> FloatArray:
        """Each item's score in each run, ``(I, W, R)``, in [0, K - 1]; reversed items are turned.

        Args:
            debiased: whether the content-free items are taken off.
        """
        levels = self.instrument.levels
        log_p = self.debiased() if debiased else self.log_p
        found: FloatArray = softmax(log_p, axis=-1) @ np.arange(levels)
        turned = [item.reversed for item in self.instrument.items]
        found[turned] = levels - 1 - found[turned]
        return found

    def debiased(self) -> FloatArray:
        """``log_p`` minus its mean over the content-free items of the part, run by run."""
        found = np.full_like(self.log_p, np.nan)
        for part in self.instrument.parts:
            free = self.log_p[self.instrument.numbers("content-free", part)].mean(axis=0)
            own = [n for n, item in enumerate(self.instrument.items) if item.part == part]
            found[own] = self.log_p[own] - free
        return found


def tabulate(
    instrument: Instrument,
    format: Format,
    asked: Iterable[Question],
    log_probs: Iterable[Sequence[float]],
) -> Readings:
    """The readings of one format from all questions and the answers' log-probabilities."""
    levels = instrument.levels
    places: list[tuple[int, ...] | None] = [None] if format == "options" else [*orders(levels)]
    wordings = max(len(part.wordings) for part in instrument.parts.values())
    log_p = np.full((len(instrument.items), wordings, len(places), levels), np.nan)
    for question, found in zip(asked, log_probs, strict=True):
        if question.format == format:
            order = range(levels) if question.order is None else question.order
            place = question.item, question.wording, places.index(question.order)
            log_p[place][list(order)] = found
    return Readings(instrument, format, log_p)


def item_scores(readings: Readings, refused: Sequence[int] = ()) -> FloatArray:
    """Each item's score over wordings and rotations, ``(I,)``.

    Args:
        refused: the numbers of the items that the respondent declined to answer; their score is
            the middle of the scale.
    """
    runs = run_scores(readings)
    there = ~np.isnan(runs)
    total, count = np.where(there, runs, 0).sum(axis=1), there.sum(axis=1)
    # What is equal on paper shall tie: ranks would tell apart what rounding made of it.
    found: FloatArray = np.where(count > 0, total / np.maximum(count, 1), np.nan).round(9)
    found[list(refused)] = readings.instrument.middle
    return found


def run_scores(readings: Readings, *, debiased: bool = True) -> FloatArray:
    """Each item's score in each wording, over the rotations, ``(I, W)``."""
    rotations = readings.scores(debiased=debiased)[:, :, : readings.rotations]
    found: FloatArray = rotations.mean(axis=2)
    return found
