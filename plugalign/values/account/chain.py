"""Hash-chained JSON lines: a line that is removed, moved or changed shows.

Every line carries the hash of the line before it and its own, ``hash = SHA-256(previous +
content)``. So a file is as good as its last hash: who can write the file can write all of it anew,
and only a last hash that is kept elsewhere tells. A file that was cut at its end is found by what
its last line is, which the reader of a run knows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugalign.evaluation.run_folder.folder import full_disk_named
from plugalign.files.json_text import parse_object
from plugalign.files.shown import printable

START = "0" * 64  # what stands for the line before the first


@dataclass(frozen=True)
class Link:
    """One line: where it stands, its hash, and its content without hashes."""

    place: str
    hash: str
    content: Mapping[str, Any]


class Chain:
    """A hash-chained file that grows.

    Args:
        path: the file. What it holds is verified and kept; half a line at its end, which a kill
            left behind, is removed.

    Raises:
        ValueError: for a line that was changed, removed or moved; names file and line.
    """

    def __init__(self, path: Path):
        self.path, self.links = path, list(read_chain(path, half=True)) if path.is_file() else []
        self.head = self.links[-1].hash if self.links else START
        if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)

    def append(self, contents: Iterable[Mapping[str, Any]]) -> None:
        """Writes lines in one piece and returns when the disk has them.

        Raises:
            OSError: if the disk is full; says how to go on.
        """
        lines, head = [], self.head
        for content in contents:
            own = hash_of(head, content)
            lines.append(_json({"previous": head, **content, "hash": own}) + "\n")
            head = own
        with full_disk_named(self.path.parent), self.path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self.head = head


def read_chain(path: Path, *, half: bool = False) -> Iterator[Link]:
    """Every line of a hash-chained file, verified.

    Args:
        half: whether half a line may stand at the end, which is left out.

    Raises:
        ValueError: for a line that is damaged, or was changed, removed or moved; names file, line
            and cure.
    """
    name, head = printable(str(path)), START
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({(error.strerror or '').lower()})") from error
    *whole, rest = content.split(b"\n")
    if rest and not half:
        raise ValueError(
            f"{name}, line {len(whole) + 1}: half a line; the run was killed while it wrote, or "
            "the file was cut: continue the run with --resume"
        )
    for number, line in enumerate(whole, start=1):
        place = f"{name}, line {number}"
        found = parse_object(line.decode("utf-8", errors="replace"), place)
        previous, own = found.pop("previous", None), found.pop("hash", None)
        if own != hash_of(str(previous), found):
            raise ValueError(
                f"{place}: the line was changed after it was written; restore the file from a copy"
            )
        if previous != head:
            raise ValueError(
                f"{place}: the line before it is another than when it was written: lines were "
                "removed, added or moved; restore the file from a copy"
            )
        head = str(own)
        yield Link(place, head, found)


def hash_of(previous: str, content: Mapping[str, Any]) -> str:
    """The hash of a line, from that of the line before it and its content."""
    return hashlib.sha256((previous + _json(content)).encode()).hexdigest()


def _json(values: Any) -> str:
    return json.dumps(
        values, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
