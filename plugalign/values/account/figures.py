"""What an account says of a stratum in figures: means over prompts, with intervals.

Tokens of one answer, and answers to one prompt, are alike; so the prompt is the unit, as in
`plugalign.evaluation.statistics.paired`: each number is first taken per prompt, and the interval is
over prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plugalign.evaluation.judging.judge import Judge
from plugalign.evaluation.statistics.intervals import share_interval
from plugalign.evaluation.statistics.paired import FloatArray, Interval, PairedBootstrap
from plugalign.evaluation.statistics.score_means import yes_or_no
from plugalign.values.account.reading import TracedAnswer
from plugalign.values.account.records import TokenLine

LARGE = 1.0  # nats from which a contribution counts as large
FEW = 10  # prompts below which an interval over prompts says little
ABOVE = 0.5  # score of a judge from which an answer counts
BOUNDS = ("active", "repair")  # certificates that are counted where they are above 0

Number = Callable[[TokenLine], float | None]


@dataclass(frozen=True)
class Contribution:
    """What one controller did alone.

    Attributes:
        mean: signed, in nats a token; size: without the sign.
        large: the share of tokens at which it was at least `LARGE`; largest: the largest size.
    """

    mean: Interval
    size: Interval
    large: Interval
    largest: float


@dataclass(frozen=True)
class Bounds:
    """What one controller's certificates say.

    Attributes:
        tokens: how many have one.
        active, repaired: the shares of tokens with an active or a repaired bound.
        excess: the largest, None where none was given; above 0 a bound was broken.
        others: by name the mean and the largest of what else it certifies.
    """

    tokens: int
    active: Interval | None
    repaired: Interval | None
    excess: float | None
    others: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Judged:
    """What a judge says of the answers: the mean score, and the share at `ABOVE` or more."""

    mean: Interval | None
    above: Interval | None
    missing: int


@dataclass(frozen=True)
class Stratum:
    """The figures of one stratum.

    Attributes:
        changed: the share of tokens at which the most probable one is not the base's.
        kl: KL(q || p) in nats a token; kl_largest: of one token; kl_answer: the sum of an answer.
        joint: the size of the shift that all controllers together made, in nats a token.
        few: whether there are too few prompts for its intervals to say much.
    """

    name: str
    prompts: int
    answers: int
    tokens: int
    changed: Interval
    kl: Interval
    kl_largest: float
    kl_answer: Interval
    joint: Interval
    controllers: Mapping[str, Contribution]
    bounds: Mapping[str, Bounds]
    judged: Mapping[str, Judged] = field(default_factory=dict)

    @property
    def few(self) -> bool:
        return self.prompts < FEW


def figures(
    name: str, answers: Sequence[TracedAnswer], scores: Mapping[str, Sequence[float]]
) -> Stratum:
    """The figures of the answers of one stratum, at least one token among them.

    Args:
        scores: by judge, of each answer; NaN where it failed.
    """
    by_prompt = _Prompts(answers)
    first = next(line for each in answers for line in each.tokens)
    kl_sums = [sum(line.kl or 0.0 for line in each.tokens) for each in answers]
    owners = {o: None for a in answers for line in a.tokens for o in line.certificates}
    return Stratum(
        name=name,
        prompts=by_prompt.count,
        answers=len(answers),
        tokens=by_prompt.tokens,
        changed=by_prompt.share(lambda line: float(line.changed)),
        kl=by_prompt.mean(lambda line: line.kl),
        kl_largest=by_prompt.largest(lambda line: line.kl),
        kl_answer=by_prompt.mean_of_answers(kl_sums),
        joint=by_prompt.mean(_size(lambda line: line.joint)),
        controllers={each: _contribution(by_prompt, each) for each in first.contributions},
        bounds={owner: _bounds(by_prompt, owner) for owner in owners},
        judged={judge: _judged(by_prompt, found) for judge, found in scores.items()},
    )


def scored(judges: Iterable[Judge], answers: Sequence[TracedAnswer]) -> dict[str, FloatArray]:
    """Every judge's score of each answer ``(n,)``, by the judge's name."""
    texts = [each.answer.text for each in answers]
    return {judge.name: judge(texts) for judge in judges}


class _Prompts:
    """The answers of a stratum by prompt, and means over prompts."""

    def __init__(self, answers: Sequence[TracedAnswer]):
        rows: dict[int, list[int]] = {}
        for number, each in enumerate(answers):
            rows.setdefault(each.answer.prompt, []).append(number)
        self._rows, self._answers = list(rows.values()), answers
        self.count, self.tokens = len(rows), sum(len(each.tokens) for each in answers)
        self._bootstrap = PairedBootstrap(max(1, self.count), resamples=2000)

    def mean(self, number: Number) -> Interval:
        """The mean over prompts of the mean over their tokens."""
        return self._bootstrap.mean(self._per_prompt(number))

    def share(self, number: Number) -> Interval:
        """The same of numbers that are 0 or 1."""
        return share_interval(self._per_prompt(number), max(1, self.tokens // self.count))

    def largest(self, number: Number) -> float:
        """The largest number of a token."""
        return max(x for each in self._numbers(number) for x in each)

    def mean_of_answers(self, values: Sequence[float]) -> Interval:
        """The mean over prompts of numbers of each answer; NaN is left out."""
        return self._bootstrap.mean(self._per_answer(values))

    def share_of_answers(self, values: Sequence[float]) -> Interval:
        """The same of numbers that are 0, 1 or NaN."""
        return share_interval(self._per_answer(values), max(1, len(self._answers) // self.count))

    def certified_by(self, owner: str) -> dict[str, int]:
        """The names of a controller's certificates, and at how many tokens each is given."""
        found: dict[str, int] = {}
        for each in self._answers:
            for line in each.tokens:
                for name, value in line.certificates.get(owner, {}).items():
                    found[name] = found.get(name, 0) + (value is not None)
        return {name: count for name, count in found.items() if count}

    def _per_prompt(self, number: Number) -> FloatArray:
        numbers = self._numbers(number)
        found = [[x for i in row for x in numbers[i]] for row in self._rows]
        return np.array([np.mean(each) if each else np.nan for each in found])

    def _per_answer(self, values: Sequence[float]) -> FloatArray:
        found = [[values[i] for i in row if not np.isnan(values[i])] for row in self._rows]
        return np.array([np.mean(each) if each else np.nan for each in found])

    def _numbers(self, number: Number) -> list[list[float]]:
        return [
            [x for line in each.tokens if (x := number(line)) is not None] for each in self._answers
        ]


