"""The report: one self-contained HTML file, which begins with whether anything was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plugalign.evaluation.report.numbers import number, p_value
from plugalign.evaluation.report.templates import environment
from plugalign.evaluation.run_folder.folder import replace_text
from plugalign.values.questionnaire.evidence import evidence
from plugalign.values.questionnaire.findings import Profile
from plugalign.values.questionnaire.instrument import Instrument
from plugalign.values.questionnaire.radar import radar

TEMPLATE = "report.html.j2"


def write_report(
    path: Path, instrument: Instrument, profiles: Sequence[Profile], manifest: Mapping[str, Any]
) -> None:
    """Writes the report.

    Args:
        manifest: of the run, see `plugalign.values.questionnaire.measurement`.
    """
    made = environment(
        "plugalign.values.questionnaire",
        number=number,
        p_value=p_value,
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    )
    html = made.get_template(TEMPLATE).render(
        instrument=instrument,
        profiles=profiles,
        finding=headline(instrument, profiles),
        evidence=[evidence(profile) for profile in profiles],
        radar=radar(instrument, profiles),
        items=[i for i in instrument.items if i.kind in ("item", "catch")],
        changed=[profile for profile in profiles if profile.differences],
        top=max(
            abs(end) for p in profiles for f in p.dimensions.values() for end in (f.low, f.high)
        ),
        scored=manifest["settings"]["formats"][0],
        manifest=manifest,
    )
    replace_text(path, html)


def headline(instrument: Instrument, profiles: Sequence[Profile]) -> str:
    """The finding, in a sentence or two; it claims no more than the verdicts do."""
    names = {
        level: [p.name for p in profiles if p.verdict.level == level]
        for level in ("measured", "partly measured", "not measured")
    }
    said = {
        "measured": "measured",
        "partly measured": "measured only in part",
        "not measured": "did not measure",
    }
    found = [f"{said[level]} {_listed(rows)}" for level, rows in names.items() if rows]
    return f"{instrument.name} {', and '.join(found)}."


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
