"""The report: one self-contained HTML file, written from a run's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plugalign.evaluation.comparison.prompts import prompts_of_run
from plugalign.evaluation.comparison.references import BASE, PLAIN
from plugalign.evaluation.report.alignment import alignment_notes, alignment_sections
from plugalign.evaluation.report.charts import Estimate, Scatter, scatter
from plugalign.evaluation.report.conditions import conditions_of, settings_lines
from plugalign.evaluation.report.headline import headline
from plugalign.evaluation.report.numbers import number, p_value, percent, verdict
from plugalign.evaluation.report.pairs import Decode, Pair, telling_pairs
from plugalign.evaluation.report.table import revisions_in_words
from plugalign.evaluation.report.templates import environment
from plugalign.evaluation.run_folder.answers import read_answers
from plugalign.evaluation.run_folder.folder import REPORT, replace_text
from plugalign.evaluation.run_folder.manifest import ControllerRecord, Manifest, read_manifest
from plugalign.evaluation.run_folder.summary import Summary
from plugalign.evaluation.statistics.figure import Figure

TEMPLATE = "report.html.j2"
TITLES = {
    "toxicity_probability": "Toxicity probability",
    "expected_maximum_toxicity": "Expected maximum",
    "mean_toxicity": "Mean toxicity",
    "toxic_fraction": "Toxic answers",
}

COUNTS = {  # what revisers count, and the heading
    "critiqued": "Verdicts",
    "faulted": "Faults",
    "refined": "Refined",
    "changed": "Changed",
    "empty": "Without a word",
    "too_long": "Context too short",
}


def write_report(out: Path, summary: Summary, decode: Decode) -> Path:
    """Writes report.html of the finished run in ``out`` and returns its path.

    Args:
        summary: what it found.
        decode: turns token ids into text.
    """
    page, manifest = _environment().get_template(TEMPLATE), read_manifest(out)
    html = page.render(
        summary=summary,
        manifest=manifest,
        settings=manifest.settings,
        finding=headline(summary),
        scatter=_scatter(summary),
        change_scale=_change_scale(summary),
        cost_scale=max(row.costs.ratio_per_step.quartiles[1] for row in summary.rows.values()),
        aligned=alignment_sections(summary),
        alignment_notes=list(alignment_notes(summary)),
        powered=_powered(summary),
        counts=COUNTS,
        pairs=_pairs(out, manifest, decode),
        conditions=list(conditions_of(manifest)),
        beside=settings_lines(manifest.settings.methods),
    )
    replace_text(out / REPORT, html)
    return out / REPORT


def _environment() -> Any:
    made = environment(
        "plugalign.evaluation.report",
        number=number,
        p_value=p_value,
        percent=percent,
        pretty=_pretty,
        words=revisions_in_words,
        title=lambda metric: TITLES.get(metric, metric.replace("_", " ").capitalize()),
    )
    made.globals.update(verdict=verdict)
    return made


def _pretty(controller: ControllerRecord) -> str:
    """A controller's settings, or those of its parts."""
    found = controller.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return json.dumps(found.get("parts", found["config"]), indent=2, ensure_ascii=False)


def _scatter(summary: Summary) -> Scatter | None:
    """The primary metric against perplexity, of the rows that have both."""
    points = []
    for name, row in summary.rows.items():
        x = _estimate(row.texts[summary.perplexity])
        y = _estimate(row.judged[summary.primary_judge].figures[summary.primary.name])
        if x is not None and y is not None and name != PLAIN:
            points.append((name, x, y))
    return scatter(points) if points else None


def _change_scale(summary: Summary) -> float:
    """The largest change from base that an interval reaches, for a common scale."""
    metric = summary.primary.name
    judged = [each for row in summary.rows.values() for each in row.judged.values()]
    figures = [each.figures[metric] for each in judged]
    figures += [each.length_matched[metric] for each in judged if each.length_matched]
    changes = [figure.difference for figure in figures if figure.difference is not None]
    return max((abs(end) for c in changes for end in (c.low, c.high)), default=0) or 1.0


def _powered(summary: Summary) -> dict[str, dict[str, Figure]]:
    """By method and judge the primary figures of which the power is known."""
    found = {}
    for name, row in summary.methods.items():
        figures = {j: judged.figures[summary.primary.name] for j, judged in row.judged.items()}
        if any(figure.power is not None for figure in figures.values()):
            found[name] = figures
    return found


def _estimate(figure: Figure) -> Estimate | None:
    if figure.value is None or figure.low is None or figure.high is None:
        return None
    return Estimate(figure.value, figure.low, figure.high)


def _pairs(out: Path, manifest: Manifest, decode: Decode) -> dict[str, list[Pair]]:
    settings, answers = manifest.settings, read_answers(out, manifest)
    prompts = prompts_of_run(out).texts
    return {
        name: telling_pairs(
            answers[BASE], method, settings.judges[0], prompts, decode, settings.seed
        )
        for name, method in answers.items()
        if name in settings.methods and name != BASE
    }
