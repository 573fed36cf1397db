"""How far a fit has come: a bar on a terminal, now and then a line where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 30.0  # seconds between two lines


class Bar:
    """The progress of one stage.

    Args:
        title: what is being done. total: how many steps it takes. done: how many are done already.
    """

    def __init__(self, title: str, total: int, done: int, console: Console):
        self._title, self._total, self._done, self._console = title, total, done, console
        self._started, self._first = time.monotonic(), done
        self._next = self._started + 1.0  # when to print a line
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, note="")
            self._bar.start()

    def advance(self, steps: int = 1, note: str = "", total: int | None = None) -> None:
        """Says that so many more steps are done, and of how many if that has changed; ``note`` is
        shown beside them."""
        self._done += steps
        self._total = self._total if total is None else total
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, note=note, total=self._total)
        elif (now := time.monotonic()) > self._next or self._done == self._total:
            self._next = now + EVERY
            left = (now - self._started) / max(1, self._done - self._first)
            left *= self._total - self._done
            parts = [f"{self._title}: {self._done} of {self._total}", note]
            parts += [f"about {duration(left)} to go"] if left else []
            say(", ".join(part for part in parts if part), self._console)

    def close(self) -> None:
        """Takes the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A `Bar` on stderr for the length of the block."""
    bar = Bar(title, total, done, Console(stderr=True))
    try:
        yield bar
    finally:
        bar.close()


def say(text: str, console: Console | None = None) -> None:
    """One line on stderr, as it is."""
    (console or Console(stderr=True)).print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A time in words: seconds up to a minute and a half, then minutes, then hours."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
