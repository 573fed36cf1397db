"""Errors that say what was running when they arose."""

from __future__ import annotations

from types import TracebackType


class Running:
    """A block whose errors, whatever their kind, leave it with a note.

    Args:
        what: completes "while running ...".
    """

    def __init__(self, what: str):
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"while running {self._what}")
