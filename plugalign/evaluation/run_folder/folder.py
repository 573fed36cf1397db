"""A run's folder: whose run it is, who is at work in it, and files that outlive a kill."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plugalign.files import replacing

MANIFEST = "manifest.json"
PROMPTS = "prompts.jsonl"
GENERATIONS = "generations.jsonl"
SCORES = "scores.jsonl"
SUMMARY = "summary.json"
REPORT = "report.html"
TABLE_CSV, TABLE_LATEX = "table.csv", "table.tex"
LOG = "progress.log"
LOCK = ".lock"
FILES = (MANIFEST, PROMPTS, GENERATIONS, SCORES, SUMMARY, REPORT)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keeps a run's folder, which is made if need be, to this process.

    The operating system holds the lock and lets go of it when the process ends, however it ends:
    there are no stale locks. The lock's file only says who holds it.

    Raises:
        ValueError: if another process, or another call of this one, is at work in the folder.
        OSError: if the folder cannot be made or written.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    with full_disk_named(out):
        out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            raise ValueError(
                f"{out} is in use: {holder} is at work in it; wait for its end, or choose another "
                f"--out"
            ) from error
        with full_disk_named(out):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
        yield
    finally:
        os.close(descriptor)  # and with it the lock


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
    if found := _differences(_object(path), manifest):
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
    with full_disk_named(path.parent):
        replacing.replace_text(path, text)


def read_json(path: Path) -> Any:
    """Reads a JSON file; a ValueError names the file if it is malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: malformed JSON ({error.msg})") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, it is no JSON in UTF-8") from error


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
            f"again, with --resume where the command has that"
        ) from error


def _object(path: Path) -> dict[str, Any]:
    """A manifest as far as it must be one."""
    found = read_json(path)
    parts = ("settings", "versions")
    if not isinstance(found, dict) or any(not isinstance(found.get(p, {}), dict) for p in parts):
        raise ValueError(f"{path}: damaged, it is no manifest; choose another --out")
    return found


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
