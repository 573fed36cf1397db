"""The report: one self-contained HTML file, written from a run's own files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plugalign.evaluation.charts import Estimate, Scatter, scatter
from plugalign.evaluation.pairs import Decode, Pair, telling_pairs
from plugalign.evaluation.records import (
    MANIFEST,
    PROMPTS,
    REPORT,
    SUMMARY,
    read_json,
    read_whole,
    replace_text,
)
from plugalign.evaluation.summary import BASE, read_answers
from plugalign.evaluation.table import SIGNIFICANT, number, p_value

TEMPLATE = "report.html.j2"
TOXICITY = "toxicity_probability"


def write_report(out: Path, decode: Decode) -> Path:
    """Writes report.html of the finished run in ``out`` and returns its path.

    Args:
        decode: turns token ids into text.

    Raises:
        ImportError: if jinja2 is missing; names the extra.
    """
    environment = _environment()
    manifest, summary = read_json(out / MANIFEST), read_json(out / SUMMARY)
    html = environment.get_template(TEMPLATE).render(
        summary=summary,
        manifest=manifest,
        settings=manifest["settings"],
        methods=summary["methods"],
        base=summary["methods"][BASE],
        finding=headline(summary),
        scatter=_scatter(summary),
        change_scale=_change_scale(summary),
        cost_scale=max(m["ratio_to_plain"]["quartiles"][1] for m in summary["methods"].values()),
        pairs=_pairs(out, manifest, decode),
        other_judges=[j for j in summary["judges"] if j != summary["primary_judge"]],
        conditions=list(_conditions(manifest)),
        controllers={n: c for n, c in manifest["settings"]["methods"].items() if c},
    )
    replace_text(out / REPORT, html)
    return out / REPORT


def headline(summary: Mapping[str, Any]) -> str:
    """What was found, in one or two plain sentences."""
    methods = {n: m for n, m in summary["methods"].items() if "difference" in m[TOXICITY]}
    sure = {n: m for n, m in methods.items() if m[TOXICITY]["p_adjusted"] < SIGNIFICANT}
    better = {n: m for n, m in sure.items() if m[TOXICITY]["difference"]["value"] < 0}
    if not methods:
        return "Only the plain model was run, so there is nothing to compare it with."
    if not better:
        return (
            "No method lowered the toxicity probability by more than these prompts' chance "
            "differences would explain."
        )
    best = min(better, key=lambda n: _rank(better[n]))
    base, found = summary["methods"][BASE], better[best]
    before, after = (f"{m[TOXICITY]['value']:.0%}" for m in (base, found))
    sentence = (
        f"{best} lowers the share of prompts with a toxic answer from {before} to {after}, at "
        f"{number(found['ratio_to_plain']['value'])} times the time per token"
    )
    if found["perplexity"]["value"] is None or base["perplexity"]["value"] is None:
        return sentence + "."
    change = found["perplexity"]["value"] / base["perplexity"]["value"] - 1
    moved = f"{abs(change):.0%} {'higher' if change > 0 else 'lower'}"
    return f"{sentence} and a perplexity {moved}."


def _rank(method: Mapping[str, Any]) -> tuple[float, float]:
    """Less toxic first; among equals the cheaper one."""
    return method[TOXICITY]["value"], method["ratio_to_plain"]["value"]


def _environment() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("the report needs jinja2: pip install 'plugalign[report]'") from error
    environment = Environment(
        loader=PackageLoader("plugalign.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, p_value=p_value, json=_pretty)
    return environment


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _scatter(summary: Mapping[str, Any]) -> Scatter | None:
    figures = [
        (name, _estimate(method["perplexity"]), _estimate(method[TOXICITY]))
        for name, method in summary["methods"].items()
        if None not in (method["perplexity"]["value"], method[TOXICITY]["value"])
    ]
    return scatter(figures) if figures else None


def _change_scale(summary: Mapping[str, Any]) -> float:
    """The largest change from base that an interval reaches, for a common scale."""
    changes = [m[TOXICITY].get("difference") for m in summary["methods"].values()]
    return max((abs(c[end]) for c in changes if c for end in ("low", "high")), default=0) or 1.0


def _estimate(figures: Mapping[str, Any]) -> Estimate:
    return Estimate(figures["value"], figures["low"], figures["high"])


def _pairs(out: Path, manifest: Mapping[str, Any], decode: Decode) -> dict[str, list[Pair]]:
    settings = manifest["settings"]
    answers = read_answers(out, list(settings["methods"]))
    prompts = [row["text"] for row in read_whole(out / PROMPTS)]
    judge, seed = settings["judges"][0], settings["seed"]
    return {
        name: telling_pairs(answers[BASE], method, judge, prompts, decode, seed)
        for name, method in answers.items()
        if name != BASE
    }


def _conditions(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The manifest in rows for a reader."""
    settings, data, where = manifest["settings"], manifest["data"], manifest["conditions"]
    model, scorer = settings["model"], settings["scorer"]
    yield (
        "Model",
        f"{model['name']} ({model['class']}, {model['dtype']}, weights {model['weights']})",
    )
    source = "of the pocket world" if manifest["pocket"] else "given as texts"
    count, source = settings["prompts"]["count"], data["path"] or source
    yield "Prompts", f"{count} ({source}), SHA-256 {settings['prompts']['sha256'][:16]}"
    yield "Judges", ", ".join(settings["judges"])
    yield "Perplexity under", "the base without steering" if scorer["is_base"] else scorer["name"]
    yield (
        "Sampling",
        (
            f"{settings['samples']} samples of {settings['max_new_tokens']} tokens, top-p "
            f"{settings['top_p']:g}, temperature {settings['temperature']:g}, seed "
            f"{settings['seed']}, batches of {settings['batch_size']}"
        ),
    )
    yield "Versions", ", ".join(f"{k} {v}" for k, v in manifest["versions"].items())
    yield (
        "Measured on",
        (
            f"{where['processor']} ({where['device']}), {where['threads']} threads, "
            f"Python {where['python']}, {where['platform']}"
        ),
    )
