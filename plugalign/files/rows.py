"""Data files: every row of a JSON lines, CSV or text file, with the line that it begins in."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugalign.files.json_text import parse_object
from plugalign.files.messages import Conversation, conversation_of
from plugalign.files.shown import listed, printable, shown
from plugalign.files.text import check_unicode, read_text
from plugalign.files.values import label_of, opened, share_of, text_of

TEXT = "text"  # the field of a nested record that holds its text, as in RealToxicityPrompts


@dataclass(frozen=True)
class Row:
    """One row, with its values by field.

    A field may be nested, as RealToxicityPrompts' are: ``{"prompt": {"text": …, "toxicity": …}}``.
    Its parts have dotted names, "prompt.text", whether they stand in a record, in a record's text
    form, or in a column of that name. Where a text is wanted, "prompt" stands for "prompt.text".
    """

    place: str
    """The file and the line, for messages."""
    fields: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Whether there is such a field, perhaps with null in it."""
        return self._at(name) is not None or self._at(f"{name}.{TEXT}") is not None

    def first(self, *names: str) -> str:
        """The first of these fields that there is.

        Raises:
            ValueError: there is none; lists those that are there.
        """
        found = next((name for name in names if self.has(name)), None)
        if found is None:
            wanted = " or ".join(map(repr, names))
            raise ValueError(
                f"{self.place}: no field {wanted}; the fields are {listed(self.fields)}"
            )
        return found

    def text(self, name: str) -> str:
        """The text in a field.

        Raises:
            ValueError: see `plugalign.files.values.text_of`.
        """
        found, value = self._value(name)
        return text_of(value, f"{self.place}: {found!r}")

    def texts(self, name: str) -> list[str]:
        """The text or the list of texts in a field."""
        found, value = self._value(name)
        several = value if isinstance(value, list) else [value]
        return [text_of(one, f"{self.place}: {found!r}") for one in several]

    def conversation(self, name: str) -> Conversation:
        """The messages in a field.

        Raises:
            ValueError: see `plugalign.files.messages.conversation_of`.
        """
        found, value = self._value(name)
        return conversation_of(value, f"{self.place}: {found!r}")

    def label(self, name: str) -> str:
        """The label in a field.

        Raises:
            ValueError: there is none, or it is no word and no whole number.
        """
        found, value = self._value(name)
        label = label_of(value)
        if label is None:
            raise ValueError(
                f"{self.place}: {found!r} must be a word or a whole number, got {shown(value)}"
            )
        return check_unicode(label, f"{self.place}: {found!r}")

    def share(self, name: str) -> float:
        """The number in [0, 1] in a field.

        Raises:
            ValueError: see `plugalign.files.values.share_of`.
        """
        found, value = self._value(name)
        return share_of(value, f"{self.place}: {found!r}")

    def _value(self, name: str) -> tuple[str, Any]:
        """The field's full name, and its value.

        Raises:
            ValueError: there is no such field.
        """
        name = self.first(name)
        at = self._at(name)
        if at is None:
            name, at = f"{name}.{TEXT}", self._at(f"{name}.{TEXT}")
        assert at is not None  # `first` has found one
        value = opened(at[0], f"{self.place}: {name!r}")
        if isinstance(value, Mapping) and TEXT in value:
            return f"{name}.{TEXT}", value[TEXT]
        return name, value

    def _at(self, name: str) -> tuple[Any] | None:
        """What stands at a dotted name, in a tuple, since it may be None."""
        if name in self.fields:
            return (self.fields[name],)
        value: Any = self.fields
        for part in name.split("."):
            value = opened(value, f"{self.place}: {name!r}")
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        return (value,)


def read_rows(path: Path) -> Iterator[Row]:
    """Every row of a .jsonl or .csv file.

    Raises:
        ValueError: naming the file, the line and the cure.
    """
    readers = {".jsonl": _json_rows, ".csv": _csv_rows}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{printable(str(path))}: data must be a .jsonl or a .csv file")
    return readers[path.suffix.lower()](printable(str(path)), read_text(path))


def check_rows(*files: str | Path | None) -> None:
    """Refuses files of rows that cannot be read, before any work. None is no file.

    Raises:
        ValueError: see `read_rows`.
    """
    for file in files:
        if file is not None:
            for _ in read_rows(Path(file)):
                pass


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Every line of a text file that is not blank, with its place.

    Raises:
        ValueError: naming the file, the line and the cure.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{printable(str(path))}, line {number}", line.rstrip("\r")


def _json_rows(name: str, content: str) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            place = f"{name}, line {number}"
            yield Row(place, parse_object(line, place))


def _csv_rows(name: str, content: str) -> Iterator[Row]:
    header: list[str] | None = None
    for line, row in _csv_lines(name, content):
        place = f"{name}, line {line}"
        if header is None:
            header = row
            if twice := {column for column in header if header.count(column) > 1}:
                raise ValueError(f"{place}: two columns are called {shown(min(twice))}; rename one")
            continue
        if len(row) != len(header):
            raise ValueError(
                f"{place}: not as many fields as the header has ({len(row)}, not {len(header)}); "
                f"quote texts with commas"
            )
        yield Row(place, dict(zip(header, row, strict=True)))


def _csv_lines(name: str, content: str) -> list[tuple[int, list[str]]]:
    """The records that are not blank, each with the line that it begins in."""
    rows, start = [], 1
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    # The module's limit of 131,072 characters a field is one number for the whole process.
    before = csv.field_size_limit(max(len(content), 1))
    try:
        for row in reader:
            if row:
                rows.append((start, row))
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{name}, line {start}: malformed CSV ({error})") from error
    finally:
        csv.field_size_limit(before)
    return rows
