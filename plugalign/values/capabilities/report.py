"""The report: one self-contained HTML file with a table for each controller."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plugalign.evaluation.report.numbers import number, p_value
from plugalign.evaluation.report.templates import environment
from plugalign.evaluation.run_folder.folder import replace_text
from plugalign.values.capabilities.figures import Capability
from plugalign.values.capabilities.table import NOTES, Compared, compared

TEMPLATE = "report.html.j2"
MEANINGS = {
    "comprehension": "tells right from wrong in labelled judgements",
    "diagnosis": "finds the fault in its own texts, by the judge's verdicts",
    "rectification": "mends its own texts, once told of the fault and unasked",
    "performance": "predicts given texts and solves tasks: the alignment tax",
}


def write_report(
    path: Path,
    rows: Mapping[str, Sequence[Capability]],
    references: Mapping[str, str | None],
    manifest: Mapping[str, Any],
) -> None:
    """Writes the report.

    Args:
        rows: the figures by row; references: by row, that of its model.
        manifest: of the run, see `plugalign.values.capabilities.measurement`.
    """
    made = environment(
        "plugalign.values.capabilities",
        number=number,
        p_value=p_value,
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    )
    tables = [(each, finding(each)) for each in compared(rows, references)]
    html = made.get_template(TEMPLATE).render(
        tables=tables,
        models=[name for name, reference in references.items() if reference is None],
        meanings=MEANINGS,
        notes=NOTES,
        manifest=manifest,
    )
    replace_text(path, html)


def finding(each: Compared) -> str:
    """What a table shows, in a sentence; it claims no more than the adjusted p-values do."""
    if each.reference is None:
        return "The model by itself: there is no controller to compare it with."
    better = [figure.name for figure in each.changes if figure.improved is True]
    worse = [figure.name for figure in each.changes if figure.improved is False]
    if not (better or worse):
        return "No change is distinguishable from chance."
    said = [
        f"{word}: {'; '.join(names)}"
        for word, names in (("Better", better), ("Worse", worse))
        if names
    ]
    return f"{'. '.join(said)}. No other change is distinguishable from chance."
