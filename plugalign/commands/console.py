"""What the command line prints: at the terminal's width, and nothing that a terminal would obey."""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from plugalign.files.shown import one_line, printable, shown_path

WIDTH = 110  # columns of a table that goes to a file


def show(renderable: RenderableType) -> None:
    """Prints a table or a text on stdout; texts are printed as they are, without markup."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:  # a file or a pipe gets all columns in full
        console = Console(
            markup=False, emoji=False, highlight=False, width=max(console.width, WIDTH)
        )
    console.print(Printable(renderable), soft_wrap=isinstance(renderable, str))


def quiet_libraries() -> None:
    """What libraries say to programmers would stand between the user and the progress bar."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def fail(message: str) -> None:
    """Prints an error in one line on stderr."""
    print("error:", one_line(message), file=sys.stderr)


def message_of(error: BaseException) -> str:
    """What an exception says, with its notes; of the system's errors the words and the path,
    and of a full disk the cure."""
    said = str(error)
    if isinstance(error, OSError) and error.strerror:
        place = "" if error.filename is None else f"{shown_path(error.filename)}: "
        said = f"{place}{error.strerror.lower()}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            said += "; free some space and run the same again"
    return " ".join([said, *getattr(error, "__notes__", [])])


@dataclass(frozen=True)
class Printable:
    """Something to print, with every character escaped that a terminal would obey.

    Names come from files and options. They are escaped here, where they are printed, and nowhere
    else: colours and boxes are styles by then, and no characters.
    """

    inner: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.inner, options):
            lines = [printable(line) for line in segment.text.split("\n")]
            yield Segment("\n".join(lines), segment.style, segment.control)
