"""The summary as tables for a terminal of 80 columns: one of each judge, others of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from plugalign.evaluation.report.alignment import alignment_columns, alignment_notes
from plugalign.evaluation.report.numbers import (
    SHARES,
    heading,
    number,
    p_value,
    percent,
    printable,
    verdict,
)
from plugalign.evaluation.run_folder.manifest import MetricRecord
from plugalign.evaluation.run_folder.summary import Cost, JudgeNotes, Row, Summary
from plugalign.evaluation.statistics.figure import Figure
from plugalign.evaluation.statistics.paired import Interval

NAME = 17  # columns that a method's name gets at least
PERPLEXITIES = {"perplexity": "perplexity", "outside_perplexity": "outside\nperplexity"}
REVISED = {
    "critiqued": "verdicts",
    "faulted": "faults found",
    "refined": "refinements written",
    "changed": "answers changed",
    "empty": "refinements without a word",
    "too_long": "left alone because the context is too short",
}


def comparison_table(summary: Summary, settings: Mapping[str, str] | None = None) -> Group:
    """For every judge one row per method, then texts and costs, then notes that explain them.

    Args:
        settings: by the name of a method, in a line.
    """
    tables = [_judged(summary, judge) for judge in summary.judges]
    if summary.text_metrics:
        tables.append(_measured(summary))
    if summary.alignment is not None:
        tables += [_aligned(summary, judge) for judge in summary.judges]
    notes = Padding(Text("\n".join(_notes(summary, settings or {})), style="dim"), (0, 1))
    return Group(*tables, _texts(summary), _costs(summary), notes)


def _judged(summary: Summary, judge: str) -> Table:
    amount = f"{summary.prompts} prompts x {summary.samples} answers"
    metrics, primary = summary.judged_metrics, summary.primary
    headings = [heading(metric.name) for metric in metrics]
    headings += ["same\nlength", "empty", "p\nadj."]
    table = _table(summary, f"{amount}, judged by {printable(judge)}", headings)
    for name, row in summary.rows.items():
        judged = row.judged[judge]
        table.add_row(
            _name(name),
            *(_figure(judged.figures[metric.name], "share") for metric in metrics),
            _matched(judged.length_matched.get(primary.name)),
            _empty(row.texts["empty"]),
            _p_value(judged.figures[primary.name], primary),
            end_section=name == _last_reference(summary),
        )
    return table


def _measured(summary: Summary) -> Table:
    """The metrics that measure texts, each with its p-value."""
    headings = [h for metric in summary.text_metrics for h in (heading(metric.name), "p\nadj.")]
    table = _table(summary, "Measured of the texts", headings)
    for name, row in summary.rows.items():
        figures = [(row.texts[metric.name], metric) for metric in summary.text_metrics]
        cells = [
            cell for f, metric in figures for cell in (_figure(f, "other"), _p_value(f, metric))
        ]
        table.add_row(_name(name), *cells, end_section=name == _last_reference(summary))
    return table


def _aligned(summary: Summary, judge: str) -> Table:
    headings, cells = alignment_columns(summary, judge)
    table = _table(summary, f"How aligned, by {printable(judge)}", headings)
    for name, row in cells.items():
        table.add_row(_name(name), *row, end_section=name == _last_reference(summary))
    return table


def _texts(summary: Summary) -> Table:
    perplexities = [each for each in PERPLEXITIES if each in summary.base.texts]
    headings = [*(PERPLEXITIES[each] for each in perplexities), "of all\ntokens"]
    perplexities.append(summary.corpus_perplexity)
    table = _table(summary, "Texts", [*headings, "distinct\n1 / 2 / 3", "tokens", "empty"])
    for name, row in summary.rows.items():
        table.add_row(
            _name(name),
            *(_figure(row.texts[each], "perplexity") for each in perplexities),
            _distinct(row),
            _figure(row.texts["length"], "length"),
            _empty(row.texts["empty"]),
            end_section=name == _last_reference(summary),
        )
    return table


def _costs(summary: Summary) -> Table:
    table = _table(summary, "Costs", ["cost\n/ step", "cost\n/ answer", "x plain\n/ token"])
    for name, row in summary.rows.items():
        costs = row.costs
        table.add_row(
            _name(name),
            _cost(costs.ratio_per_step, costs.ms_per_step),
            _cost(costs.ratio_per_answer, costs.ms_per_answer),
            _cost(costs.ratio_to_plain, costs.ms_per_token),
            end_section=name == _last_reference(summary),
        )
    return table


def _table(summary: Summary, title: str, headings: list[str]) -> Table:
    table = Table(title=Text(title, style="bold"), box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    widest = max(len(name) for name in summary.rows)
    table.add_column("method", overflow="fold", min_width=min(widest, NAME))
    for each in headings:
        table.add_column(Text(each), justify="right", no_wrap=True)
    return table


def _last_reference(summary: Summary) -> str:
    return [summary.reference, *summary.references][-1]


def _name(name: str) -> Text:
    return Text(printable(name), style="bold")


def _distinct(row: Row) -> Text:
    shares = (row.texts[f"distinct_{n}"].value for n in (1, 2, 3))
    return Text("/".join(_short(share, "distinct") for share in shares))


def _short(value: float | None, metric: str) -> str:
    """Shares without the zero in front, to save columns."""
    text = number(value, metric)
    return text.removeprefix("0") if metric.startswith(SHARES) else text


def _figure(figure: Figure, metric: str) -> Text:
    text = Text(_short(figure.value, metric))
    if figure.value is not None:
        low, high = (_short(end, metric) for end in (figure.low, figure.high))
        text.append(f"\n{low}-{high}", style="dim")
    return text


def _matched(figure: Figure | None) -> Text:
    """A method's figure over base's, at equal length, and the p-value of that."""
    if figure is None or figure.value is None:
        return Text("")
    text = Text(f"{_short(figure.value, 'share')}/{_short(figure.base, 'share')}")
    if figure.p_adjusted is not None:
        text.append(f"\np {p_value(figure.p_adjusted)}", style="dim")
    return text


def _empty(figure: Figure) -> Text:
    low, high = (percent(end).removesuffix("%") for end in (figure.low, figure.high))
    return Text(percent(figure.value)).append(f"\n{low}-{high}", style="dim")


def _cost(ratio: Cost, milliseconds: Cost) -> Text:
    """A ratio with its interval, where there is one, and milliseconds."""
    text = Text(f"{number(ratio.value)} x")
    if ratio.interval is not None:
        low, high = map(number, ratio.interval)
        text.append(f" {low}-{high}", style="dim")
    return text.append(f"\n{number(milliseconds.value)} ms", style="dim")


def _p_value(figure: Figure, metric: MetricRecord) -> Text:
    if figure.p_adjusted is None:
        return Text("")
    colours = {"better": "green", "worse": "red", None: ""}
    return Text(p_value(figure.p_adjusted), style=colours[verdict(figure, metric.better)])


def _notes(summary: Summary, settings: Mapping[str, str]) -> Iterator[str]:
    scorer = summary.scorer
    model = "the unsteered base itself" if scorer.is_base else printable(scorer.name)
    yield "Below each figure: its 95 % interval over prompts (Wilson's for shares)."
    yield (
        "same length: the first figure over base's, each pair of answers cut to the shorter; "
        "tokens: of an answer, with its end token; empty: answers without a word."
    )
    if (ends := _detectable(summary)) is not None:
        yield (
            f"{summary.prompts} prompts show a change of {' to '.join(ends)} in the first figure, "
            f"by method, in four of five runs."
        )
    yield (
        "p: paired permutation test of the first figure against base, adjusted over the methods."
    )
    outside = summary.perplexity_model
    under = f"; outside: under {printable(outside)}" if outside else ""
    yield (
        f"Perplexity under {model}{under}; a mean over prompts, and once of all tokens together. "
        f"Cost over base in the same loop; per token over plain generate; with the interval of the "
        f"median over batches, from six on."
    )
    for alike in dict.fromkeys(summary.cut_alike.values()):
        methods = [printable(m) for m, row in summary.cut_alike.items() if row == alike]
        yield (
            f"{' and '.join(methods)}: a support leaves few tokens to choose from. {alike} is cut "
            f"alike and not steered; compare with it."
        )
    for name, line in settings.items():
        yield f"{printable(name)}: {line}"
    for name, row in summary.methods.items():
        if row.revisions:
            yield f"{printable(name)}: {revisions_in_words(row.revisions)}."
    for judge, notes in summary.judges.items():
        yield from _of_judge(judge, notes)
    yield from map(printable, alignment_notes(summary))
    yield from map(printable, summary.warnings)


def _detectable(summary: Summary) -> list[str] | None:
    """The smallest and the largest change, over methods, that so many prompts show."""
    rows = (row.judged[summary.primary_judge] for row in summary.methods.values())
    powers = (judged.figures[summary.primary.name].power for judged in rows)
    known = [power.detectable for power in powers if power is not None and power.detectable]
    if summary.primary.threshold is not None:
        known = [each for each in known if each <= 1]  # no share changes by more
    if not known:
        return None
    return list(dict.fromkeys(number(end, "share") for end in (min(known), max(known))))


def revisions_in_words(counts: Mapping[str, int]) -> str:
    """The counts of controllers that rewrite answers, as far as there are any."""
    return ", ".join(f"{counts[key]} {text}" for key, text in REVISED.items() if key in counts)


def _of_judge(judge: str, notes: JudgeNotes) -> Iterator[str]:
    name = printable(judge)
    if notes.missing:
        because = f" ({printable(notes.first_error)})" if notes.first_error else ""
        yield f"The judge {name} failed on {notes.missing} answers{because}; they are left out."
    for one in notes.agreements:
        found = one.judges[judge]
        yield (
            f"The judge {name} against {printable(one.source)}: AUC {_ranged(found.auc)}, rank "
            f"correlation {_ranged(found.spearman)}, {found.texts} texts."
        )


def _ranged(interval: Interval) -> str:
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"
