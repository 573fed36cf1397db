"""How far a run is: a bar where somebody looks on, else a line now and then, and a log.

A terminal shows a bar. Where standard error is no terminal (nohup, a batch system, CI) a line is
written every half minute. The same lines go to progress.log in the run's folder in any case.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from rich import progress
from rich.console import Console

from plugalign.evaluation.run_folder.folder import LOG, full_disk_named

EVERY = 30.0  # seconds between two lines


class Progress:
    """Reports how far the stages of a run are.

    Args:
        out: the run's folder, where the log is.
        console: where a bar or lines are shown; standard error by default.
        every: seconds between two lines of a stage.
        clock: seconds.
    """

    def __init__(
        self,
        out: Path,
        console: Console | None = None,
        every: float = EVERY,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._log, self._every, self._clock = out / LOG, every, clock
        self._console = Console(stderr=True) if console is None else console
        self._bar = None
        if self._console.is_terminal:
            self._bar = progress.Progress(
                progress.TextColumn("{task.description:<10}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("answers"),
                progress.TimeRemainingColumn(),
                console=self._console,
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is not None:
            self.say(f"stopped: {kind.__name__}", shown=False)

    def stage(self, title: str, total: int, done: Callable[[], int], work: Iterable[None]) -> None:
        """Drives ``work`` to its end.

        Args:
            title: what is done, such as "generating".
            total: how many answers there are.
            done: how many are done.
            work: yields after each piece; nothing is written where there is no piece.
        """
        task = None
        if self._bar is not None:
            task = self._bar.add_task(title, total=total, completed=done())
        start = last = self._clock()
        first = before = done()
        for _ in work:
            now, count = self._clock(), done()
            if self._bar is not None and task is not None:
                self._bar.update(task, completed=count)
            if before == first or count == total or now - last >= self._every:
                each = (now - start) / max(1, count - first)
                self.say(_line(title, count, total, each), shown=self._bar is None)
                last = now
            before = count

    def say(self, text: str, *, shown: bool = True) -> None:
        """Writes one line to the log, and to the console if it is to be shown."""
        stamp = datetime.now().isoformat(sep=" ", timespec="seconds")
        with full_disk_named(self._log.parent), self._log.open("a", encoding="utf-8") as log:
            log.write(f"{stamp} {text}\n")
        if shown:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _line(title: str, count: int, total: int, seconds_each: float) -> str:
    line = f"{title}: {count} of {total} answers"
    if count == total:
        return line
    minutes, seconds = divmod(round((total - count) * seconds_each), 60)
    return f"{line}, about {minutes}:{seconds:02d} left"
