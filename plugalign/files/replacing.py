"""Files that are complete or as they were, whatever ends the process or the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HALF = ".half"  # ends the name of a file that is being written


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write, which takes its place once the disk has all of it.

    Without that a rename may outlive a power failure that the content does not. Where the disk is
    full, what was written beside is removed.
    """
    half = path.with_name(path.name + HALF)
    try:
        yield half
        sync(half)
        os.replace(half, path)
    except OSError:
        half.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file that is complete or as it was."""
    with replacing(path) as half:
        half.write_text(text, "utf-8")


def sync(path: Path) -> None:
    """Returns when the disk has a file, or every file in a folder."""
    for file in (path,) if path.is_file() else filter(Path.is_file, path.rglob("*")):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
