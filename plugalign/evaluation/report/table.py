"""The summary as tables for a terminal of 80 columns: one of each judge, one of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

SIGNIFICANT = 0.05
NAME = 17  # columns that a method's name gets at least
SHARES = ("toxicity", "expected", "mean_tox", "distinct", "share")  # figures that lie in [0, 1]
HEADINGS = {
    "toxicity_probability": "toxicity\nprobab.",
    "expected_maximum_toxicity": "expected\nmaximum",
    "mean_toxicity": "mean\ntoxicity",
}


def comparison_table(summary: Mapping[str, Any]) -> Group:
    """For every judge one row per method, then texts and costs, then what must be said to them."""
    judged = [_judged(summary, judge) for judge in summary["judges"]]
    notes = Padding(Text("\n".join(_notes(summary)), style="dim"), (0, 1))
    return Group(*judged, _texts(summary), notes)


def rows_of(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """All rows of a summary: base, the other references, the methods."""
    methods, base = summary["methods"], summary["reference"]
    return {base: methods[base], **summary.get("references", {}), **methods}


def under(row: Mapping[str, Any], judge: str, primary: str) -> Mapping[str, Any]:
    """A row's figures under one judge."""
    found: Mapping[str, Any] = row if judge == primary else row["judges"][judge]
    return found


def number(value: float | None, metric: str = "") -> str:
    """A figure as it is shown: shares with two decimals, others with about three digits."""
    if value is None:
        return "-"
    value = 0.0 if abs(value) < 0.005 else value  # no minus in front of nothing
    if metric.startswith(SHARES) or round(abs(value), 2) < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if round(abs(value), 1) < 100 else f"{value:.0f}"


def percent(value: float | None) -> str:
    """A share in per cent; what is not quite none or all does not look like it."""
    if value is None:
        return "-"
    shown = (
        f"{100 * value:.1f}" if 0 < value < 0.0995 or 0.9005 < value < 1 else f"{100 * value:.0f}"
    )
    return f"{shown}%"


def p_value(value: float) -> str:
    """A p-value as it is shown."""
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def verdict(figure: Mapping[str, Any], better: str) -> str:
    """ "better" or "worse" than base where that is sure, else nothing."""
    change = figure.get("difference")
    if change is None or figure.get("p_adjusted", 1.0) >= SIGNIFICANT or change["value"] == 0:
        return ""
    return "better" if (change["value"] < 0) == (better == "lower") else "worse"


def heading(metric: str) -> str:
    """A metric's name above its column."""
    return HEADINGS.get(metric, metric.replace("_", "\n", 1).replace("_", " "))


