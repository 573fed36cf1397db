"""Values and names as messages show them: bounded, and without what a terminal would obey."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from typing import Any

WIDTH = 60  # characters of a value in a message
PATH_WIDTH = 200  # of a path
LONGEST_NAME = 200
LISTED = 10  # names that a message lists

# Controls, line and paragraph separators, marks of direction, and halves of surrogate pairs: what
# moves the cursor, colours what follows, hides text, or cannot be encoded.
UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    "\ufff9-\ufffb\ud800-\udfff]"
)


def shown(value: Any, width: int = WIDTH) -> str:
    """``repr`` of a value in at most about ``width`` characters, however large or deep it is.

    Containers are cut before they are written out: a few hundred bytes of YAML can stand for a
    list of billions.
    """
    short = reprlib.Repr()
    short.maxlevel, short.maxdict, short.maxlist, short.maxtuple, short.maxset = 2, 3, 3, 3, 3
    short.maxstring = short.maxother = width
    text = printable(short.repr(value))
    return text if len(text) <= 2 * width else text[: 2 * width] + "…"


def shown_path(path: object) -> str:
    """A path in quotes, so wide that nearly all are whole: one cut in its middle cannot be found.

    Args:
        path: a path, or an id of the hub.
    """
    return shown(str(path), PATH_WIDTH)


def listed(values: Iterable[Any]) -> str:
    """The first names of many, in order, for a message that says what there is."""
    names = sorted(map(str, set(values)))
    more = f", … ({len(names)} in all)" if len(names) > LISTED else ""
    return ", ".join(shown(name) for name in names[:LISTED]) + more


def check_name(name: str, what: str) -> str:
    """A name that tables, files and messages can hold.

    Args:
        what: what it names, such as "a judge".

    Raises:
        ValueError: it is empty, longer than 200 characters, or has characters that cannot be seen.
    """
    if not name.strip() or len(name) > LONGEST_NAME or UNSAFE.search(name):
        raise ValueError(
            f"{shown(name)} cannot name {what}: a name has 1 to {LONGEST_NAME} characters, none of "
            f"which controls a terminal"
        )
    return name


def printable(text: str) -> str:
    """The text with every character escaped that a terminal would obey or cannot show."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str, width: int = 2000) -> str:
    """A message as one printable line of bounded length."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[:width] + "…"
