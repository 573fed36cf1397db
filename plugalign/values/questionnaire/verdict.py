"""Did the questionnaire measure anything? The rule, in one place.

*Core* checks ask whether the answers depend on the items: the item share of the variance (see
`plugalign.values.questionnaire.reliability.Shares.telling`) is at least `ITEM_SHARE`, and the
interval of each validity contrast's AUC lies above one half, where the items' length does not order
the scores as well. An interval below one half is no sign of an answer at random: the respondent
tells the items apart by something else than what they say. *Further* checks ask whether the answers
can be relied on: every catch item is passed, the runs agree (alpha within parts, after debiasing,
of at least `ALPHA`), at most `REFUSED` of the items are declined, and, where letters score, turning
the scale round moves an item by at most `TURNED` of the scale on average.

* **measured**: all checks hold. Only then is a profile drawn.
* **not measured**: the item share fails, or no contrast holds, or more than half of the items are
  declined.
* **partly measured**: anything between.

A respondent who draws answers by lot passes two catch items one time in four: no check stands
alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from plugalign.evaluation.report.numbers import p_value
from plugalign.evaluation.statistics.paired import Interval
from plugalign.values.questionnaire.reliability import Shares
from plugalign.values.questionnaire.validity import CHANCE, Catch, Contrast, beside_chance

ITEM_SHARE = 0.05
ALPHA = 0.7
REFUSED, MOSTLY_REFUSED = 0.25, 0.5
TURNED = 0.1  # of the scale

Level = Literal["measured", "partly measured", "not measured"]


@dataclass(frozen=True)
class Check:
    """One question to the answers.

    Attributes:
        core: whether nothing was measured unless it (or, of contrasts, one of them) holds.
        text: what was found, in words.
    """

    name: str
    holds: bool
    core: bool
    text: str


@dataclass(frozen=True)
class Verdict:
    """Whether the instrument measured, and why."""

    level: Level
    checks: tuple[Check, ...]

    @property
    def failed(self) -> list[Check]:
        """The checks that do not hold: the reasons of any verdict but "measured"."""
        return [check for check in self.checks if not check.holds]


def judge(
    shares: Shares,
    contrasts: Sequence[Contrast],
    catches: Sequence[Catch],
    alpha: float,
    refusal_rate: float | None,
    turned: float | None,
) -> Verdict:
    """The verdict on one respondent.

    Args:
        shares: of the format that scores.
        refusal_rate: None where nobody was asked in words.
        turned: how far turning the scale round moves an item on average, as a part of the scale;
            None where letters do not score.
    """
    valid = [each.auc.low > CHANCE and not each.by_length for each in contrasts]
    reads = shares.telling >= ITEM_SHARE
    text = (
        f"the items explain {shares.telling:.3f} of the variance of the answers"
        f"{' after debiasing' if shares.letter is None else ''} (from {ITEM_SHARE} on)"
    )
    checks = (
        Check("item share", reads, True, text),
        *(_contrast(each, holds) for each, holds in zip(contrasts, valid, strict=True)),
        *_further(catches, alpha, refusal_rate, turned),
    )
    nothing = not (reads and any(valid)) or (refusal_rate or 0.0) > MOSTLY_REFUSED
    whole = all(check.holds for check in checks)
    level: Level = "not measured" if nothing else "measured" if whole else "partly measured"
    return Verdict(level, checks)


def _contrast(contrast: Contrast, holds: bool) -> Check:
    name = f"{contrast.high} against {contrast.low}"
    found = f"{_auc(contrast.auc)}, p {p_value(contrast.p)}"
    text = f"{name} items: {found} (the interval above {CHANCE})"
    return Check(name, holds, True, text if holds else "".join([text, *_instead(contrast)]))


def _instead(contrast: Contrast) -> Iterator[str]:
    """What the scores of a contrast that does not hold follow, as far as that is known."""
    if contrast.auc.high < CHANCE:
        yield f"; below {CHANCE} is not by chance: they go by something other than what is said"
    if beside_chance(contrast.valence_auc):
        yield f"; they follow the tone: good against bad {_auc(contrast.valence_auc)}"
    if contrast.length_auc is not None and beside_chance(contrast.length_auc):
        yield f"; they follow the length: long against short {_auc(contrast.length_auc)}"


def _auc(auc: Interval) -> str:
    return f"AUC {auc.value:.2f} [{auc.low:.2f}, {auc.high:.2f}]"


def _further(
    catches: Sequence[Catch], alpha: float, refusal_rate: float | None, turned: float | None
) -> Iterator[Check]:
    if catches:
        passed = sum(catch.passed for catch in catches)
        scores = ", ".join(f"{c.id} {c.score:.2f} (to be {c.expected})" for c in catches)
        text = f"{passed} of {len(catches)} catch items passed: {scores}"
        yield Check("catch items", passed == len(catches), False, text)
    text = f"the wordings agree with alpha {alpha:.2f} after debiasing (from {ALPHA} on)"
    yield Check("alpha", alpha >= ALPHA, False, text)
    if refusal_rate is not None:
        text = f"{refusal_rate:.0%} of the items are declined (up to {REFUSED:.0%})"
        yield Check("refusals", refusal_rate <= REFUSED, False, text)
    if turned is not None:
        text = (
            f"turning the scale round moves an item by {turned:.0%} of the scale on average (up "
            f"to {TURNED:.0%})"
        )
        yield Check("reversed scale", turned <= TURNED, False, text)
