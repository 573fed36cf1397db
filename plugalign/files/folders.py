"""Where results go: whether they can be written there, found out before any work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from plugalign.files.shown import printable, shown_path


def check_folder(path: str | Path, option: str = "out") -> Path:
    """A folder that is there or can be made.

    Raises:
        ValueError: it, or what it would lie in, is a file or may not be written.
    """
    folder = Path(path)
    if not str(path).strip():
        raise ValueError(f"{option} names no folder, got {str(path)!r}")
    nearest = next((p for p in (folder, *folder.absolute().parents) if there(p)), folder)
    place = printable(str(nearest))
    if not nearest.is_dir():
        raise ValueError(f"{option}: {place} is a file, and a folder is needed; name another")
    try:
        with tempfile.TemporaryFile(dir=nearest):  # permissions do not tell of every file system
            return folder
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(
            f"{option}: {place} cannot be written ({reason}); name another folder"
        ) from error


def check_file(path: str | Path, option: str = "out") -> Path:
    """A file that can be written, in a folder that is there or can be made.

    Raises:
        ValueError: it is a folder, or see `check_folder`.
    """
    file = Path(path)
    if file.is_dir() or not file.name.strip():
        raise ValueError(f"{option}: {shown_path(path)} is no file; name one")
    check_folder(file.absolute().parent, option)
    return file


def there(path: str | Path) -> bool:
    """Whether there is such a file or folder.

    Raises:
        ValueError: the path is too long, or has a character that no path can hold.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # too long, or a character that no path can hold
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{shown_path(path)} is no path ({reason})") from error
    return True
