"""Figures, p-values and names as tables, notes and reports show them."""

from __future__ import annotations

from typing import Literal

from plugalign.evaluation.statistics.figure import Figure

SIGNIFICANT = 0.05
SHARES = ("toxic", "expected", "mean_tox", "distinct", "share")  # figures that lie in [0, 1]
HEADINGS = {
    "toxicity_probability": "toxicity\nprobab.",
    "expected_maximum_toxicity": "expected\nmaximum",
    "mean_toxicity": "mean\ntoxicity",
    "toxic_fraction": "toxic\nanswers",
}


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
    if 0 < value <= 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    shown = (
        f"{100 * value:.1f}" if 0 < value < 0.0995 or 0.9005 < value < 1 else f"{100 * value:.0f}"
    )
    return f"{shown}%"


def p_value(value: float) -> str:
    """A p-value as it is shown."""
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def verdict(figure: Figure, better: str) -> Literal["better", "worse"] | None:
    """Whether a figure is better or worse than base's where that is sure, else None."""
    change, p = figure.difference, figure.p_adjusted
    if change is None or p is None or p >= SIGNIFICANT or change.value == 0:
        return None
    return "better" if (change.value < 0) == (better == "lower") else "worse"


def heading(metric: str) -> str:
    """A metric's name above its column."""
    return HEADINGS.get(metric, metric.replace("_", "\n", 1).replace("_", " "))


def printable(text: str) -> str:
    """Without what would steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
