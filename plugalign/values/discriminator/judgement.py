"""What a discriminator says of texts: a probability and a verdict, by principle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Protocol

from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.values.discriminator.head import Verdict


@dataclass(frozen=True)
class Assessment:
    """What a discriminator says of n texts.

    Attributes:
        probabilities: P(v | y), ``(n,)``.
        verdicts: of each text.
    """

    probabilities: FloatArray
    verdicts: list[Verdict]


@dataclass(frozen=True)
class Judgement:
    """What is said of one text by one value.

    Attributes:
        principle: the value's name.
        statement: the value as it was read.
        probability: P(v | y), that the text conforms.
        verdict: the one label that the text may have at the discriminator's level, or "undecided".
        validated: whether the discriminator was measured on labelled texts of this value.
    """

    principle: str
    statement: str
    probability: float
    verdict: Verdict
    validated: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        doubt = "" if self.validated else ", unvalidated"
        return f"{self.principle}: {self.verdict} (P {self.probability:.2f}{doubt})"


class Discriminator(Protocol):
    """Judges texts by a value statement.

    Attributes:
        statement: the value.
        validated: whether it was measured on labelled texts of this value.
    """

    @property
    def statement(self) -> str: ...

    @property
    def validated(self) -> bool: ...

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """P(breaks) of n texts, ``(n,)``: what a judge gives."""

    def conforms(self, texts: Sequence[str]) -> FloatArray:
        """P(v | y) of n texts, ``(n,)``."""

    def assess(self, texts: Sequence[str]) -> Assessment:
        """P(v | y) of n texts and the verdict on each."""


@dataclass(frozen=True)
class PluralJudgement:
    """What several values say of one text.

    Attributes:
        text: it.
        judgements: one by each principle, in order of priority.
    """

    text: str
    judgements: tuple[Judgement, ...]

    @property
    def conflicts(self) -> list[tuple[Judgement, Judgement]]:
        """Pairs of opposite verdicts, the principle of higher priority first. "undecided" is no
        verdict, and opposes none."""
        opposite = {"conforms", "breaks"}
        pairs = combinations(self.judgements, 2)
        return [pair for pair in pairs if {one.verdict for one in pair} == opposite]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "text": self.text,
            "judgements": [one.to_json() for one in self.judgements],
            "conflicts": [[one.principle, other.principle] for one, other in self.conflicts],
        }

    def __str__(self) -> str:
        return "\n".join([*map(str, self.judgements), *self.conflicts_in_words()])

    def conflicts_in_words(self) -> list[str]:
        """A line for each conflict."""
        return [
            f"conflict: {high.principle} ({high.verdict}) goes before {low.principle} "
            f"({low.verdict})"
            for high, low in self.conflicts
        ]


def judge_texts(
    principles: Mapping[str, Discriminator], texts: Sequence[str]
) -> list[PluralJudgement]:
    """Several texts by several values.

    Args:
        principles: by name, in order of priority.

    Raises:
        ValueError: if there is no principle.
    """
    if not principles:
        raise ValueError("there is no principle to judge by; give at least one")
    columns = [_judgements(name, each, texts) for name, each in principles.items()]
    rows = zip(*columns, strict=True)
    return [PluralJudgement(text, row) for text, row in zip(texts, rows, strict=True)]


def _judgements(name: str, judge: Discriminator, texts: Sequence[str]) -> list[Judgement]:
    found = judge.assess(texts)
    pairs = zip(found.probabilities.tolist(), found.verdicts, strict=True)
    return [Judgement(name, judge.statement, p, v, judge.validated) for p, v in pairs]
