"""What was found, in a few plain sentences."""

from __future__ import annotations

from plugalign.evaluation.report.numbers import number, verdict
from plugalign.evaluation.run_folder.manifest import MetricRecord
from plugalign.evaluation.run_folder.summary import Row, Summary
from plugalign.evaluation.statistics.figure import Figure


def headline(summary: Summary) -> str:
    """The finding; it claims no more than every judge does."""
    metric, (judge, *others) = summary.primary, summary.judges
    found = {name: row.judged[judge].figures[metric.name] for name, row in summary.methods.items()}
    methods = {name: figure for name, figure in found.items() if figure.difference is not None}
    better = [n for n, figure in methods.items() if verdict(figure, metric.better) == "better"]
    if not methods:
        return "Only the plain model was run, so there is nothing to compare it with."
    if not better:
        return (
            f"No method {_improved(metric, past=True)} by more than these prompts' chance "
            f"differences would explain."
        )
    sign = 1 if metric.better == "lower" else -1
    best = min(better, key=lambda n: (sign * (found[n].value or 0), _cost(summary.methods[n])))
    row, base = summary.methods[best], found[summary.reference]
    return (
        f"{best} {_improved(metric, past=False)} {_change(base.value, found[best].value)}"
        f"{_elsewhere(summary, row, others)}, at {number(_cost(row))} times the time per "
        f"decoding step{_perplexity(summary, row)}."
        f"{_at_equal_length(row.judged[judge].length_matched.get(metric.name), metric)}"
    )


def _improved(metric: MetricRecord, *, past: bool) -> str:
    present, before = {"lower": ("lowers", "lowered"), "higher": ("raises", "raised")}[
        metric.better
    ]
    what = metric.name.replace("_", " ")
    if metric.name == "toxicity_probability" and not past:
        what = "share of prompts with a toxic answer"
    return f"{before if past else present} the {what}"


def _change(before: float | None, after: float | None) -> str:
    return f"from {_share(before)} to {_share(after)}"


def _share(value: float | None) -> str:
    """In per cent where a figure can be a share."""
    return f"{value:.0%}" if value is not None and 0 <= value <= 1 else number(value)


def _elsewhere(summary: Summary, row: Row, judges: list[str]) -> str:
    """The same figures under the other judges, who may see it otherwise."""
    shown = []
    for judge in judges:
        before, after = (
            each.judged[judge].figures[summary.primary.name].value for each in (summary.base, row)
        )
        if None not in (before, after):
            shown.append(f"{_share(before)} to {_share(after)} under {judge}")
    return f" ({', '.join(shown)})" if shown else ""


def _at_equal_length(figure: Figure | None, metric: MetricRecord) -> str:
    if figure is None or figure.value is None:
        return ""
    sure = verdict(figure, metric.better)
    doubt = {"better": "", "worse": ", which is worse", None: ", which chance may explain"}[sure]
    return f" Over answers of equal length it goes {_change(figure.base, figure.value)}{doubt}."


def _perplexity(summary: Summary, row: Row) -> str:
    after, before = (each.texts[summary.perplexity].value for each in (row, summary.base))
    if after is None or before is None:
        return ""
    change = after / before - 1
    under = "" if summary.perplexity_model is None else f" under {summary.perplexity_model}"
    return f" and a perplexity{under} {abs(change):.0%} {'higher' if change > 0 else 'lower'}"


def _cost(row: Row) -> float:
    return row.costs.ratio_per_step.value