def _contribution(prompts: _Prompts, name: str) -> Contribution:
    def own(line: TokenLine) -> float | None:
        return line.contributions.get(name)

    def large(line: TokenLine) -> float | None:
        return None if (value := own(line)) is None else float(abs(value) >= LARGE)

    size = _size(own)
    return Contribution(
        prompts.mean(own), prompts.mean(size), prompts.share(large), prompts.largest(size)
    )


def _bounds(prompts: _Prompts, owner: str) -> Bounds:
    def certified(name: str) -> Number:
        return lambda line: line.certificates.get(owner, {}).get(name)

    def above_zero(name: str) -> Number:
        number = certified(name)
        return lambda line: None if (value := number(line)) is None else float(value > 0)

    names = prompts.certified_by(owner)
    shares = {n: prompts.share(above_zero(n)) if n in names else None for n in BOUNDS}
    others = {
        name: (prompts.mean(certified(name)).value, prompts.largest(certified(name)))
        for name in names
        if name not in (*BOUNDS, "excess")
    }
    return Bounds(
        max(names.values(), default=0),
        shares["active"],
        shares["repair"],
        prompts.largest(certified("excess")) if "excess" in names else None,
        others,
    )


def _judged(prompts: _Prompts, scores: Sequence[float]) -> Judged:
    missing = int(np.isnan(scores).sum())
    if missing == len(scores):
        return Judged(None, None, missing)
    above = [np.nan if np.isnan(score) else float(score >= ABOVE) for score in scores]
    # A judge that says yes or no gives shares, of which a bootstrap may be a point.
    whole = yes_or_no(np.asarray(scores, dtype=np.float64))
    mean = (prompts.share_of_answers if whole else prompts.mean_of_answers)(scores)
    return Judged(mean, prompts.share_of_answers(above), missing)


def _size(number: Number) -> Number:
    return lambda line: None if (value := number(line)) is None else abs(value)


def to_json(value: Any) -> Any:
    """Figures as JSON values."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: to_json(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {name: to_json(each) for name, each in value.items()}
    return [to_json(each) for each in value] if isinstance(value, (list, tuple)) else value
