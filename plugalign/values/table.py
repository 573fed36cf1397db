"""The findings as tables for a terminal of 80 columns: whether it measured, then what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from plugalign.evaluation.report.table import NAME, number, p_value, percent, printable
from plugalign.evaluation.statistics.paired import Interval
from plugalign.values.findings import Profile, Turned
from plugalign.values.instrument import Instrument
from plugalign.values.verdict import Level

COLOURS: dict[Level, str] = {
    "measured": "green",
    "partly measured": "yellow",
    "not measured": "red",
}


def values_table(instrument: Instrument, profiles: Sequence[Profile]) -> Group:
    """The verdict on each respondent, its evidence, the profiles, and the steered ones' change."""
    tables = [_evidence(profiles), _profiles(instrument, profiles)]
    if any(profile.differences for profile in profiles):
        tables.append(_differences(instrument, profiles))
    notes = Padding(Text("\n".join(_notes(instrument, profiles)), style="dim"), (0, 1))
    return Group(_verdicts(instrument, profiles), *tables, notes)


def _verdicts(instrument: Instrument, profiles: Sequence[Profile]) -> Padding:
    text = Text()
    for profile in profiles:
        level = profile.verdict.level
        text.append(printable(profile.name), style="bold").append(": ")
        text.append(printable(instrument.name)).append(" ")
        text.append(_said(level), style=f"bold {COLOURS[level]}").append("\n")
        for check in profile.verdict.failed:
            text.append(f"  - {printable(check.text)}\n")
    text.rstrip()
    return Padding(text, (1, 1, 0, 1))


def _said(level: Level) -> str:
    return {"not measured": "did NOT measure", "partly measured": "PARTLY measured"}.get(
        level, "MEASURED"
    )


def _evidence(profiles: Sequence[Profile]) -> Table:
    first = profiles[0]
    headings = [
        "item\nshare",
        "letter\nshare",
        "alpha\nraw, deb.",
        "printed,\nreversed",
        "catch\nitems",
    ]
    headings += [f"{each.high},\n{each.low} AUC" for each in first.contrasts]
    headings += ["refused"]
    table = _table("What speaks for it", profiles, headings)
    for profile in profiles:
        scored = next(iter(profile.shares.values()))
        letters = profile.shares.get("letters")
        turned, refusals = profile.turned, profile.refusals
        table.add_row(
            _name(profile.name),
            f"{scored.telling:.3f}",
            "-" if letters is None or letters.letter is None else f"{letters.letter:.2f}",
            f"{profile.raw_alpha:.2f}\n{profile.alpha:.2f}",
            "-" if turned is None else _turned(turned),
            f"{sum(c.passed for c in profile.catches)} of {len(profile.catches)}",
            *(_interval(contrast.auc) for contrast in profile.contrasts),
            "-" if refusals is None else percent(refusals.rate),
        )
    return table


def _profiles(instrument: Instrument, profiles: Sequence[Profile]) -> Table:
    scale = f"0 to {instrument.levels - 1}"
    scale += ", minus the own mean" if instrument.centre else ""
    table = _table(f"Scores, {scale}", profiles, [*instrument.dimensions, "differ\np"])
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
    table.add_column("", overflow="fold", min_width=min(widest, NAME))
    for each in headings:
        table.add_column(Text(printable_heading(each)), justify="right", no_wrap=True)
    return table


def printable_heading(text: str) -> str:
    """A heading's lines, each without what would steer a terminal."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _name(name: str) -> Text:
    return Text(printable(name), style="bold")


def _interval(interval: Interval) -> Text:
    text = Text(number(interval.value))
    dash = " to " if interval.low < 0 else "-"
    return text.append(f"\n{number(interval.low)}{dash}{number(interval.high)}", style="dim")


def _turned(turned: Turned) -> str:
    """The mean over the dimensions, as printed and turned round."""
    means = (fmean(each.values()) for each in (turned.printed, turned.reversed))
    return "\n".join(map(number, means))


def _notes(instrument: Instrument, profiles: Sequence[Profile]) -> Iterator[str]:
    yield (
        "Below each figure: its 95 % interval, over items. Scores without MEASURED above say "
        "nothing about values."
    )
    yield (
        "item share: of the variance of the answers' log-probabilities what hangs on the item; "
        "letter share: what hangs on the letter A, B, … alone, where answers are shown so."
    )
    yield (
        "alpha: agreement of the wordings, raw and after debiasing; printed, reversed: the mean "
        "score when letters are read off as they are, with the scale as it is and turned round."
    )
    yield (
        "AUC: whether items whose answer is known are told apart; a random responder passes two "
        "catch items one time in four. differ: that all dimensions score alike."
    )
    if instrument.note:
        yield printable(f"{instrument.name}: {instrument.note}")
    for profile in profiles:
        if profile.refusals is not None and profile.refusals.refused:
            said = printable(profile.refusals.examples[0])[:60]
            yield f"{printable(profile.name)} declined, for instance: {said!r}"
