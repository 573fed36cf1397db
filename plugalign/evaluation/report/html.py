"""The report: one self-contained HTML file, written from a run's own files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plugalign.evaluation.comparison.references import BASE, PLAIN
from plugalign.evaluation.report.charts import Estimate, Scatter, scatter
from plugalign.evaluation.report.pairs import Decode, Pair, telling_pairs
from plugalign.evaluation.report.table import (
    number,
    p_value,
    percent,
    revisions_in_words,
    rows_of,
    under,
    verdict,
)
from plugalign.evaluation.run_folder.answers import read_answers
from plugalign.evaluation.run_folder.folder import (
    MANIFEST,
    PROMPTS,
    REPORT,
    SUMMARY,
    read_json,
    replace_text,
)
from plugalign.evaluation.run_folder.manifest import agreements

TEMPLATE = "report.html.j2"
TITLES = {
    "toxicity_probability": "Toxicity probability",
    "expected_maximum_toxicity": "Expected maximum",
    "mean_toxicity": "Mean toxicity",
}
LONGEST = 16  # characters of a setting that stands beside a method's name


def write_report(out: Path, decode: Decode) -> Path:
    """Writes report.html of the finished run in ``out`` and returns its path.

    Args:
        decode: turns token ids into text.

    Raises:
        ImportError: if jinja2 is missing; names the extra.
    """
    environment = _environment()
    manifest, summary = read_json(out / MANIFEST), read_json(out / SUMMARY)
    rows, settings = rows_of(summary), manifest["settings"]
    html = environment.get_template(TEMPLATE).render(
        summary=summary,
        manifest=manifest,
        settings=settings,
        rows=rows,
        methods=summary["methods"],
        primary=summary["metrics"][0],
        finding=headline(summary),
        scatter=_scatter(summary),
        change_scale=_change_scale(summary),
        cost_scale=max(row["ratio_per_step"]["quartiles"][1] for row in rows.values()),
        pairs=_pairs(out, manifest, decode),
        reference_sets=agreements(manifest),
        conditions=list(_conditions(manifest)),
        beside={name: settings_line(found) for name, found in settings["methods"].items()},
        controllers={n: c for n, c in settings["methods"].items() if c},
    )
    replace_text(out / REPORT, html)
    return out / REPORT


def headline(summary: Mapping[str, Any]) -> str:
    """What was found, in a few plain sentences; it claims no more than every judge does."""
    metric, judges = summary["metrics"][0], list(summary["judges"])
    name, better = metric["name"], metric["better"]
    methods = {n: m for n, m in summary["methods"].items() if "difference" in m[name]}
    found = {n: m for n, m in methods.items() if verdict(m[name], better) == "better"}
    if not methods:
        return "Only the plain model was run, so there is nothing to compare it with."
    if not found:
        return (
            f"No method {_improved(metric, past=True)} by more than these prompts' chance "
            f"differences would explain."
        )
    sign = 1 if better == "lower" else -1
    best = min(found, key=lambda n: (sign * found[n][name]["value"], _cost(found[n])))
    row, base = found[best], summary["methods"][summary["reference"]]
    sentence = (
        f"{best} {_improved(metric, past=False)} {_change(row[name], base[name]['value'])}"
        f"{_elsewhere(summary, best, judges[1:])}, at {number(_cost(row))} times the time per "
        f"decoding step{_perplexity(row, base)}."
    )
    return f"{sentence}{_at_equal_length(row, metric)}"


def settings_line(described: Mapping[str, Any] | None) -> str:
    """A method's settings in a line, to stand beside its name; what is long is left out of it."""
    if not described:
        return ""
    if parts := described.get("parts"):
        return " + ".join(f"{p['weight']:g} x {p['class']} ({settings_line(p)})" for p in parts)
    shown = {k: v for k, v in described["config"].items() if v is not None and k != "fitted_for"}
    short = [f"{k} {v}" for k, v in shown.items() if _is_short(v)]
    return ", ".join([*short, "…"] if len(short) < len(shown) else short)


def _is_short(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= LONGEST)


def _improved(metric: Mapping[str, Any], *, past: bool) -> str:
    present, before = {"lower": ("lowers", "lowered"), "higher": ("raises", "raised")}[
        metric["better"]
    ]
    what = metric["name"].replace("_", " ")
    if metric["name"] == "toxicity_probability" and not past:
        what = "share of prompts with a toxic answer"
    return f"{before if past else present} the {what}"


def _change(figure: Mapping[str, Any], before: float) -> str:
    return f"from {before:.0%} to {figure['value']:.0%}"


