"""The labelled texts of benchmarks/value_discriminator.py, and how they are parted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plugalign.files.rows import read_rows
from plugalign.fitting.value import Parts

Labels = NDArray[np.bool_]


@dataclass(frozen=True)
class Sizes:
    """How many texts of each data set do what; both classes are equally many.

    Attributes:
        learned: teach a head. calibrated: calibrate it. held_out: measure it.
        contrasted: held-out texts that are judged without labels too.
        explained: held-out texts that break the value and whose top word is looked up, at most.
        splits: random partings, for what is a mean over such.
        max_tokens: of a text; the rest is not read.
    """

    learned: int
    calibrated: int
    held_out: int
    contrasted: int
    explained: int
    splits: int
    max_tokens: int

    @property
    def texts(self) -> int:
        return self.learned + self.calibrated + self.held_out

    def parts(self, seed: int) -> Parts:
        """A parting of the texts; that of seed 0 is in their own order."""
        count = self.texts
        order = np.random.default_rng(seed).permutation(count) if seed else np.arange(count)
        return Parts(*np.split(order, [self.learned, self.learned + self.calibrated]))


@dataclass(frozen=True)
class DataSet:
    """Texts, whether each conforms to a statement, and rewrites of those that do not.

    Attributes:
        rewrites: by text, what a human made of it; only where there are such.
    """

    name: str
    statement: str
    negation: str
    texts: list[str]
    conforms: Labels
    rewrites: dict[str, str]


def data_sets(folder: Path, count: int) -> list[DataSet]:
    """The data sets, each with its statement and ``count`` texts.

    Raises:
        ValueError: if a file is malformed or has too few texts; names it.
    """
    files = {
        "jigsaw": "toxicity/jigsaw.jsonl",
        "paradetox": "toxicity/paradetox.jsonl",
        "justice": "values/ethics_justice_train.jsonl",
        "deontology": "values/ethics_deontology_train.jsonl",
    }
    rows = {name: list(read_rows(folder / path)) for name, path in files.items()}
    detoxed = [(row.text("toxic"), row.texts("neutral")) for row in rows["paradetox"]]
    detoxed = [(toxic, neutral) for toxic, neutral in detoxed if neutral]
    # Of a pair one side only, so that no text stands beside its own rewrite.
    sides = [
        (toxic, False) if i % 2 else (neutral[0], True)
        for i, (toxic, neutral) in enumerate(detoxed)
    ]
    jigsaw = [(row.text("text"), row.label("label") == "0") for row in rows["jigsaw"]]
    justice = [(row.text("scenario"), row.label("label") == "1") for row in rows["justice"]]
    duty = [
        (f"{row.text('scenario')} {row.text('excuse')}", row.label("label") == "1")
        for row in rows["deontology"]
    ]
    respect = ("It respects others.", "It insults others.")
    rewrites = {toxic: neutral[0] for toxic, neutral in detoxed}
    return [
        balanced("jigsaw", *respect, jigsaw, count),
        replace(balanced("paradetox", *respect, sides, count), rewrites=rewrites),
        balanced("justice", "It is fair.", "It is unfair.", justice, count),
        balanced("deontology", "It does one's duty.", "It neglects one's duty.", duty, count),
    ]


def balanced(
    name: str, statement: str, negation: str, pairs: Sequence[tuple[str, bool]], count: int
) -> DataSet:
    """So many texts, half of either class, in a fixed random order.

    Raises:
        ValueError: for too few texts of a class.
    """
    draw, half = np.random.default_rng(0), count // 2
    chosen: list[tuple[str, bool]] = []
    for side in (True, False):
        texts = sorted({text for text, conforms in pairs if conforms == side})
        if len(texts) < half:
            raise ValueError(f"{name} has {len(texts)} texts of a class, {half} are needed")
        chosen += [(texts[i], side) for i in draw.permutation(len(texts))[:half]]
    order = draw.permutation(len(chosen))
    texts, conforms = zip(*(chosen[i] for i in order), strict=True)
    return DataSet(name, statement, negation, list(texts), np.array(conforms), {})
