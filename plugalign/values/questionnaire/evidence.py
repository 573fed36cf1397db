"""The figures behind a verdict, in words: the same in the terminal and in the report."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from plugalign.evaluation.report.numbers import number, p_value, percent
from plugalign.evaluation.statistics.paired import Interval
from plugalign.values.questionnaire.findings import Profile
from plugalign.values.questionnaire.questions import Format

NONE = "-"


def evidence(profile: Profile) -> dict[str, str]:
    """All figures of one respondent by their names; the names are the same for all of a run."""
    return dict(_evidence(profile))


def _evidence(profile: Profile) -> Iterator[tuple[str, str]]:
    scored: Format = next(iter(profile.shares))
    shares, letters = profile.shares[scored], profile.shares.get("letters")
    if scored == "options":
        yield "item share, debiased", f"{shares.debiased_item:.3f}"
        yield "item share, as read", f"{shares.item:.3f}"
        yield "answer share, as read", f"{shares.content:.2f}"
    if letters is not None:
        yield "letters: letter share", NONE if letters.letter is None else f"{letters.letter:.2f}"
        yield "letters: item share", f"{letters.item:.3f}"
        yield "letters: answer share", f"{letters.content:.2f}"
    if (turned := profile.turned) is not None:
        means = [number(fmean(each.values())) for each in (turned.printed, turned.reversed)]
        yield "letters: scale printed, reversed", ", ".join(means)
    yield "alpha, raw", f"{profile.raw_alpha:.2f}"
    yield "alpha, debiased", f"{profile.alpha:.2f}"
    yield "catch items passed", f"{sum(c.passed for c in profile.catches)}/{len(profile.catches)}"
    for each in profile.contrasts:
        yield f"AUC {each.high}, {each.low}", f"{bounded(each.auc)}\np {p_value(each.p)}"
        yield f"AUC good, bad in {each.part}", bounded(each.valence_auc)
        length = each.length_auc
        yield f"AUC long, short in {each.part}", NONE if length is None else bounded(length)
    yield "refused", NONE if profile.refusals is None else percent(profile.refusals.rate)


def bounded(interval: Interval) -> str:
    """A figure with its interval."""
    return f"{number(interval.value)} [{number(interval.low)}, {number(interval.high)}]"
