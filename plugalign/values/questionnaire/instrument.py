"""Questionnaires: what is asked, of which scale the answers are, and what the answers stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Expected = Literal["low", "high"]
Kind = Literal["item", "catch", "validity", "content-free"]


@dataclass(frozen=True)
class Wording:
    """One way to ask.

    Attributes:
        instruction: stands in front of all items.
        question: the item, as ``{item}``, up to where the answer begins.
    """

    instruction: str
    question: str


@dataclass(frozen=True)
class Item:
    """A statement or consideration that is put to the model.

    Attributes:
        kind: "item" counts for a dimension; "catch" shows whether somebody reads at all;
            "validity" and "content-free" are no items of the instrument but tests of the model.
        dimension: what an item stands for; empty for the other kinds.
        reversed: whether agreement speaks against the dimension.
        expected: the end of the scale that a reader answers a catch or validity item with.
        valence: whether a validity item is pleasant ("good") or not ("bad").
    """

    id: str
    part: str
    text: str
    kind: Kind
    dimension: str = ""
    reversed: bool = False
    expected: Expected | None = None
    valence: str = ""


@dataclass(frozen=True)
class Part:
    """Items with one scale and one way to be asked.

    Attributes:
        scale: K answers from low to high.
        wordings: three or more, the *runs* of a measurement.
        contrast: what validity items of the high and of the low end are, such as "true", "false".
    """

    name: str
    scale: tuple[str, ...]
    wordings: tuple[Wording, ...]
    contrast: tuple[str, str]


@dataclass(frozen=True)
class Instrument:
    """A questionnaire with everything that it takes to put it to a language model.

    Attributes:
        centre: whether a respondent's own mean is taken off the scores, as for Schwartz's values.
        items: of all kinds, in order; an item's place in it is its number.
    """

    name: str
    source: str
    licence: str
    note: str
    centre: bool
    dimensions: tuple[str, ...]
    parts: Mapping[str, Part]
    items: tuple[Item, ...]

    @property
    def levels(self) -> int:
        """K, the number of answers, the same in all parts."""
        return len(next(iter(self.parts.values())).scale)

    @property
    def middle(self) -> float:
        """The score of an item that says nothing: scores run from 0 to K - 1."""
        return (self.levels - 1) / 2

    def numbers(self, kind: Kind, part: str | None = None) -> list[int]:
        """The numbers of the items of a kind, of one part or of all."""
        return [
            number
            for number, item in enumerate(self.items)
            if item.kind == kind and part in (None, item.part)
        ]

    def of(self, dimension: str) -> list[int]:
        """The numbers of the items of a dimension."""
        return [n for n in self.numbers("item") if self.items[n].dimension == dimension]
