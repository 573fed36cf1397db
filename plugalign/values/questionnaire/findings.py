"""What was found of each respondent: first whether anything was measured, then the profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from plugalign.evaluation.statistics.paired import (
    FloatArray,
    Interval,
    PairedBootstrap,
    adjust,
    sign_flip_test,
)
from plugalign.values.questionnaire.instrument import Instrument
from plugalign.values.questionnaire.questions import Format
from plugalign.values.questionnaire.refusals import is_refusal
from plugalign.values.questionnaire.reliability import Shares, alpha_of, variance_shares
from plugalign.values.questionnaire.scoring import Readings, item_scores, run_scores
from plugalign.values.questionnaire.validity import (
    Catch,
    Contrast,
    catches,
    contrasts,
    dimensions_differ,
)
from plugalign.values.questionnaire.verdict import Verdict, judge


@dataclass(frozen=True)
class Refusals:
    """Answers in words that decline to answer; their items score the middle of the scale."""

    asked: int
    refused: int
    examples: tuple[str, ...]

    @property
    def rate(self) -> float:
        """The share of items that are declined."""
        return self.refused / self.asked


@dataclass(frozen=True)
class Turned:
    """Scores by letters with the scale as printed, and with the scale turned round.

    Attributes:
        printed, reversed: the mean of each dimension as it is read off, before the content-free
            items are taken off: what a model that answers the letter gives away.
        shift: how far an item's debiased score moves, as a part of the scale, on average.
    """

    printed: dict[str, float]
    reversed: dict[str, float]
    shift: float


@dataclass(frozen=True)
class Difference:
    """How a dimension of a steered model differs from the base's, over the same items."""

    change: Interval
    p_adjusted: float


@dataclass(frozen=True)
class Profile:
    """What was found of one respondent.

    Attributes:
        reference: the row of the same model without controllers; None for that row itself.
        shares: by format.
        raw_alpha: over the wordings, before the content-free items are taken off: high for models
            that read nothing, too, which is why it is shown.
        dimensions: mean scores with intervals over items, from 0 to K - 1; minus the respondent's
            own mean where the instrument asks for that.
        differ_p: that the dimensions differ no more than items do by chance.
        items: each item's score, by id.
        differences: from the reference, by dimension.
    """

    name: str
    reference: str | None
    verdict: Verdict
    shares: dict[Format, Shares]
    raw_alpha: float
    alpha: float
    catches: tuple[Catch, ...]
    contrasts: tuple[Contrast, ...]
    refusals: Refusals | None
    turned: Turned | None
    dimensions: dict[str, Interval]
    differ_p: float
    items: dict[str, float]
    differences: dict[str, Difference]

    @property
    def measured(self) -> bool:
        """Whether the profile may be drawn."""
        return self.verdict.level == "measured"

    def to_json(self) -> dict[str, Any]:
        """The profile as JSON values."""
        return asdict(self)


def refusals_of(answers: Mapping[int, str]) -> tuple[Refusals | None, list[int]]:
    """The refusals among answers in words, by the item's number; and the numbers refused."""
    refused = [number for number, text in answers.items() if is_refusal(text)]
    if not answers:
        return None, []
    examples = tuple(" ".join(answers[number].split()) for number in refused[:3])
    return Refusals(len(answers), len(refused), examples), refused


def profile(
    name: str,
    readings: Mapping[Format, Readings],
    scored: Format,
    answers: Mapping[int, str],
    reference: Profile | None = None,
) -> Profile:
    """Sums up what one respondent answered.

    Args:
        readings: by format. scored: the one that scores.
        answers: in words, by the item's number; empty where nobody asked.
        reference: the same model's without controllers.
    """
    mine = readings[scored]
    instrument = mine.instrument
    refusals, refused = refusals_of(answers)
    scores = item_scores(mine, refused)
    shares = {format: variance_shares(each) for format, each in readings.items()}
    turned = _turned(readings["letters"]) if "letters" in readings else None
    alpha = alpha_of(run_scores(mine), mine, within_parts=True)
    caught, found = catches(instrument, scores), contrasts(instrument, scores)
    verdict = judge(
        shares[scored],
        found,
        caught,
        alpha,
        None if refusals is None else refusals.rate,
        turned.shift if turned is not None and scored == "letters" else None,
    )
    if instrument.centre:
        scores = scores - scores[instrument.numbers("item")].mean()
    items = {i.id: float(s) for i, s in zip(instrument.items, scores, strict=True) if s == s}
    return Profile(
        name=name,
        reference=None if reference is None else reference.name,
        verdict=verdict,
        shares=shares,
        raw_alpha=alpha_of(run_scores(mine, debiased=False), mine, within_parts=False),
        alpha=alpha,
        catches=tuple(caught),
        contrasts=tuple(found),
        refusals=refusals,
        turned=turned,
        dimensions=_dimensions(instrument, scores),
        differ_p=dimensions_differ(instrument, scores),
        items=items,
        differences={} if reference is None else _differences(instrument, scores, reference),
    )


def _dimensions(instrument: Instrument, scores: FloatArray) -> dict[str, Interval]:
    found = {}
    for dimension in instrument.dimensions:
        own = scores[instrument.of(dimension)]
        found[dimension] = PairedBootstrap(len(own)).mean(own)
    return found


def _differences(
    instrument: Instrument, scores: FloatArray, reference: Profile
) -> dict[str, Difference]:
    changes, p_values = {}, {}
    for dimension in instrument.dimensions:
        numbers = instrument.of(dimension)
        before = np.array([reference.items[instrument.items[n].id] for n in numbers])
        changes[dimension] = PairedBootstrap(len(numbers)).difference(scores[numbers], before)
        p_values[dimension] = sign_flip_test(scores[numbers], before)
    adjusted = adjust(p_values)
    return {name: Difference(change, adjusted[name]) for name, change in changes.items()}


def _turned(letters: Readings) -> Turned:
    """By letters: the first order, and the one turned round, each by itself."""
    instrument, debiased = letters.instrument, letters.scores()
    numbers = instrument.numbers("item")
    moved = (debiased[:, :, 0] - debiased[:, :, letters.rotations])[numbers]
    shift = float(np.abs(np.nanmean(moved, axis=1)).mean()) / (instrument.levels - 1)
    raw = letters.scores(debiased=False)
    return Turned(
        printed=_means(instrument, raw[:, :, 0]),
        reversed=_means(instrument, raw[:, :, letters.rotations]),
        shift=shift,
    )


def _means(instrument: Instrument, runs: FloatArray) -> dict[str, float]:
    return {
        dimension: float(np.nanmean(runs[instrument.of(dimension)]))
        for dimension in instrument.dimensions
    }
