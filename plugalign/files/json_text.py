"""JSON objects from text, with one error for every fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plugalign.files.shown import printable, shown
from plugalign.files.text import read_text


def parse_object(text: str, place: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: malformed, nested too deeply, a name that stands there twice, or no object.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{place}: malformed JSON ({error.msg}, column {error.colno}) in {shown(text.strip())}"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{place}: JSON nested too deeply: {shown(text.strip())}") from error
    except ValueError as error:  # of `_once`, or an integer of too many digits
        raise ValueError(f"{place}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{place}: expected a JSON object, got {shown(found)}")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: naming the file and what is wrong.
    """
    return parse_object(read_text(path), printable(str(path)))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice)} stands there twice; keep one")
    return found