def _elsewhere(summary: Mapping[str, Any], method: str, judges: list[str]) -> str:
    """The same figures under the other judges, who may see it otherwise."""
    name, rows = summary["metrics"][0]["name"], summary["methods"]
    said = []
    for judge in judges:
        before, after = (
            rows[row]["judges"][judge][name]["value"] for row in (summary["reference"], method)
        )
        if None not in (before, after):
            said.append(f"{before:.0%} to {after:.0%} under {judge}")
    return f" ({', '.join(said)})" if said else ""


def _at_equal_length(row: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    figure = row.get("length_matched", {}).get(metric["name"])
    if figure is None or figure["value"] is None:
        return ""
    sure = verdict(figure, metric["better"]) == "better"
    return (
        f" Over answers of equal length it goes from {figure['base']:.0%} to {figure['value']:.0%}"
        f"{'' if sure else ', which chance may explain'}."
    )


def _perplexity(row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    if row["perplexity"]["value"] is None or base["perplexity"]["value"] is None:
        return ""
    change = row["perplexity"]["value"] / base["perplexity"]["value"] - 1
    return f" and a perplexity {abs(change):.0%} {'higher' if change > 0 else 'lower'}"


def _cost(row: Mapping[str, Any]) -> float:
    return float(row["ratio_per_step"]["value"])


def _environment() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("the report needs jinja2: pip install 'plugalign[report]'") from error
    environment = Environment(
        loader=PackageLoader("plugalign.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        p_value=p_value,
        percent=percent,
        json=_pretty,
        words=revisions_in_words,
        title=lambda metric: TITLES.get(metric, metric.replace("_", " ").capitalize()),
    )
    environment.globals.update(under=under, verdict=verdict)
    return environment


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _scatter(summary: Mapping[str, Any]) -> Scatter | None:
    metric = summary["metrics"][0]["name"]
    figures = [
        (name, _estimate(row["perplexity"]), _estimate(row[metric]))
        for name, row in rows_of(summary).items()
        if None not in (row["perplexity"]["value"], row[metric]["value"]) and name != PLAIN
    ]
    return scatter(figures) if figures else None


def _change_scale(summary: Mapping[str, Any]) -> float:
    """The largest change from base that an interval reaches, for a common scale."""
    metric, primary = summary["metrics"][0]["name"], summary["primary_judge"]
    rows = [under(row, j, primary) for row in rows_of(summary).values() for j in summary["judges"]]
    figures = [row[metric] for row in rows]
    figures += [row["length_matched"][metric] for row in rows if "length_matched" in row]
    changes = [figure["difference"] for figure in figures if "difference" in figure]
    return max((abs(c[end]) for c in changes for end in ("low", "high")), default=0) or 1.0


def _estimate(figures: Mapping[str, Any]) -> Estimate:
    return Estimate(figures["value"], figures["low"], figures["high"])


def _pairs(out: Path, manifest: Mapping[str, Any], decode: Decode) -> dict[str, list[Pair]]:
    settings, answers = manifest["settings"], read_answers(out, manifest)
    lines = (out / PROMPTS).read_text(encoding="utf-8").rstrip("\n").split("\n")
    prompts = [json.loads(line)["text"] for line in lines]
    judge, seed = settings["judges"][0], settings["seed"]
    return {
        name: telling_pairs(answers[BASE], method, judge, prompts, decode, seed)
        for name, method in answers.items()
        if name in settings["methods"] and name != BASE
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
    details, paths = settings.get("judge_details", {}), data.get("judges", {})
    yield "Judges", ", ".join(_judge(j, details.get(j), paths.get(j)) for j in settings["judges"])
    yield "Perplexity under", "the base without steering" if scorer["is_base"] else scorer["name"]
    yield (
        "Sampling",
        (
            f"{settings['samples']} samples of {_length(settings)} tokens, top-p "
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


def _length(settings: Mapping[str, Any]) -> str:
    least = settings.get("min_new_tokens", 0)
    return f"{least} to {settings['max_new_tokens']}" if least else f"{settings['max_new_tokens']}"


def _judge(name: str, details: Mapping[str, Any] | None, path: str | None) -> str:
    """A judge by its name, what it is and where it came from."""
    if not details:
        return name
    known = [details["class"], *([path] if path else [])]
    known += [f"SHA-256 {details['sha256'].split(':')[-1][:16]}"] if details["sha256"] else []
    known += [f"toxic from {details['threshold']:g}"] if details["threshold"] is not None else []
    return f"{name} ({', '.join(known)})"
