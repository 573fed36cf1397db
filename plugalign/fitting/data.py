"""Labelled text: what every fit reads.

A file is JSON lines or CSV, by its suffix. It holds either a text and a label column, or *pairs*:
a column of desired and a column of undesired texts, each a string or (in JSON) a list of strings.
Every fault is one ValueError that names the file, the line and the cure.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PathLike = str | Path


@dataclass(frozen=True)
class Labelled:
    """Texts and the label of each, in the order of the files.

    A fit learns whatever tells the classes apart. So each class should come from the same sources
    in the same style: where one alone has capitals, spaces before full stops or a subject of its
    own, that is what the controller will steer.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels):
            raise ValueError(f"{len(self.texts)} texts came with {len(self.labels)} labels")

    def binary(self, desired: str | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The texts of the desired class and all other texts.

        Args:
            desired: the label of the desired class. It may be left out with the labels 0 and 1,
                where 1 marks the unwanted attribute, and for pairs.

        Raises:
            ValueError: if the desired class must be named, is not there, or is all there is.
        """
        wanted = {"desired", self._desired(desired)}
        good = tuple(t for t, y in zip(self.texts, self.labels, strict=True) if y in wanted)
        bad = tuple(t for t, y in zip(self.texts, self.labels, strict=True) if y not in wanted)
        if not good or not bad:
            raise ValueError(
                f"both classes need texts: {len(good)} are desired and {len(bad)} are not, with "
                f"the labels {_listed(self.labels)}; check the desired label {desired!r}"
            )
        return good, bad

    def _desired(self, desired: str | None) -> str:
        found = set(self.labels)
        if desired is None:
            if not found <= {"0", "1", "desired", "undesired"}:
                raise ValueError(
                    f"which of the labels {_listed(found)} is the desired one? Name it, as in "
                    f"desired={min(found)!r}"
                )
            return "0"
        if desired not in found:
            raise ValueError(f"no text has the desired label {desired!r}; found {_listed(found)}")
        return desired


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
        label: the column with the label, of any type; it is read as a string.
        desired: the column with the desired text or texts of a pair.
        undesired: the column with the undesired text or texts of a pair.
        limit: at most so many texts, taken evenly from all.

    Raises:
        ValueError: naming the file, the line and the cure.
    """
    if (desired is None) != (undesired is None):
        raise ValueError("pairs need both columns named: desired and undesired")
    if limit is not None and limit < 2:
        raise ValueError(f"limit must be at least 2, one text for each class, got {limit}")
    pairs = {} if desired is None else {desired: "desired", undesired: "undesired"}
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    found: list[tuple[str, str]] = []
    for one in map(Path, paths):
        before = len(found)
        for place, row in read_rows(one):
            found += _read(row, place, {text: label}, pairs)
        if len(found) == before:
            raise ValueError(f"{one} holds no data; give it one labelled text per line")
    if limit is not None and limit < len(found):
        found = [found[i * len(found) // limit] for i in range(limit)]
    _require_classes([y for _, y in found], paths)
    return Labelled(tuple(t for t, _ in found), tuple(y for _, y in found))


def encode(
    tokenizer: Any, texts: Sequence[str], max_length: int, *, end: bool = True
) -> list[list[int]]:
    """Token ids of whole texts as the tokenizer frames them, with or without an end token behind.

    ``max_length`` counts all of them; a text that was cut has no end token. Texts without a
    single token are left out.
    """
    stop = tokenizer.eos_token_id if end else None
    rows = [row for row in tokenizer(list(texts), verbose=False)["input_ids"] if row]
    framed = [row if stop is None or row[-1] == stop else [*row, stop] for row in rows]
    return [row[:max_length] for row in framed]


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and their mask, both ``(B, T)``. Padding is token 0 and masked."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def read_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row of a file with its place, "file, line n"."""
    readers = {".jsonl": _json_rows, ".csv": _csv_rows}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: data must be a .jsonl or a .csv file")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    return readers[path.suffix.lower()](path, _decoded(path))


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error


def _json_rows(path: Path, content: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{place}: malformed JSON ({error.msg}); each line must be one JSON object"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{place}: expected a JSON object, got {line.strip()[:40]!r}")
        yield place, row


def _csv_rows(path: Path, content: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(
                    f"{place}: not as many fields as the header has; quote texts with commas"
                )
            yield place, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: malformed CSV ({error})") from error


def _read(
    row: Mapping[str, Any], place: str, labelled: Mapping[str, str], pairs: Mapping[Any, str]
) -> list[tuple[str, str]]:
    """The (text, label) entries of one row."""
    if pairs and all(column in row for column in pairs):
        return [
            (_text(value, column, place), side)
            for column, side in pairs.items()
            for value in (row[column] if isinstance(row[column], list) else [row[column]])
        ]
    ((text, label),) = labelled.items()
    if missing := [column for column in (text, label) if column not in row]:
        wanted = " and ".join(repr(c) for c in (pairs or missing))
        raise ValueError(
            f"{place}: no column {wanted}; the columns are {_listed(row)}. "
            f"Name the text and the label column, or those of a pair"
        )
    return [(_text(row[text], text, place), _label(row[label], label, place))]


def _text(value: Any, column: str, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: {column!r} must be text, got {value!r}")
    if not value.strip():
        raise ValueError(f"{place}: {column!r} is empty; remove the line or fill it")
    return value


def _label(value: Any, column: str, place: str) -> str:
    """A label as a string; 0, 0.0 and false are one label."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, (bool, int)) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    raise ValueError(f"{place}: {column!r} must be a word or a whole number, got {value!r}")


def _require_classes(labels: Sequence[str], paths: Sequence[PathLike]) -> None:
    if len(set(labels)) == 1:
        files = " and ".join(str(p) for p in paths)
        raise ValueError(
            f"{files}: all {len(labels)} texts have the label {labels[0]!r}; "
            f"add texts of another class"
        )


def _listed(values: Any) -> str:
    return ", ".join(repr(str(v)) for v in sorted(set(values), key=str)[:10])
