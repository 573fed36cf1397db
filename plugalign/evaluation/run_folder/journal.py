"""Journals: JSON-lines files that grow by units, and outlive a kill.

A *unit* is the records of one batch, written in one piece and synced. A record is known by its
key, never by its line, and each line carries a check: a digest of the record under the run's own
name. So a line that was torn off is made again, one that was repeated or moved does no harm, and
one that was changed, or comes from another run, is named.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from plugalign.evaluation.run_folder.folder import full_disk_named, replace_text
from plugalign.evaluation.run_folder.records import Addressed, Key, described

R = TypeVar("R", bound=Addressed)
CURE = "remove the line and run the same again with --resume"


class Journal(Generic[R]):
    """Records in units, appended to a JSON-lines file.

    What the file holds of complete units is kept, in the order of the units; records of a unit that
    is incomplete are dropped, and the unit is missing.

    Args:
        path: the file.
        kind: the class of its records.
        units: the keys of each unit's records.
        run: the name of the run, under which lines are checked.
        fits: whether a record that was found still holds; else its unit is missing.

    Attributes:
        records: all records so far by key, those found in the file included.

    Raises:
        ValueError: for a line that is damaged, repeats another with other content, or does not
            belong to the run; names the file, the line and the cure.
    """

    def __init__(
        self,
        path: Path,
        kind: type[R],
        units: Sequence[Sequence[Key]],
        run: str = "",
        fits: Callable[[R], bool] = lambda record: True,
    ):
        self.path, self.units, self._run = path, units, run
        known = {key for unit in units for key in unit}
        found = read_journal(path, kind, run, known)
        complete = [unit for unit in units if all(k in found and fits(found[k]) for k in unit)]
        self.records = {key: found[key] for unit in complete for key in unit}
        self.order()

    @property
    def missing(self) -> list[int]:
        """The numbers of the units that are not there yet."""
        return [i for i, unit in enumerate(self.units) if unit and unit[0] not in self.records]

    def unit(self, number: int) -> list[R]:
        """The records of a unit that is there."""
        return [self.records[key] for key in self.units[number]]

    def order(self) -> None:
        """Leaves in the file what `records` holds, in the order of the units."""
        there = (self.records[key] for unit in self.units for key in unit if key in self.records)
        text = "".join(map(self._line, there))
        if self.path.is_file() and self.path.read_bytes() != text.encode():
            replace_text(self.path, text)

    def append(self, unit: Sequence[R]) -> None:
        """Writes one unit in one piece and returns when the disk has it.

        Raises:
            OSError: if the disk is full; names the folder and says how to go on.
        """
        text = "".join(self._line(record) for record in unit)
        with full_disk_named(self.path.parent), self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        self.records |= {record.key: record for record in unit}

    def _line(self, record: R) -> str:
        values = record.to_dict()
        return _json(values | {"check": check(values, self._run)}) + "\n"


def read_journal(
    path: Path, kind: type[R], run: str | None, known: set[Key] | None = None
) -> dict[Key, R]:
    """The records of a journal by key; a last line that was torn off is left out.

    Args:
        kind: the class of the records.
        run: the run's name; None for a run of an older version, whose lines carry no check.
        known: the keys of the run; None takes any.

    Raises:
        ValueError: as `Journal`.
    """
    lines: dict[Key, tuple[int, bytes]] = {}
    found: dict[Key, R] = {}
    for number, line in enumerate(_whole_lines(path), start=1):
        place = f"{path}, line {number}"
        record = _parse(line, place, kind, run)
        if known is not None and record.key not in known:
            raise ValueError(
                f"{place}: {described(record.key)} does not belong to this run; {CURE}"
            )
        if record.key in found and lines[record.key][1] != line:
            first = lines[record.key][0]
            raise ValueError(
                f"{place}: {described(record.key)} stands in line {first} too, with other "
                f"content; {CURE}"
            )
        lines[record.key], found[record.key] = (number, line), record
    return found


def check(values: dict[str, Any], run: str) -> str:
    """The check of a record's line."""
    return hashlib.sha256((run + _json(values)).encode()).hexdigest()[:12]


def _json(values: Any) -> str:
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def _whole_lines(path: Path) -> list[bytes]:
    """The file's lines that end; a line without an end was torn."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    return [line + b"\n" for line in lines[:-1]]


def _parse(line: bytes, place: str, kind: type[R], run: str | None) -> R:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: malformed JSON; {CURE}") from error
    given = values.pop("check", None) if isinstance(values, dict) else None
    try:
        record = kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"])) or "the line"
        raise ValueError(f"{place}: {name}: {fault['msg'][:80].lower()}; {CURE}") from error
    if run is not None and given != check(values, run):
        raise ValueError(
            f"{place}: {described(record.key)} was changed after it was written, or comes from "
            f"another run; {CURE}"
        )
    return record
