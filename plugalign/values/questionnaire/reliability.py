"""What answers depend on: the letter, the answer itself, or the item; and whether runs agree.

Letters here: I items, W wordings, R rotations, N = W R runs, K answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.values.questionnaire.scoring import Readings


@dataclass(frozen=True)
class Shares:
    """Shares of the variance of log p, centred over the answers.

    Attributes:
        letter: how much the letter alone decides; None where no letters are shown.
        content: how much the answer alone decides, whatever is asked.
        item: how much item and answer together decide: the only part that has read the question.
            What chance differences between runs put there is taken off, so that it is about 0 (and
            never below) for a model that answers without reading.
        debiased_item: the same of what is left when the content-free items are taken off.
    """

    letter: float | None
    content: float
    item: float
    debiased_item: float

    @property
    def telling(self) -> float:
        """The item share by which it is judged whether the items are read.

        Behind letters every answer stands equally often, so it is that of log p as it is. How
        probable an answer is that nobody has shown hangs most of all on its length, so there it
        is that of the debiased log p.
        """
        return self.debiased_item if self.letter is None else self.item


def variance_shares(readings: Readings) -> Shares:
    """The shares of the instrument's own items and catch items, within the parts."""
    content, item = _shares(readings, readings.log_p)
    _, debiased = _shares(readings, readings.debiased())
    letter = _letter_share(readings) if readings.format == "letters" else None
    return Shares(letter, content, item, debiased)


def _shares(readings: Readings, log_p: FloatArray) -> tuple[float, float]:
    """The shares of the answer, and of item times answer, of log p ``(I, W, R, K)``."""
    sums, total = np.zeros(2), 0.0
    for part in readings.instrument.parts:
        answers = _centred(_of_part(readings, log_p, part))
        runs = answers.reshape(len(answers), -1, answers.shape[-1])
        sums += _content_and_item(runs)
        total += float((runs**2).sum())
    content, item = sums / total if total > 0 else sums
    return float(content), float(item)


def _letter_share(readings: Readings) -> float:
    found, total, by_letter = 0.0, 0.0, readings.by_letter()
    for part in readings.instrument.parts:
        letters = _centred(_of_part(readings, by_letter, part))
        found += float((letters.mean(axis=(0, 1, 2)) ** 2).sum()) * letters[..., 0].size
        total += float((letters**2).sum())
    return found / total if total > 0 else 0.0


def _of_part(readings: Readings, log_p: FloatArray, part: str) -> FloatArray:
    """What was asked of a part's items and catch items in its wordings and all rotations."""
    instrument = readings.instrument
    own = sorted(instrument.numbers("item", part) + instrument.numbers("catch", part))
    return log_p[own, : len(instrument.parts[part].wordings), : readings.rotations]


def _content_and_item(answers: FloatArray) -> tuple[float, float]:
    """Sums of squares of centred log p ``(I, N, K)``: the answer's, and item times answer's.

    The latter is what is left of it when its expectation under runs that differ by chance is taken
    off: ``(I - 1)(K - 1)`` times the mean square of item times run times answer.
    """
    items, runs, levels = answers.shape
    content = items * runs * float((answers.mean(axis=(0, 1)) ** 2).sum())
    own = answers - answers.mean(axis=0)  # what a run says of every item alike is no noise of items
    means = own.mean(axis=1, keepdims=True)
    found = runs * float((means**2).sum())
    if runs > 1 and items > 1:
        freedom = (items - 1) * (runs - 1) * (levels - 1)
        noise = float(((own - means) ** 2).sum()) / freedom
        found -= (items - 1) * (levels - 1) * noise
    return content, max(found, 0.0)


def _centred(log_p: FloatArray) -> FloatArray:
    centred: FloatArray = log_p - log_p.mean(axis=-1, keepdims=True)
    return centred


def cronbach_alpha(scores: FloatArray) -> float:
    """How far runs agree on the items: Cronbach's alpha of scores ``(I, W)``.

    ``W / (W - 1) (1 - sum of the runs' variances / variance of the items' sums)``; 0 where the
    items do not differ at all.
    """
    runs = scores.shape[1]
    between = scores.sum(axis=1).var(ddof=1)
    if between < 1e-18:
        return 0.0
    return float(runs / (runs - 1) * (1 - scores.var(axis=0, ddof=1).sum() / between))


def alpha_of(scores: FloatArray, readings: Readings, *, within_parts: bool) -> float:
    """`cronbach_alpha` over the wordings, of the instrument's items.

    Args:
        scores: ``(I, W)`` of all items, see `plugalign.values.questionnaire.scoring.run_scores`.
        within_parts: takes each part's mean off every run. Parts have scales of different words,
            and a respondent who reads no item can tell them apart.
    """
    instrument = readings.instrument
    wordings = min(len(part.wordings) for part in instrument.parts.values())
    kept = []
    for part in instrument.parts:
        own = scores[instrument.numbers("item", part), :wordings]
        kept.append(own - own.mean(axis=0) if within_parts else own)
    return cronbach_alpha(np.concatenate(kept))
