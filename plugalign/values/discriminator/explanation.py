"""Why a text is judged as it is: each word is left out once (occlusion; Li et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import logit

from plugalign.values.discriminator.judgement import Discriminator, Judgement, judge_texts

SURE = 1e-9  # from 0 and 1, where log-odds end


@dataclass(frozen=True)
class Occlusion:
    """A word, and the judgement without it.

    Attributes:
        word: as it stands in the text, with its punctuation.
        position: among the text's words, from 0.
        effect: what it adds to the log-odds that the text conforms.
        without: P(v | y) of the text without the word.
    """

    word: str
    position: int
    effect: float
    without: float


@dataclass(frozen=True)
class Explanation:
    """A judgement of a text, and what each of its words does to it.

    Attributes:
        text: it.
        judgement: of the text as it is.
        words: in the order of the text; none for a text of less than two.
    """

    text: str
    judgement: Judgement
    words: tuple[Occlusion, ...]

    @property
    def top(self) -> Occlusion | None:
        """The word that speaks most for the side that the judgement is on, None if none does."""
        conforms = self.judgement.probability >= 0.5
        side = 1 if conforms else -1
        best = max(self.words, key=lambda word: side * word.effect, default=None)
        return best if best is not None and side * best.effect > 0 else None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "text": self.text,
            "judgement": self.judgement.to_json(),
            "top": None if self.top is None else asdict(self.top),
            "words": [asdict(word) for word in self.words],
        }

    def __str__(self) -> str:
        if self.top is None:
            return f"{self.judgement}; no word stands out"
        return f"{self.judgement}; most of all for {self.top.word!r}, without it P " + (
            f"{self.top.without:.2f}"
        )


def explain(principles: Mapping[str, Discriminator], text: str) -> list[Explanation]:
    """Explains the judgement of a text by each of several values.

    Args:
        principles: by name, in order of priority.

    Returns:
        One explanation by each principle, in that order.
    """
    words = text.split()
    shorter = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    (judged,) = judge_texts(principles, [text])
    return [
        Explanation(text, judgement, _occlusions(principles[judgement.principle], words, shorter))
        if len(words) > 1
        else Explanation(text, judgement, ())
        for judgement in judged.judgements
    ]


def _occlusions(
    judge: Discriminator, words: list[str], shorter: list[str]
) -> tuple[Occlusion, ...]:
    """What each word does, by one call for the text and all that lack a word."""
    found = judge.conforms([" ".join(words), *shorter])
    odds = logit(np.clip(found, SURE, 1 - SURE))
    places = range(len(words))
    effects, without = (odds[0] - odds[1:]).tolist(), found[1:].tolist()
    return tuple(Occlusion(*each) for each in zip(words, places, effects, without, strict=True))
