"""A run's folder: its manifest, its journals, and continuing where it was killed.

A journal is a JSON-lines file that grows by *units*, the records of one batch, each written in
one piece and synced. What a kill leaves behind, a torn line or half a unit, is cut off when the
run continues, so that the files of a resumed run equal those of an undisturbed one.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
PROMPTS = "prompts.jsonl"
GENERATIONS = "generations.jsonl"
SCORES = "scores.jsonl"
SUMMARY = "summary.json"
REPORT = "report.html"
FILES = (MANIFEST, PROMPTS, GENERATIONS, SCORES, SUMMARY, REPORT)

Record = dict[str, Any]


class Journal:
    """Records in units of known sizes, appended to a JSON-lines file.

    Args:
        path: the file; what it already holds of whole units is kept, the rest is cut off.
        sizes: how many records each unit has, in the order in which they will be appended.

    Attributes:
        records: all records so far, those found in the file included.
        done: how many units are complete.
    """

    def __init__(self, path: Path, sizes: Sequence[int]):
        self.path = path
        lines = _whole_lines(path)
        self.done, kept = 0, 0
        while self.done < len(sizes) and kept + sizes[self.done] <= len(lines):
            kept += sizes[self.done]
            self.done += 1
        if path.is_file():
            with full_disk_named(path.parent):
                os.truncate(path, sum(len(line) for line in lines[:kept]))
        self.records = [_parse(line, path, i) for i, line in enumerate(lines[:kept], start=1)]

    def append(self, unit: Sequence[Record]) -> None:
        """Writes one unit in one piece and returns when the disk has it.

        Raises:
            OSError: if the disk is full; names the folder and says how to go on.
        """
        text = "".join(json.dumps(r, ensure_ascii=False, sort_keys=True) + "\n" for r in unit)
        with full_disk_named(self.path.parent), self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        self.records += unit
        self.done += 1


def read_whole(path: Path) -> list[Record]:
    """All records of a finished journal."""
    return [_parse(line, path, i) for i, line in enumerate(_whole_lines(path), start=1)]


def open_run(out: Path, manifest: Mapping[str, Any], *, resume: bool) -> bool:
    """Makes a run's folder, or checks that the run in it is this one.

    Args:
        manifest: its "settings" and "versions" say which run this is.
        resume: whether an existing run is wanted.

    Returns:
        Whether an existing run is continued.

    Raises:
        ValueError: if the folder holds another run, or this one and ``resume`` is False.
    """
    path = out / MANIFEST
    if not path.is_file():
        if found := [name for name in FILES if (out / name).exists()]:
            raise ValueError(
                f"{out} holds {found[0]} but no {MANIFEST}, so it is no run to continue; "
                f"choose another --out"
            )
        with full_disk_named(out):
            out.mkdir(parents=True, exist_ok=True)
            write_json(path, manifest)
        return False
    if found := _differences(read_json(path), manifest):
        shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise ValueError(f"{out} holds another run: {shown}; choose another --out")
    if not resume:
        raise ValueError(
            f"{out} already holds this run; continue it with --resume, or choose another --out"
        )
    return True


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file, so that a kill leaves the old one or the new one."""
    replace_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes beside the old file and puts the new one in its place when it is complete."""
    half = path.with_name(path.name + ".half")
    with full_disk_named(path.parent):
        with half.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)


def read_json(path: Path) -> Any:
    """Reads a JSON file; a ValueError names the file if it is malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: malformed JSON ({error.msg})") from error


@contextmanager
def full_disk_named(out: Path) -> Iterator[None]:
    """Says what a full disk means for the run in ``out``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"no space is left for {out}; what is there is kept: free some space and run the same "
            f"again with --resume"
        ) from error


def _whole_lines(path: Path) -> list[bytes]:
    """The file's lines that end; a line without an end was torn."""
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines


def _parse(line: bytes, path: Path, number: int) -> Record:
    try:
        record: Record = json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"{path}, line {number}: malformed JSON; the run cannot be continued from it"
        ) from error
    return record


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In which settings and versions two manifests differ."""
    new = json.loads(json.dumps(new))  # tuples become lists, as they did in the file
    parts = ("settings", "versions")
    return [text for part in parts for text in _compared(old.get(part, {}), new.get(part, {}))]


def _compared(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """In words, what differs between two nested mappings."""
    for key in {**old, **new}:
        name = f"{prefix}.{key}" if prefix else key
        if key not in new:
            yield f"{name} was there and is missing now"
        elif key not in old:
            yield f"{name} was not there and is now"
        elif isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
            yield from _compared(old[key], new[key], name)
        elif old[key] != new[key]:
            yield f"{name} was {old[key]!r} and is now {new[key]!r}"
