"""The summary for other programs: every figure as CSV, and the main ones as a LaTeX table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plugalign.evaluation.report.main_table import main_table
from plugalign.evaluation.run_folder.folder import TABLE_CSV, TABLE_LATEX, replace_text
from plugalign.evaluation.run_folder.summary import Summary


def write_tables(out: Path, summary: Summary, settings: Mapping[str, str]) -> None:
    """Writes table.csv and table.tex into a run's folder.

    Args:
        settings: by the name of a method, in a line.
    """
    replace_text(out / TABLE_CSV, csv_of(summary, settings))
    latex = main_table(summary, settings=settings).latex()
    replace_text(out / TABLE_LATEX, "\n".join(latex) + "\n")


def csv_of(summary: Summary, settings: Mapping[str, str]) -> str:
    """A line for each row of the report, with its settings, and a column for each figure, by its
    dotted name in summary.json; what a row does not have is empty."""
    rows = [
        {
            "method": name,
            "is_reference": name in summary.references,
            "settings": settings.get(name, ""),
            **dict(_flat(row.to_json())),
        }
        for name, row in summary.rows.items()
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _flat(values: Mapping[str, Any], front: str = "") -> Iterator[tuple[str, Any]]:
    """``a.b`` and its value for each entry of nested mappings and lists."""
    for name, value in values.items():
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            yield from _flat(value, f"{front}{name}.")
        else:
            yield f"{front}{name}", value
