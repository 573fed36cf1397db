"""The summary as a table for a terminal of about 110 columns."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

SIGNIFICANT = 0.05
NAME = 24  # columns that a method's name gets before it is folded
SHARES = ("toxicity", "expected", "mean_tox", "distinct")  # metrics that lie in [0, 1]
COLUMNS = {
    "toxicity_probability": "toxicity\nprobab.",
    "expected_maximum_toxicity": "expected\nmaximum",
    "mean_toxicity": "mean\ntoxicity",
    "perplexity": "perplexity",
    "length": "tokens\n/ answer",
}


def comparison_table(summary: dict[str, Any]) -> Table:
    """One row per method: figures, below them their 95 % intervals, and the cost."""
    table = Table(title=_title(summary), caption=_caption(summary), box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    table.title_style, table.caption_style, table.caption_justify = "bold", "dim", "left"
    widest = max(map(len, summary["methods"]))
    table.add_column("method", overflow="fold", min_width=min(widest, NAME))
    for heading in (*COLUMNS.values(), "distinct\n1 / 2 / 3", "cost\n/ token", "p\n(adj.)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, method in summary["methods"].items():
        table.add_row(
            Text(name, style="bold"),
            *(_figure(method[metric], metric) for metric in COLUMNS),
            Text("/".join(_short(method[f"distinct_{n}"]["value"], "distinct") for n in (1, 2, 3))),
            _cost(method),
            _p_value(method["toxicity_probability"]),
        )
    return table


def number(value: float | None, metric: str = "") -> str:
    """A figure as it is shown: shares with two decimals, others with about three digits."""
    if value is None:
        return "-"
    if metric.startswith(SHARES) or round(abs(value), 2) < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if round(abs(value), 1) < 100 else f"{value:.0f}"


def p_value(value: float) -> str:
    """A p-value as it is shown."""
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def _short(value: float | None, metric: str) -> str:
    """Shares without the zero in front, to save room."""
    text = number(value, metric)
    return text.removeprefix("0") if metric.startswith(SHARES) else text


def _figure(figures: dict[str, Any], metric: str) -> Text:
    text = Text(_short(figures["value"], metric))
    if figures["value"] is not None:
        low, high = (_short(figures[end], metric) for end in ("low", "high"))
        text.append(f"\n{low}-{high}", style="dim")
    return text


def _cost(method: dict[str, Any]) -> Text:
    text = Text(f"{number(method['ratio_to_plain']['value'])} x")
    return text.append(f"\n{number(method['ms_per_token']['value'])} ms", style="dim")


def _p_value(figures: dict[str, Any]) -> Text:
    if "p_adjusted" not in figures:
        return Text("")
    adjusted = figures["p_adjusted"]
    better = adjusted < SIGNIFICANT and figures["difference"]["value"] < 0
    worse = adjusted < SIGNIFICANT and figures["difference"]["value"] > 0
    return Text(p_value(adjusted), style="green" if better else "red" if worse else "")


def _title(summary: dict[str, Any]) -> str:
    amount = f"{summary['prompts']} prompts x {summary['samples']} answers"
    return f"{amount}, judged by {summary['primary_judge']}"


def _caption(summary: dict[str, Any]) -> str:
    scorer = summary["scorer"]
    under = "the unsteered base itself" if scorer["is_base"] else scorer["name"]
    lines = [
        f"Below each figure: its 95 % interval over prompts. Perplexity under {under}.",
        "Cost: time per token as a multiple of plain generate, and in milliseconds.",
        "p: paired permutation test of the toxicity probability against base, adjusted over the "
        "methods.",
    ]
    for judge, found in summary["judges"].items():
        if found["missing"]:
            lost = found["missing"]
            lines.append(f"The judge {judge} failed on {lost} answers; they are left out.")
        if agreement := found.get("agreement"):
            lines.append(
                f"The judge {judge} against the reference: AUC {_ranged(agreement['auc'])}, rank "
                f"correlation {_ranged(agreement['spearman'])}, {agreement['texts']} texts."
            )
    return "\n".join(lines)


def _ranged(interval: dict[str, Any]) -> str:
    return f"{interval['value']:.2f} ({interval['low']:.2f}-{interval['high']:.2f})"
