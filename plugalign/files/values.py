"""The values that data holds: texts, labels and numbers, each understood in one way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from plugalign.files.serialised import NotReadable, unpacked
from plugalign.files.shown import shown
from plugalign.files.text import check_unicode

WORDS = {"true": "1", "false": "0"}


def text_of(value: Any, what: str) -> str:
    """A text.

    Args:
        what: the place and the field, for messages.

    Raises:
        ValueError: it is missing, empty, no text, half a character, or a serialised record.
    """
    if value is None:
        raise ValueError(f"{what} is null; remove the line or fill it")
    if isinstance(value, str) and not isinstance(opened(value, what), str):
        raise ValueError(
            f"{what} is a serialised record and not a text: {shown(value)}; name the field in it, "
            f"or export the data as JSON lines"
        )
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, got {shown(value)}")
    if not value.strip():
        raise ValueError(f"{what} is empty; remove the line or fill it")
    return check_unicode(value, what)


def opened(value: Any, what: str) -> Any:
    """A value, or the record or list that it is the text form of.

    Raises:
        ValueError: it looks like a serialised record and cannot be read.
    """
    if not isinstance(value, str):
        return value
    try:
        return unpacked(value)
    except NotReadable as error:
        raise ValueError(
            f"{what} looks like a serialised record and cannot be read: {shown(value)}; export "
            f"the data as JSON lines"
        ) from error


def label_of(value: Any) -> str | None:
    """A label as a string, None if it is none.

    One value is one label, whatever the format: 0, 0.0, false, "0", "0.0" and "False" are "0".
    """
    if isinstance(value, str):
        word = value.strip()
        return WORDS.get(word.lower()) or _integer(word)
    if isinstance(value, (bool, int)):
        return str(int(value)) if abs(value) < 1e15 else None
    return _integer(repr(value)) if isinstance(value, float) else None


def _integer(word: str) -> str | None:
    """A number in its shortest form, any other word as it is, None for a fraction or nothing."""
    try:
        number = float(word)
    except ValueError:
        return word or None
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else None


def share_of(value: Any, what: str) -> float:
    """A number in [0, 1], such as a reference score.

    Raises:
        ValueError: it is missing, no number, or outside.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{what} is null; leave out the texts without a score")
    try:
        number = math.nan if isinstance(value, (bool, Mapping, list)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= 1:
        raise ValueError(f"{what} must be a number in [0, 1], got {shown(value)}")
    return number
