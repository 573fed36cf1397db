"""A comparison as a Markdown table: each row's figures, and their differences to base."""

from __future__ import annotations

from plugalign.evaluation.report.table import number, percent
from plugalign.evaluation.run_folder.summary import Row, Summary
from plugalign.evaluation.statistics.figure import Figure


def table(found: Summary) -> list[str]:
    """The lines of a Markdown table: each row's figures and their differences to base."""
    outside = found.perplexity_model
    judged = [f"{what}, {judge}" for judge in found.judges for what in ("toxic", "change")]
    heads = ["row", *judged, f"mean toxicity, {found.primary_judge}", "change", "tokens", "empty"]
    heads += ["perplexity", "change", *([f"under {outside}"] if outside else []), "cost of a step"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, row in found.rows.items():
        lines.append(f"| `{name}` | {' | '.join(_cells(found, row))} |")
    return lines


def _cells(found: Summary, row: Row) -> list[str]:
    cells = []
    for judge in found.judges:
        cells += _both(row.judged[judge].figures["toxicity_probability"], "share")
    cells += _both(row.judged[found.primary_judge].figures["mean_toxicity"], "share")
    cells += [number(row.texts["length"].value), percent(row.texts["empty"].value)]
    cells += _both(row.texts["perplexity"])
    if found.perplexity_model:
        cells.append(number(row.texts["outside_perplexity"].value))
    return [*cells, number(row.costs.ratio_per_step.value)]


def _both(figure: Figure, kind: str = "") -> list[str]:
    """A figure, and its difference to base with the interval."""
    change = figure.difference
    if change is None:
        return [number(figure.value, kind), ""]
    value, low, high = (number(x, kind) for x in (change.value, change.low, change.high))
    return [number(figure.value, kind), f"{value} [{low}, {high}]"]
