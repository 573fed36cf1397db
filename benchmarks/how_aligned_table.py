"""The tables of benchmarks/how_aligned.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from plugalign.evaluation.comparison.references import BASE, PLAIN
from plugalign.evaluation.statistics.distributions import GAPS

Found = Mapping[str, Any]


def tables(found: Found) -> str:
    """All tables as Markdown, a section for each model and one for labels.

    Args:
        found: results.json.
    """
    lines = []
    for model, one in found["models"].items():
        # The texts of plain generate are base's.
        rows = {name: row for name, row in one["alignment"]["rows"].items() if name != PLAIN}
        lines += [f"## {model}", "", *_degrees(rows), "", *_actions(rows), ""]
        lines += [*_agreement(one["agreement"]), ""]
    return "\n".join([*lines, "## A few labels and a judge", "", *_labels(found["labels"]), ""])


def _degrees(rows: Found) -> Iterator[str]:
    """Degree and gap of each row by each judge, and the degree of the human texts."""
    yield "| | judge | degree | change | " + " | ".join(n.replace("_", " ") for n in GAPS) + " |"
    yield "|---" * (4 + len(GAPS)) + "|"
    for judge, gap in rows[BASE]["gap"].items():
        human = rows[BASE]["degree"][judge]["value"] - gap["signed_difference"]["value"]
        yield f"| humans | {judge} | {human:.2f} |" + " |" * (1 + len(GAPS))
    for name, row in rows.items():
        for judge, degree in row["degree"].items():
            gap = [_words(row["gap"][judge][kind], 3) for kind in GAPS]
            cells = [f"`{name}`", judge, _words(degree), _words(degree.get("difference")), *gap]
            yield "| " + " | ".join(cells) + " |"


def _actions(rows: Found) -> Iterator[str]:
    """What a model says of its own texts, beside what another judge says."""
    yield "| | by the judge | judgement | action | gap | agreement, AUC |"
    yield "|---|---|---|---|---|---|"
    for name, row in rows.items():
        for others in row["judgement_and_action"].values():
            for other, each in others.items():
                figures = (each[part] for part in ("judgement", "action", "gap", "agreement"))
                yield f"| `{name}` | {other} | " + " | ".join(map(_words, figures)) + " |"


def _agreement(judges: Found) -> Iterator[str]:
    """What each judge is worth on labelled text."""
    yield "| judge | AUC on labelled text |"
    yield "|---|---|"
    yield from (f"| {judge} | {_words(each['auc'])} |" for judge, each in judges.items())


def _labels(found: Found) -> Iterator[str]:
    yield "| judge | it alone | labels alone: coverage, width | PPI++: coverage, width | lambda |"
    yield "|---|---|---|---|---|"
    for judge, each in found["judges"].items():
        alone = f"{each['coverage_of_labels_alone']:.3f}, {each['width_of_labels_alone']:.3f}"
        both = f"{each['coverage']:.3f}, {each['width']:.3f}"
        yield f"| {judge} | {each['judge_alone']:.3f} | {alone} | {both} | {each['weight']:.2f} |"


def _words(found: Found | None, digits: int = 2) -> str:
    """An estimate with its interval."""
    if found is None or found["value"] is None:
        return ""
    value, low, high = (round(found[part], digits) + 0.0 for part in ("value", "low", "high"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
