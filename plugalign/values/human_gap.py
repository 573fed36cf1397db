"""The gap of a model's answers to human texts, by value.

With P(v | y) of an answer y and P(v | y*) of a human text y*: epsilon = E|P(v | y*) - P(v | y)|,
which is not zero for a perfect model, and beside it the self-floor, the energy distance and the
signed difference (`plugalign.evaluation.statistics.distributions`).

Letters here: P prompts, S samples per prompt, H human texts, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from plugalign.evaluation.statistics.distributions import GAPS, gaps, on_one_support, stacked
from plugalign.evaluation.statistics.figure import Figure
from plugalign.evaluation.statistics.paired import FloatArray, Interval, PairedBootstrap

RESAMPLES = 2000
Conforming = Mapping[str, FloatArray]
"""By value or judge, P(v | y) of a model's answers ``(P, S)``, NaN where it is missing."""


class HumanGap:
    """Measures the gap of answers, each method's paired with a reference's.

    Args:
        human: by value, P(v | y*) of H human texts, ``(H,)``; there is no gap where it is empty.
        bootstrap: resamples the prompts.
        seed: equal seeds give equal intervals.

    Raises:
        ValueError: for fewer than two human texts.
    """

    def __init__(self, human: Mapping[str, FloatArray], bootstrap: PairedBootstrap, seed: int):
        self._human, self._bootstrap = human, bootstrap
        self._of_human = {name: _resampled(name, h, seed) for name, h in human.items()}

    def figures(
        self, conforming: Conforming, base: Conforming | None
    ) -> dict[str, dict[str, Figure]]:
        """By value the four numbers of `GAPS`, with their differences to the base's."""
        return {
            name: self._compared(name, conforming[name], None if base is None else base[name])
            for name in self._human
        }

    def _compared(
        self, name: str, values: FloatArray, base: FloatArray | None
    ) -> dict[str, Figure]:
        value, draws = self._draws(name, values)
        if base is None:
            return {kind: self._figure(value[kind], draws[kind]) for kind in GAPS}
        other, others = self._draws(name, base)
        return {
            kind: self._figure(
                value[kind],
                draws[kind],
                self._interval(value[kind] - other[kind], draws[kind] - others[kind]),
            )
            for kind in GAPS
        }

    def _draws(
        self, name: str, values: FloatArray
    ) -> tuple[dict[str, float], dict[str, FloatArray]]:
        """The four numbers, and what they are in each resample ``(R,)``."""
        human, of_human = self._human[name], self._of_human[name]
        model, texts = on_one_support(values, human[:, None])
        once = gaps(model, texts, np.ones((1, len(values))), np.ones((1, len(human))))
        human_counts = np.concatenate(list(of_human.counts()))
        blocks, start = [], 0
        for counts in self._bootstrap.counts():
            here = human_counts[start : start + len(counts)]
            blocks.append(gaps(model, texts, counts, here))
            start += len(counts)
        return {kind: float(each[0]) for kind, each in once.items()}, stacked(blocks)

    def _figure(self, value: float, draws: FloatArray, change: Interval | None = None) -> Figure:
        found = self._interval(value, draws)
        if found is None:
            return Figure(None, None, None)
        return Figure(found.value, found.low, found.high, difference=change)

    def _interval(self, value: float, draws: FloatArray) -> Interval | None:
        return None if np.isnan(value) else self._bootstrap.interval(value, draws)


def _resampled(name: str, scores: FloatArray, seed: int) -> PairedBootstrap:
    present = int((~np.isnan(scores)).sum())
    if present < 2:
        raise ValueError(f"the gap to human text needs two of its texts, {name} has {present}")
    # Another seed than the prompts': human texts are drawn by themselves.
    return PairedBootstrap(len(scores), resamples=RESAMPLES, seed=seed + 1)
