"""The four capabilities for a terminal of 80 columns: one table a controller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from plugalign.evaluation.report.table import number, p_value, printable
from plugalign.evaluation.statistics.paired import Interval
from plugalign.values.capabilities.figures import Capability

SIGNIFICANT, CHANCE = 0.05, 0.5
NOTES = (
    "In brackets: 95 % intervals over texts; p adjusted over the figures of a table. *: not better "
    "than chance, so nothing follows from it. Fault: the judge's score. Fault taken away: its "
    "score of the model's own text less that of the text written again. The change of performance "
    "is the alignment tax, which may be negative."
)


def capability_tables(
    rows: Mapping[str, Sequence[Capability]], references: Mapping[str, str | None]
) -> Group:
    """Each controller beside its model; a model without any by itself."""
    steered = [name for name, reference in references.items() if reference is not None]
    alone = [name for name in rows if name not in steered and name not in references.values()]
    tables = [_table(rows, name, references[name]) for name in [*alone, *steered]]
    return Group(*tables, Padding(Text(NOTES, style="dim"), (0, 1)))


def _table(rows: Mapping[str, Sequence[Capability]], name: str, reference: str | None) -> Table:
    table = Table(title=Text(printable(name), style="bold"), box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    table.add_column("")
    shown = [name] if reference is None else [reference, name]
    for each in ["model", "steered"][: len(shown)]:
        table.add_column(each, justify="right", no_wrap=True)
    if reference is not None:
        table.add_column("change", justify="right", no_wrap=True)
        table.add_column("p", justify="right", no_wrap=True)
    capability = ""
    for figures in zip(*(rows[row] for row in shown), strict=True):
        last = figures[-1]
        if last.of != capability:
            capability = last.of
            table.add_row(Text(capability, style="bold"))
        cells = [_value(figure) for figure in figures]
        if reference is not None:
            cells += _change(last)
        table.add_row(f" {last.name}", *cells)
    return table


def _value(figure: Capability) -> Text:
    if figure.value is None:
        return Text(printable(figure.note or "-"), style="dim")
    weak = figure.name.startswith("AUC") and figure.value.low <= CHANCE
    return _bounded(figure.value, "*" if weak else "")


def _change(figure: Capability) -> Iterator[Text]:
    if figure.change is None or figure.p_adjusted is None:
        yield from (Text("-"), Text(""))
        return
    sure = figure.p_adjusted < SIGNIFICANT
    better = (figure.change.value > 0) == (figure.better == "higher")
    style = ("green" if better else "red") if sure else ""
    change = _bounded(figure.change, "")
    change.stylize(style)
    yield change
    yield Text(p_value(figure.p_adjusted), style=style)


def _bounded(interval: Interval, mark: str) -> Text:
    text = Text(f"{number(interval.value)}{mark}")
    return text.append(f"\n[{number(interval.low)}, {number(interval.high)}]", style="dim")
