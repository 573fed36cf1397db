"""Labelled text: what every fit reads.

A file is JSON lines or CSV, by its suffix. It holds either a text and a label column, or *pairs*:
a column of desired and a column of undesired texts, each a string or a list of strings.
Every fault is one ValueError that names the file, the line and the cure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugalign.files.rows import Row, read_rows
from plugalign.files.shown import listed, printable, shown
from plugalign.files.values import label_of
from plugalign.fitting.progress import progress
from plugalign.generation.tokens import token_ids

PathLike = str | Path
CHUNK = 2048  # texts that are tokenized between two looks at the clock
DESIRED, UNDESIRED = "desired", "undesired"  # the labels of pairs


@dataclass(frozen=True)
class Labelled:
    """Texts and the label of each, in the order of the files.

    Labels are canonical, see `plugalign.files.values.label_of`: 0, 0.0, False and "0.0" are "0".

    A fit learns whatever separates the classes. So each class should come from the same sources
    in the same style: where one alone has capitals, spaces before full stops or a subject of its
    own, that is what the controller will steer.

    Attributes:
        one_style: whether texts are as `plugalign.fitting.style.in_one_style` writes them.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    one_style: bool = False

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels):
            raise ValueError(f"{len(self.texts)} texts came with {len(self.labels)} labels")
        object.__setattr__(self, "labels", tuple(map(_canonical, self.labels)))

    def binary(self, desired: str | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The texts of the desired class and all other texts.

        Args:
            desired: the label of the desired class. It may be left out with the labels 0 and 1,
                where 1 marks the unwanted attribute, and for pairs.

        Raises:
            ValueError: if the desired class must be named, is not there, or is all there is.
        """
        wanted = {DESIRED, self._desired(desired)}
        good = tuple(t for t, y in zip(self.texts, self.labels, strict=True) if y in wanted)
        bad = tuple(t for t, y in zip(self.texts, self.labels, strict=True) if y not in wanted)
        if not good or not bad:
            raise ValueError(
                f"both classes need texts: {len(good)} are desired and {len(bad)} are not, with "
                f"the labels {listed(self.labels)}; check the desired label {shown(desired)}"
            )
        return good, bad

    def _desired(self, desired: str | None) -> str:
        found = set(self.labels)
        if desired is None:
            if not found <= {"0", "1", DESIRED, UNDESIRED}:
                raise ValueError(
                    f"which of the labels {listed(found)} is the desired one? Name it, as in "
                    f"desired={shown(min(found))}"
                )
            return "0"
        wanted = label_of(desired)
        if wanted not in found:
            raise ValueError(
                f"no text has the desired label {shown(desired)}; found {listed(found)}"
            )
        return wanted


def _canonical(label: Any) -> str:
    found = label_of(label)
    if found is None:
        raise ValueError(f"a label must be a word or a whole number, got {shown(label)}")
    return found


def load_data(
    path: PathLike | Sequence[PathLike],
    *,
    text: str = "text",
    label: str = "label",
    desired: str | None = None,
    undesired: str | None = None,
    limit: int | None = None,
) -> Labelled:
    """Reads labelled texts from one or several files.

    Args:
        path: a ``.jsonl`` or ``.csv`` file, or several; pairs and labels may be mixed.
        text: the column with the text.
        label: the column with the label: a word, a whole number or a boolean.
        desired: the column with the desired text or texts of a pair.
        undesired: the column with the undesired text or texts of a pair.
        limit: at most so many texts, taken evenly from those of each label.

    Columns may be nested, see `plugalign.files.rows.Row`: "prompt" or "continuation.text".

    Raises:
        ValueError: naming the file, the line and the cure.
    """
    if (desired is None) != (undesired is None):
        raise ValueError("pairs need both columns named: desired and undesired")
    if limit is not None and limit < 2:
        raise ValueError(f"limit must be at least 2, one text for each class, got {limit}")
    pair = None if desired is None or undesired is None else (desired, undesired)
    columns = _Columns(text, label, pair)
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    found: list[tuple[str, str]] = []
    for one in map(Path, paths):
        before = len(found)
        for row in read_rows(one):
            found += columns.read(row)
        if len(found) == before:
            raise ValueError(
                f"{printable(str(one))} holds no data; give it one labelled text per line"
            )
    if pair is not None and not any(y in (DESIRED, UNDESIRED) for _, y in found):
        files = " and ".join(printable(str(p)) for p in paths)
        raise ValueError(f"{files}: no row has the columns {pair[0]!r} and {pair[1]!r} of a pair")
    if limit is not None and limit < len(found):
        found = _evenly(found, limit)
    _require_classes([y for _, y in found], paths)
    return Labelled(tuple(t for t, _ in found), tuple(y for _, y in found))


def _evenly(found: Sequence[tuple[str, str]], limit: int) -> list[tuple[str, str]]:
    """So many of the texts in their order: of each label its share of them, and one at least where
    there is room for that, evenly from those with the label."""
    sides: dict[str, list[int]] = {}
    for i, (_, label) in enumerate(found):
        sides.setdefault(label, []).append(i)
    places = [(k / len(side), label) for label, side in sides.items() for k in range(len(side))]
    counts = Counter(label for _, label in sorted(places, key=lambda place: place[0])[:limit])
    chosen = [sides[y][k * len(sides[y]) // n] for y, n in counts.items() for k in range(n)]
    return [found[i] for i in sorted(chosen)]


def tokenized(tokenizer: Any, texts: Sequence[str], *, framed: bool = True) -> list[list[int]]:
    """Token ids of texts, with a progress bar on stderr.

    Args:
        framed: whether with the special tokens that the tokenizer puts around a text.
    """
    rows: list[list[int]] = []
    with progress("tokenizing texts", len(texts)) as bar:
        for start in range(0, len(texts), CHUNK):
            some = texts[start : start + CHUNK]
            if framed:
                rows += token_ids(tokenizer, some)
            else:
                rows += tokenizer(list(some), add_special_tokens=False, verbose=False)["input_ids"]
            bar.advance(len(some))
    return rows


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    *,
    end: bool = True,
    context: Sequence[int] = (),
    closing: int | None = None,
) -> list[list[int]]:
    """Token ids of texts as the tokenizer frames them, with or without an end token behind.

    ``max_length`` counts all of them; a text that was cut has no end token. Texts without a
    single token are left out.

    Args:
        context: token ids in front of each text, which is then framed by nothing else; they do not
            count.
        closing: the end token; None is the tokenizer's.
    """
    stop = (tokenizer.eos_token_id if closing is None else closing) if end else None
    rows = [row for row in tokenized(tokenizer, texts, framed=not context) if row]
    ended = [row if stop is None or row[-1] == stop else [*row, stop] for row in rows]
    return [[*context, *row[:max_length]] for row in ended]


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and their mask, both ``(B, T)``. Padding is token 0 and masked."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


@dataclass(frozen=True)
class _Columns:
    """Where texts and labels stand: in two columns, or in those of a pair (desired, undesired)."""

    text: str
    label: str
    pair: tuple[str, str] | None

    def read(self, row: Row) -> list[tuple[str, str]]:
        """The (text, label) entries of one row."""
        if self.pair is not None and all(map(row.has, self.pair)):
            sides = zip(self.pair, (DESIRED, UNDESIRED), strict=True)
            return [(one, side) for name, side in sides for one in row.texts(name)]
        if missing := [name for name in (self.text, self.label) if not row.has(name)]:
            wanted = " and ".join(repr(name) for name in (self.pair or missing))
            raise ValueError(
                f"{row.place}: no column {wanted}; the columns are {listed(row.fields)}. "
                f"Name the text and the label column, or those of a pair"
            )
        return [(row.text(self.text), row.label(self.label))]


def _require_classes(labels: Sequence[str], paths: Sequence[PathLike]) -> None:
    if len(set(labels)) == 1:
        files = " and ".join(printable(str(p)) for p in paths)
        raise ValueError(
            f"{files}: all {len(labels)} texts have the label {shown(labels[0])}; "
            f"add texts of another class"
        )
