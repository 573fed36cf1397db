"""The four capabilities for a terminal of 80 columns: one table a controller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from plugalign.evaluation.report.numbers import number, p_value, printable
from plugalign.evaluation.statistics.paired import Interval
from plugalign.values.capabilities.figures import Capability

NOTES = (
    "p is adjusted over the figures of a table. *: not better than chance, so nothing follows from "
    "it. Fault: the judge's score. Fault taken away: its score of the model's own text less that "
    "of the text written again. The change of performance is the alignment tax, which may be "
    "negative."
)


@dataclass(frozen=True)
class Compared:
    """A model by itself, or a controller beside its model.

    Attributes:
        name: the row; reference: that of its model, None for a model by itself.
        figures: of the model and of the steered one, or of the model alone.
    """

    name: str
    reference: str | None
    figures: tuple[tuple[Capability, ...], ...]

    @property
    def changes(self) -> tuple[Capability, ...]:
        """The figures of the steered model, or the model's own."""
        return tuple(figures[-1] for figures in self.figures)


def compared(
    rows: Mapping[str, Sequence[Capability]], references: Mapping[str, str | None]
) -> Iterator[Compared]:
    """Each controller beside its model; before them the models without any."""
    steered = [name for name, reference in references.items() if reference is not None]
    alone = [name for name in rows if name not in steered and name not in references.values()]
    for name in [*alone, *steered]:
        reference = references[name]
        shown = [name] if reference is None else [reference, name]
        yield Compared(name, reference, tuple(zip(*(rows[row] for row in shown), strict=True)))


def capability_tables(
    rows: Mapping[str, Sequence[Capability]], references: Mapping[str, str | None]
) -> Group:
    """Each controller beside its model; a model without any by itself."""
    tables = map(_table, compared(rows, references))
    notes = f"In brackets: 95 % intervals over texts; {NOTES}"
    return Group(*tables, Padding(Text(notes, style="dim"), (0, 1)))


def _table(each: Compared) -> Table:
    table = Table(title=Text(printable(each.name), style="bold"), box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    table.add_column("")
    for heading in ["model"] if each.reference is None else ["model", "steered", "change", "p"]:
        table.add_column(heading, justify="right", no_wrap=True)
    capability = ""
    for figures in each.figures:
        last = figures[-1]
        if last.of != capability:
            capability = last.of
            table.add_row(Text(capability, style="bold"))
        cells = [_value(figure) for figure in figures]
        if each.reference is not None:
            cells += _change(last)
        table.add_row(f" {last.name}", *cells)
    return table


def _value(figure: Capability) -> Text:
    if figure.value is None:
        return Text(printable(figure.note or "-"), style="dim")
    return _bounded(figure.value, "*" if figure.by_chance else "")


def _change(figure: Capability) -> Iterator[Text]:
    if figure.change is None or figure.p_adjusted is None:
        yield from (Text("-"), Text(""))
        return
    style = {True: "green", False: "red", None: ""}[figure.improved]
    change = _bounded(figure.change, "")
    change.stylize(style)
    yield change
    yield Text(p_value(figure.p_adjusted), style=style)


def _bounded(interval: Interval, mark: str) -> Text:
    text = Text(f"{number(interval.value)}{mark}")
    return text.append(f"\n[{number(interval.low)}, {number(interval.high)}]", style="dim")
