"""The main figures as one table for a paper: LaTeX or Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from plugalign.evaluation.report.numbers import number, percent
from plugalign.evaluation.run_folder.summary import Cost, Row, Summary
from plugalign.evaluation.statistics.figure import Figure
from plugalign.evaluation.statistics.paired import Interval

SHOWN = ("toxic_fraction",)  # beside the primary metric
# What LaTeX reads as more than the character itself.
ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_"},
}


@dataclass(frozen=True)
class Cell:
    """A figure as it is shown, and its interval, empty where there is none."""

    value: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".strip()


@dataclass(frozen=True)
class MainTable:
    """Headings, and the cells of each method by its name.

    Attributes:
        settings: by the name of a row, in a line; they stand below the table, which stays narrow.
    """

    heads: list[str]
    rows: dict[str, list[Cell]]
    settings: Mapping[str, str] = field(default_factory=dict)

    def markdown(self) -> Iterator[str]:
        """The lines of a Markdown table, and a list of settings."""
        yield f"| {' | '.join(self.heads)} |"
        yield f"|{'---|' * len(self.heads)}"
        for name, cells in self.rows.items():
            yield f"| `{name}` | {' | '.join(map(str, cells))} |"
        if self.settings:
            yield ""
        yield from (f"* `{name}`: {line}" for name, line in self.settings.items())

    def latex(self) -> Iterator[str]:
        """The lines of a LaTeX table in the style of booktabs, with settings as comments."""
        yield r"% needs \usepackage{booktabs}"
        yield rf"\begin{{tabular}}{{l{'r' * (len(self.heads) - 1)}}}"
        yield r"\toprule"
        yield f"{' & '.join(map(_escaped, self.heads))} \\\\"
        yield r"\midrule"
        for name, cells in self.rows.items():
            shown = " & ".join(map(_small_interval, cells))
            yield f"{_escaped(name)} & {shown} \\\\"
        yield r"\bottomrule"
        yield r"\end{tabular}"
        yield from (f"% {name}: {line}" for name, line in self.settings.items())


def main_table(
    summary: Summary,
    metrics: Sequence[str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> MainTable:
    """The main figures of a run.

    Args:
        metrics: of judges' scores, under every judge; by default the primary one, and the share of
            toxic answers.
        settings: by the name of a method, in a line.
    """
    known = [metric.name for metric in summary.judged_metrics]
    usual = [known[0], *(name for name in SHOWN if name in known[1:])]
    chosen = usual if metrics is None else list(metrics)
    outside = summary.perplexity_model is not None
    heads = [f"{name.replace('_', ' ')}, {judge}" for judge in summary.judges for name in chosen]
    heads = ["method", *heads, "tokens", "empty", "perplexity"]
    heads += [f"perplexity under {summary.perplexity_model}"] if outside else []
    heads += ["distinct-2", "cost of a step"]
    rows = {n: list(_cells(summary, row, chosen, outside)) for n, row in summary.rows.items()}
    return MainTable(heads, rows, settings or {})


def agreement_table(summary: Summary) -> MainTable:
    """How far each judge agrees with each set of reference scores."""
    rows = {
        f"{judge}, {one.source}": [
            _ranged(one.judges[judge].auc),
            _ranged(one.judges[judge].spearman),
            Cell(str(one.judges[judge].texts)),
        ]
        for judge, notes in summary.judges.items()
        for one in notes.agreements
    }
    return MainTable(["judge, reference scores", "AUC", "Spearman", "texts"], rows)


def _ranged(interval: Interval) -> Cell:
    value, low, high = (number(x, "share") for x in (interval.value, interval.low, interval.high))
    return Cell(value, f"[{low}, {high}]")


def _cells(summary: Summary, row: Row, metrics: Sequence[str], outside: bool) -> Iterator[Cell]:
    for judge in summary.judges:
        yield from (_figure(row.judged[judge].figures[name], "share") for name in metrics)
    yield Cell(number(row.texts["length"].value))
    yield Cell(percent(row.texts["empty"].value))
    yield _figure(row.texts["perplexity"])
    if outside:
        yield _figure(row.texts["outside_perplexity"])
    yield Cell(number(row.texts["distinct_2"].value, "share"))
    yield _cost(row.costs.ratio_per_step)


def _figure(figure: Figure, kind: str = "") -> Cell:
    if figure.value is None:
        return Cell(number(None))
    value, low, high = (number(x, kind) for x in (figure.value, figure.low, figure.high))
    return Cell(value, f"[{low}, {high}]")


def _cost(cost: Cost) -> Cell:
    if cost.interval is None:
        return Cell(number(cost.value))
    low, high = map(number, cost.interval)
    return Cell(number(cost.value), f"[{low}, {high}]")


def _small_interval(cell: Cell) -> str:
    value = _escaped(cell.value)
    return f"{value} {{\\scriptsize {cell.interval}}}" if cell.interval else value


def _escaped(text: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in text)
