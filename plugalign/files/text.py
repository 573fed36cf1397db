"""Whole text files, as UTF-8."""

from __future__ import annotations

from pathlib import Path

from plugalign.files.shown import UNSAFE, printable, shown, shown_path


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, without its byte order mark.

    Raises:
        ValueError: there is no such file, it is a folder, it cannot be read, or it is not UTF-8
            text; names the file and, where there is one, the line.
    """
    place = printable(str(path))
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{place}: there is no such file") from error
    except IsADirectoryError as error:
        raise ValueError(f"{place}: this is a folder; name a file in it") from error
    except (OSError, ValueError) as error:  # a ValueError is of a path that cannot be
        reason = getattr(error, "strerror", None) or "no path"
        raise ValueError(f"{shown_path(path)}: cannot be read ({reason.lower()})") from error
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{place}, line {line}: not UTF-8 (byte {raw[error.start]:#04x}); save it as UTF-8"
        ) from error
    if (start := content.find("\0")) >= 0:
        line = content.count("\n", 0, start) + 1
        raise ValueError(
            f"{place}, line {line}: a NUL character ('\\x00'), so this is no text file"
        )
    return content


def check_unicode(text: str, what: str) -> str:
    """The text, if every character of it can stand in a text.

    Raises:
        ValueError: it holds half of a surrogate pair, or NUL.
    """
    if "\0" in text:
        raise ValueError(f"{what} has a NUL character: {shown(text)}")
    half = next((c for c in UNSAFE.findall(text) if "\ud800" <= c <= "\udfff"), None)
    if half is not None:
        raise ValueError(
            f"{what} has half of a surrogate pair, {shown(half)}, in {shown(text)}: the text was "
            f"cut inside a character; mend or remove it"
        )
    return text
