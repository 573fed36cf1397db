"""How aligned the methods are, as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from plugalign.evaluation.run_folder.summary import Summary
from plugalign.evaluation.statistics.distributions import GAPS
from plugalign.evaluation.statistics.figure import Figure
from plugalign.evaluation.statistics.paired import Interval

GAP_HEADINGS = ["epsilon", "self-\nfloor", "energy\ndistance", "signed"]


def alignment_columns(summary: Summary, judge: str) -> tuple[list[str], dict[str, list[Text]]]:
    """The columns of one judge, and by row their cells: what there is of degree, gap and labels."""
    alignment = summary.alignment
    assert alignment is not None
    headings = ["degree", "change"]
    summed = judge in alignment.summed and judge == alignment.summed[-1]
    summed = summed and len(alignment.summed) > 1
    headings += ["sum of\nvalues"] if summed else []
    headings += GAP_HEADINGS if alignment.human_texts else []
    headings += ["by\nlabels"] if alignment.human_labels else []
    cells = {}
    for name in summary.rows:
        row = alignment.rows[name]
        degree = row.degree[judge]
        found = [_figure(degree), _interval(degree.difference)]
        if summed:
            found.append(_figure(row.total))
        if alignment.human_texts:
            found += [_figure(row.gap[judge][kind], digits=3) for kind in GAPS]
        if alignment.human_labels:
            known = row.by_labels.get(judge)
            found.append(_interval(None if known is None else known.mean))
        cells[name] = found
    return headings, cells


def alignment_notes(summary: Summary) -> Iterator[str]:
    """What the columns mean, and what the model says of its own texts."""
    alignment = summary.alignment
    if alignment is None:
        return
    yield (
        "degree: the mean of P(v | answer), one minus the judge's score; change: from base, paired "
        "over prompts."
    )
    if alignment.human_texts:
        about = alignment.human_texts
        yield (
            f"Gap to {about['count']} texts of {about['source']}: epsilon is what P differs by "
            "between an answer and a human text, self-floor between two answers; the energy "
            "distance is 0 in the mean where both are alike; signed is answers minus human texts."
        )
    if alignment.human_labels:
        about = alignment.human_labels
        yield (
            f"by labels: the degree by {about['count']} human labels of {about['source']}, the "
            "judge filling in for the other answers (PPI++)."
        )
    for name in summary.rows:
        for own, others in alignment.rows[name].action.items():
            for other, found in others.items():
                agree = "" if found.agreement is None else f", AUC {_words(found.agreement)}"
                yield (
                    f"{name}, the model on its own texts ({own}): {_words(found.judgement)}, "
                    f"{other} {_words(found.action)}, gap {_words(found.gap)}{agree}. What the "
                    f"model's judgement is worth on labelled text, see --agreement."
                )


def _figure(figure: Figure | None, digits: int = 2) -> Text:
    if figure is None or figure.value is None or figure.low is None or figure.high is None:
        return Text("-")
    return _interval(Interval(figure.value, figure.low, figure.high), digits)


def _interval(found: Interval | None, digits: int = 2) -> Text:
    if found is None:
        return Text("")
    value, low, high = (_short(each, digits) for each in (found.value, found.low, found.high))
    return Text(value).append(f"\n{low}…{high}", style="dim")


def _short(value: float, digits: int) -> str:
    """Without the zero in front, and no minus in front of nothing."""
    shown = f"{value:.{digits}f}"
    shown = shown.removeprefix("-") if float(shown) == 0 else shown
    return shown.replace("0.", ".", 1) if abs(value) < 1 else shown


def _words(found: Interval) -> str:
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def alignment_sections(summary: Summary) -> list[dict[str, Any]]:
    """The same for the page: of each judge its name, headings and plain cells by row."""
    if summary.alignment is None:
        return []
    found = []
    for judge in summary.judges:
        headings, cells = alignment_columns(summary, judge)
        plain = {name: [cell.plain.split("\n") for cell in row] for name, row in cells.items()}
        found.append({"judge": judge, "headings": headings, "cells": plain})
    return found
