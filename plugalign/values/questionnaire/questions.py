"""What is asked: every item in every wording, with the answers unseen or behind letters.

Two formats. *Options* shows no answers: how probable each one is as the continuation is read. A
model that cannot follow letters can still be measured so. *Letters* lists the answers as A, B, …
in K rotations of their order, so that every answer stands behind every letter once, and once with
the scale turned round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from plugalign.values.questionnaire.instrument import Instrument

Format = Literal["options", "letters"]
FORMATS: tuple[Format, ...] = ("options", "letters")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BY_LETTER = "Answer with one letter:"


@dataclass(frozen=True)
class Question:
    """One item, asked in one way.

    Attributes:
        item: its number. wording: the number of the wording of its part.
        order: which answer (0 is the lowest) stands behind each letter; None where none are shown.
        prompt: what the model reads.
        answers: the K texts of which the model says how probable they are, in the order of the
            scale or, where letters are shown, of the alphabet.
    """

    item: int
    wording: int
    order: tuple[int, ...] | None
    prompt: str
    answers: tuple[str, ...]

    @property
    def format(self) -> Format:
        return "options" if self.order is None else "letters"


def orders(levels: int) -> list[tuple[int, ...]]:
    """The K rotations of the scale, the printed order first, then that order turned round."""
    rotated = [tuple((k + r) % levels for k in range(levels)) for r in range(levels)]
    return [*rotated, tuple(reversed(range(levels)))]


def questions(instrument: Instrument, formats: Sequence[Format], scored: Format) -> list[Question]:
    """All questions; those that begin alike stand together.

    Args:
        scored: the format that scores. The other one only shows how much the letters matter, so
            it leaves out the validity items.
    """
    return [
        question
        for format in formats
        for question in _of_format(instrument, format, whole=format == scored)
    ]


def _of_format(instrument: Instrument, format: Format, *, whole: bool) -> Iterator[Question]:
    shown = [None] if format == "options" else orders(instrument.levels)
    for part in instrument.parts.values():
        numbers = [
            number
            for number, item in enumerate(instrument.items)
            if item.part == part.name and (whole or item.kind != "validity")
        ]
        for wording in range(len(part.wordings)):
            for order in shown:
                for number in numbers:
                    yield question(instrument, number, wording, order)


def question(
    instrument: Instrument, number: int, wording: int, order: tuple[int, ...] | None
) -> Question:
    """One item in one wording; see `Question`."""
    item = instrument.items[number]
    part = instrument.parts[item.part]
    way, scale = part.wordings[wording], part.scale
    lines, answers = [way.instruction], scale
    if order is not None:
        answers = tuple(LETTERS[: len(scale)])
        lines += [BY_LETTER]
        lines += [f"{letter}. {scale[k]}" for letter, k in zip(answers, order, strict=True)]
    prompt = "\n".join([*lines, "", way.question.replace("{item}", item.text)])
    return Question(number, wording, order, prompt, answers)