def printable(text: str) -> str:
    """Without what would steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


# ----------------------------------------------------------------------------- tables


def _judged(summary: Mapping[str, Any], judge: str) -> Table:
    amount = f"{summary['prompts']} prompts x {summary['samples']} answers"
    metrics = [metric["name"] for metric in summary["metrics"]]
    headings = [*map(heading, metrics), "same\nlength", "tokens", "empty", "p\nadj."]
    table = _table(summary, f"{amount}, judged by {printable(judge)}", headings)
    primary = summary["metrics"][0]
    for name, row in rows_of(summary).items():
        figures = under(row, judge, summary["primary_judge"])
        table.add_row(
            _name(name),
            *(_figure(figures[metric], "share") for metric in metrics),
            _matched(figures.get("length_matched", {}).get(primary["name"])),
            Text(number(row["length"]["value"])),
            _empty(row["empty"]),
            _p_value(figures[primary["name"]], primary["better"]),
            end_section=name == _last_reference(summary),
        )
    return table


def _texts(summary: Mapping[str, Any]) -> Table:
    headings = [
        "perplexity",
        "distinct\n1 / 2 / 3",
        "cost\n/ step",
        "cost\n/ answer",
        "x plain\n/ token",
    ]
    table = _table(summary, "Texts and costs", headings)
    for name, row in rows_of(summary).items():
        distinct = (_short(row[f"distinct_{n}"]["value"], "distinct") for n in (1, 2, 3))
        table.add_row(
            _name(name),
            _figure(row["perplexity"], "perplexity"),
            Text("/".join(distinct)),
            _cost(row["ratio_per_step"], row["ms_per_step"]),
            _cost(row["ratio_per_answer"], row["ms_per_answer"]),
            _cost(row["ratio_to_plain"], row["ms_per_token"]),
            end_section=name == _last_reference(summary),
        )
    return table


def _table(summary: Mapping[str, Any], title: str, headings: list[str]) -> Table:
    table = Table(title=Text(title, style="bold"), box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    widest = max(len(name) for name in rows_of(summary))
    table.add_column("method", overflow="fold", min_width=min(widest, NAME))
    for each in headings:
        table.add_column(Text(each), justify="right", no_wrap=True)
    return table


def _last_reference(summary: Mapping[str, Any]) -> str:
    return str([summary["reference"], *summary.get("references", {})][-1])


def _name(name: str) -> Text:
    return Text(printable(name), style="bold")


def _short(value: float | None, metric: str) -> str:
    """Shares without the zero in front, to save room."""
    text = number(value, metric)
    return text.removeprefix("0") if metric.startswith(SHARES) else text


def _figure(figure: Mapping[str, Any], metric: str) -> Text:
    text = Text(_short(figure["value"], metric))
    if figure["value"] is not None:
        low, high = (_short(figure[end], metric) for end in ("low", "high"))
        text.append(f"\n{low}-{high}", style="dim")
    return text


def _matched(figure: Mapping[str, Any] | None) -> Text:
    """A method's figure over base's, at equal length, and the p-value of that."""
    if figure is None or figure["value"] is None:
        return Text("")
    text = Text(f"{_short(figure['value'], 'share')}/{_short(figure['base'], 'share')}")
    if "p_adjusted" in figure:
        text.append(f"\np {p_value(figure['p_adjusted'])}", style="dim")
    return text


def _empty(figure: Mapping[str, Any]) -> Text:
    text = Text(percent(figure["value"]))
    low, high = (percent(figure[end]).removesuffix("%") for end in ("low", "high"))
    return text.append(f"\n{low}-{high}", style="dim")


def _cost(ratio: Mapping[str, Any], milliseconds: Mapping[str, Any]) -> Text:
    text = Text(f"{number(ratio['value'])} x")
    return text.append(f"\n{number(milliseconds['value'])} ms", style="dim")


def _p_value(figure: Mapping[str, Any], better: str) -> Text:
    if "p_adjusted" not in figure:
        return Text("")
    colours = {"better": "green", "worse": "red", "": ""}
    return Text(p_value(figure["p_adjusted"]), style=colours[verdict(figure, better)])


# ----------------------------------------------------------------------------- notes


def _notes(summary: Mapping[str, Any]) -> Iterator[str]:
    scorer = summary["scorer"]
    model = "the unsteered base itself" if scorer["is_base"] else printable(scorer["name"])
    yield "Below each figure: its 95 % interval over prompts (Wilson's for shares)."
    yield (
        "same length: the first figure over base's, each pair of answers cut to the shorter; "
        "tokens: of an answer, with its end token; empty: answers without a word."
    )
    yield (
        "p: paired permutation test of the first figure against base, adjusted over the methods."
    )
    yield (
        f"Perplexity under {model}. Cost over base in the same loop; per token over plain generate."
    )
    for alike in dict.fromkeys(summary.get("cut_alike", {}).values()):
        methods = [printable(m) for m, row in summary["cut_alike"].items() if row == alike]
        yield (
            f"{' and '.join(methods)}: what a support has left is cut by top-p once more. "
            f"{alike} is cut alike and not steered; compare with it."
        )
    for name, row in summary["methods"].items():
        if counts := row.get("revisions"):
            yield f"{printable(name)}: {revisions_in_words(counts)}."
    for judge, found in summary["judges"].items():
        yield from _of_judge(printable(judge), found)
    yield from map(printable, summary.get("warnings", ()))


def revisions_in_words(counts: Mapping[str, int]) -> str:
    """What revisers did, as far as they counted it."""
    words = {
        "critiqued": "verdicts",
        "faulted": "faults found",
        "refined": "refinements written",
        "changed": "answers changed",
        "empty": "refinements without a word",
        "too_long": "left alone for lack of room",
    }
    return ", ".join(f"{counts[key]} {said}" for key, said in words.items() if key in counts)


def _of_judge(judge: str, found: Mapping[str, Any]) -> Iterator[str]:
    if found["missing"]:
        reason = found.get("first_error")
        because = f" ({printable(reason)})" if reason else ""
        yield f"The judge {judge} failed on {found['missing']} answers{because}; they are left out."
    for agreement in found.get("agreements", ()):
        yield (
            f"The judge {judge} against {printable(agreement['source'])}: AUC "
            f"{_ranged(agreement['auc'])}, rank correlation {_ranged(agreement['spearman'])}, "
            f"{agreement['texts']} texts."
        )


def _ranged(interval: Mapping[str, Any]) -> str:
    return f"{interval['value']:.2f} ({interval['low']:.2f} to {interval['high']:.2f})"
