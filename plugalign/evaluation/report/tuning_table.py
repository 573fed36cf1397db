"""A tuning as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from plugalign.evaluation.comparison.references import BASE
from plugalign.evaluation.halving import Trial
from plugalign.evaluation.report.numbers import heading, number, printable

BOUNDED = {  # what the budgets are called in the table
    "max_perplexity": "perplexity",
    "max_perplexity_cut_alike": "cut",
    "max_length_change": "length",
    "max_cost": "time",
}


def tuning_table(found: Mapping[str, Any], trials: Sequence[Trial], chosen: Trial | None) -> Table:
    """The base, and all settings; what is chosen is marked.

    Args:
        found: the content of tuning.json.
        trials: all settings, the best first.
    """
    metric = found["metric"]["name"]
    cut_alike = any(trial.perplexity_ratio_cut_alike is not None for trial in trials)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption = Text("; ".join(_notes(found, cut_alike)))
    table.add_column("setting", overflow="fold")
    perplexity = "perplexity\nx base" + (" / cut" if cut_alike else "")
    for head in ("prompts", heading(metric), perplexity, "length\nx base", "time\nx base"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("")
    asked = max(trial.prompts for trial in trials)
    table.add_row(BASE, str(asked), _estimated(found["base"][metric]), *["1"] * 3, "")
    for trial in trials:
        over_base, over_cut = trial.perplexity_ratio, trial.perplexity_ratio_cut_alike
        table.add_row(
            Text(_shown(trial.settings)),
            str(trial.prompts),
            _estimated(trial.figures[metric]),
            number(over_base) + (f" / {number(over_cut)}" if cut_alike else ""),
            number(trial.length_ratio),
            number(trial.cost_ratio),
            "chosen" if trial == chosen else _over(trial),
            style="bold" if trial == chosen else None,
        )
    return table


def _estimated(figure: Mapping[str, Any]) -> str:
    """A figure with its interval."""
    value, low, high = (number(figure[part]) for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _over(trial: Trial) -> str:
    """Which budgets it does not keep, if any."""
    return "" if trial.within else "over " + ", ".join(BOUNDED[name] for name in trial.over)


def doubt(metric: Mapping[str, Any], chosen: Trial | None) -> str | None:
    """What must be said of a choice that is not shown to be better than base; None of others.

    Args:
        metric: the primary one, as in summary.json.
    """
    if chosen is None or chosen.improves(metric):
        return None
    name = metric["name"].replace("_", " ")
    difference = chosen.figures[metric["name"]].get("difference") or dict.fromkeys(
        ("value", "low", "high")
    )
    return (
        f"{_shown(chosen.settings)} is the best of these settings, but not shown to be better than "
        f"base: its difference in {name} is {_estimated(difference)}"
    )


def _notes(found: Mapping[str, Any], cut_alike: bool) -> Iterator[str]:
    """What a reader of the table must know of perplexity."""
    outside = found["perplexity_model"]
    under = "" if outside is None else f" under {printable(outside)}"
    yield f"perplexity{under}: of all tokens"
    if cut_alike:
        bounds = (found["budgets"][f"max_perplexity{of}"] for of in ("", "_cut_alike"))
        yield "cut: the base within the same support; budgets are " + " / ".join(
            map(number, bounds)
        )
