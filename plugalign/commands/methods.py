"""``plugalign methods``: every method of the catalogue."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from plugalign.catalogue import METHODS
from plugalign.commands.console import show

ACTS = {
    "steer": "each token",
    "attach": "the model",
    "revise": "answers",
    "prompt": "the prompt",
}


def methods() -> None:
    """What is there: each method's name, where it acts, its paper, what it needs fitted."""
    show(table())


def table() -> Table:
    """All methods, a row each."""
    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("method", "acts on", "paper", "needs fitted"):
        grid.add_column(heading, header_style="dim", no_wrap=heading == "method")
    for method in METHODS:
        name = Text(method.name, style="bold")
        grid.add_row(name, ACTS[method.surface], method.paper, method.needs)
    return grid
