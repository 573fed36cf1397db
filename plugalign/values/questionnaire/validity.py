"""Whether scores follow what the items say: catch items, and items whose answer is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from plugalign.evaluation.statistics.auc import auc_of
from plugalign.evaluation.statistics.paired import FloatArray, Interval
from plugalign.values.questionnaire.instrument import Instrument

CHANCE = 0.5


@dataclass(frozen=True)
class Catch:
    """A catch item: it is passed on the expected side of the middle of the scale."""

    id: str
    score: float
    expected: str
    passed: bool


@dataclass(frozen=True)
class Contrast:
    """Validity items of one part: does the high end score above the low end?

    Attributes:
        high, low: what the two ends are, such as "true" and "false".
        auc: the chance that an item of the high end scores above one of the low end.
        p: of Mann and Whitney's test that the two do not differ, two-sided.
        valence_auc: the chance that a pleasant item scores above an unpleasant one. Items are
            balanced, so a respondent who goes by the tone alone has 1 or 0 here, and 0.5 above.
        length_auc: the chance that an item of more characters than the median scores above
            another; None where fewer than two items are longer, or not. The items that ship are
            balanced in length too; those of a file need not be.
        items: how many there are of each end.
    """

    part: str
    high: str
    low: str
    auc: Interval
    p: float
    valence_auc: Interval
    length_auc: Interval | None
    items: tuple[int, int]

    @property
    def by_length(self) -> bool:
        """Whether the length of the items orders the scores at least as well as their ends do."""
        length = self.length_auc
        if length is None or not beside_chance(length):
            return False
        return abs(length.value - CHANCE) >= abs(self.auc.value - CHANCE)


def beside_chance(auc: Interval) -> bool:
    """Whether an AUC's interval leaves out one half."""
    return not auc.low <= CHANCE <= auc.high


def catches(instrument: Instrument, scores: FloatArray) -> list[Catch]:
    """What became of the catch items, from all items' scores ``(I,)``."""
    found = []
    for number in instrument.numbers("catch"):
        item, score = instrument.items[number], float(scores[number])
        assert item.expected is not None, item.id
        side = score - instrument.middle
        passed = side > 0 if item.expected == "high" else side < 0
        found.append(Catch(item.id, score, item.expected, passed))
    return found


def contrasts(instrument: Instrument, scores: FloatArray) -> list[Contrast]:
    """How well the scores ``(I,)`` tell the validity items of each part apart."""
    found = []
    for name, part in instrument.parts.items():
        numbers = instrument.numbers("validity", name)
        mine = scores[numbers]
        high = [instrument.items[n].expected == "high" for n in numbers]
        good = [instrument.items[n].valence == "good" for n in numbers]
        lengths = np.array([len(instrument.items[n].text) for n in numbers])
        above, below = mine[high], mine[[not each for each in high]]
        found.append(
            Contrast(
                part=name,
                high=part.contrast[0],
                low=part.contrast[1],
                auc=auc_of(high, mine).interval(),
                p=_p(above, below),
                valence_auc=auc_of(good, mine).interval(),
                length_auc=_length_auc(lengths > np.median(lengths), mine),
                items=(len(above), len(below)),
            )
        )
    return found


def _length_auc(longer: NDArray[np.bool_], scores: FloatArray) -> Interval | None:
    if min(longer.sum(), (~longer).sum()) < 2:
        return None
    return auc_of(longer, scores).interval()


def _p(above: FloatArray, below: FloatArray) -> float:
    if len({*above, *below}) == 1:  # all alike: the test divides by nothing
        return 1.0
    return float(stats.mannwhitneyu(above, below, alternative="two-sided").pvalue)


def dimensions_differ(instrument: Instrument, scores: FloatArray) -> float:
    """The p-value that the dimensions' items all score alike: Kruskal and Wallis's test."""
    groups = [scores[instrument.of(dimension)] for dimension in instrument.dimensions]
    if len({score for group in groups for score in group}) == 1:
        return 1.0
    return float(stats.kruskal(*groups).pvalue)
