"""The findings as tables for a terminal of 80 columns: whether it measured, then what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from plugalign.evaluation.report.numbers import number, p_value, printable
from plugalign.evaluation.statistics.paired import Interval
from plugalign.values.questionnaire.evidence import evidence
from plugalign.values.questionnaire.findings import Profile
from plugalign.values.questionnaire.instrument import Instrument
from plugalign.values.questionnaire.verdict import Level

NARROW = 12  # columns that a respondent's name gets at least
BESIDE = 2  # respondents of whom all figures fit beside each other
COLOURS: dict[Level, str] = {
    "measured": "green",
    "partly measured": "yellow",
    "not measured": "red",
}


def values_table(instrument: Instrument, profiles: Sequence[Profile]) -> Group:
    """The verdict on each respondent, its evidence, the profiles, and the steered ones' change."""
    tables = [*_evidence(profiles), _profiles(instrument, profiles)]
    if any(profile.differences for profile in profiles):
        tables.append(_differences(instrument, profiles))
    notes = Padding(Text("\n".join(_notes(instrument, profiles)), style="dim"), (0, 1))
    return Group(_verdicts(instrument, profiles), *tables, notes)


def _verdicts(instrument: Instrument, profiles: Sequence[Profile]) -> Padding:
    said: list[RenderableType] = []
    for profile in profiles:
        level = profile.verdict.level
        text = Text(printable(profile.name), style="bold").append(": ", style="not bold")
        text.append(f"{printable(instrument.name)} ", style="not bold")
        said.append(text.append(_said(level), style=COLOURS[level]))
        reasons = Table.grid(padding=(0, 1, 0, 0))
        for check in profile.verdict.failed:
            reasons.add_row("  -", printable(check.text))
        said.append(reasons)
    return Padding(Group(*said), (1, 1, 1, 1))


def _said(level: Level) -> str:
    return {"not measured": "did NOT measure", "partly measured": "PARTLY measured"}.get(
        level, "MEASURED"
    )


def _evidence(profiles: Sequence[Profile]) -> Iterator[Table]:
    """A few respondents beside each other, figure by figure."""
    for first in range(0, len(profiles), BESIDE):
        some = profiles[first : first + BESIDE]
        table = Table(title=Text("What speaks for it", style="bold"), box=box.SIMPLE_HEAD)
        table.padding = (0, 1, 0, 0)
        table.add_column("", no_wrap=True)
        for profile in some:
            table.add_column(_name(profile.name), justify="right", overflow="fold")
        found = [evidence(profile) for profile in some]
        for name in found[0]:
            table.add_row(printable(name), *(printable_lines(each[name]) for each in found))
        yield table


def _profiles(instrument: Instrument, profiles: Sequence[Profile]) -> Table:
    scale = f"0 to {instrument.levels - 1}"
    scale += ", minus the own mean" if instrument.centre else ""
    table = _table(f"Scores, {scale}", profiles, [*instrument.dimensions, "p"])
    for profile in profiles:
        style = "" if profile.measured else "dim"
        cells = [_interval(each) for each in profile.dimensions.values()]
        name = _name(profile.name)
        if not profile.measured:
            name.append(f"\n{profile.verdict.level}", style="not bold")
        table.add_row(name, *cells, p_value(profile.differ_p), style=style)
    return table


def _differences(instrument: Instrument, profiles: Sequence[Profile]) -> Table:
    table = _table("Change from the model itself", profiles, list(instrument.dimensions))
    for profile in profiles:
        if not profile.differences:
            continue
        cells = []
        for each in profile.differences.values():
            sure = each.p_adjusted < 0.05
            cell = _interval(each.change).append(f"\np {p_value(each.p_adjusted)}", style="dim")
            cells.append(Text("", style="bold" if sure else "").append(cell))
        table.add_row(_name(profile.name), *cells)
    return table


def _table(title: str, profiles: Sequence[Profile], headings: Sequence[str]) -> Table:
    table = Table(title=Text(title, style="bold"), box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    widest = max(len(profile.name) for profile in profiles)
    table.add_column("", overflow="fold", min_width=min(widest, NARROW))
    for each in headings:
        table.add_column(Text(printable_lines(each)), justify="right", no_wrap=True)
    return table


def printable_lines(text: str) -> str:
    """A text's lines, each without what would steer a terminal."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _name(name: str) -> Text:
    return Text(printable(name), style="bold")


def _interval(interval: Interval) -> Text:
    """A figure above its interval, which is short so that five stand beside a name."""
    text = Text(number(interval.value))
    low, high = (number(end) for end in (interval.low, interval.high))
    if interval.low < 0:
        low, high = (
            end.replace("0.", ".", 1) if abs(float(end)) < 1 else end for end in (low, high)
        )
    return text.append(f"\n{low}{', ' if interval.low < 0 else '-'}{high}", style="dim")


def _notes(instrument: Instrument, profiles: Sequence[Profile]) -> Iterator[str]:
    yield (
        "Below each figure: its 95 % interval, over items. Scores without MEASURED above say "
        "nothing about values."
    )
    yield (
        "Shares: of the variance of the answers' log-probabilities, what hangs on the item (which "
        "only who reads it has), on the answer whatever is asked, on the letter before it."
    )
    yield (
        "Alpha: agreement of the wordings. AUC: whether items whose answer is known are told "
        "apart; they are balanced, so good against bad and long against short should be 0.5. Who "
        "draws lots passes two catch items one time in four. p: that all dimensions score alike."
    )
    if instrument.note:
        yield printable(f"{instrument.name}: {instrument.note}")
    for profile in profiles:
        if profile.refusals is not None and profile.refusals.refused:
            said = printable(profile.refusals.examples[0])[:60]
            yield f"{printable(profile.name)} declined, for instance: {said!r}"
