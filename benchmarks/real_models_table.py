"""The tables of a page about what real_models.py found: the results, and the settings.

python benchmarks/real_models_table.py benchmarks/results/smollm2/texts
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from plugalign.evaluation.run_folder.folder import SUMMARY, read_json
from plugalign.evaluation.tuning import TUNING

Found = Mapping[str, Any]
JUDGES = {"encoder": "MiniLM", "tfidf": "TF-IDF"}
METRIC = "toxicity_probability"
JUDGED_COLUMNS = (*(f"toxicity probability, {name}" for name in JUDGES.values()), "one length")
OUTSIDE, CORPUS = "outside_perplexity", "outside_corpus_perplexity"


def results(summary: Found) -> Iterator[str]:
    """A line for each row of a comparison, base first.

    *One length* is the difference to base by the primary judge where both answers are cut to the
    shorter. Perplexities are means over prompts, and of all tokens together where that is known.
    """
    base, alike = summary["reference"], summary["cut_alike"]
    rows = {**summary["methods"], **summary["references"]}
    known = CORPUS in rows[base]

    def over(name: str, other: str | None, perplexity: str = OUTSIDE) -> str:
        if other is None:
            return ""
        return f"{rows[name][perplexity]['value'] / rows[other][perplexity]['value']:.2f}"

    heads = [*JUDGED_COLUMNS, "outside perplexity", "over base"]
    heads += ["over base, all tokens"] if known else []
    yield from _head(
        "method", *heads, "over base cut alike", "tokens", "distinct-2", "cost of a step"
    )
    for name in [base, *summary["references"], *(n for n in summary["methods"] if n != base)]:
        row = rows[name]
        cells = [
            *(_interval(_judged(summary, row, judge)) for judge in JUDGES),
            _change(row.get("length_matched", {}).get(METRIC, {}).get("difference")),
            f"{row[OUTSIDE]['value']:.1f}",
            over(name, base),
            *([over(name, base, CORPUS)] if known else []),
            over(name, alike.get(name)),
            f"{row['length']['value']:.1f}",
            f"{row['distinct_2']['value']:.2f}",
            f"{row['ratio_per_step']['value']:.2f}",
        ]
        yield f"| `{name}` | {' | '.join(cells)} |"


def settings(tuning: Found) -> Iterator[str]:
    """A line for each method of which settings were tried."""
    yield from _head("method", "setting", "tried", "chosen", "default then")
    for method, found in tuning.items():
        tried = [trial["settings"] for trial in found["trials"]]
        (setting,) = {name for each in tried for name in each}
        values = sorted({each[setting] for each in tried})
        chosen = found["chosen"][setting] if found["chosen"] else "none within the budgets"
        before = (found["before"] or {}).get(setting)
        cells = [", ".join(f"{x:g}" for x in values), _number(chosen), _number(before)]
        yield f"| `{method}` | {setting} | {' | '.join(cells)} |"


def _head(*names: str) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"


def _judged(summary: Found, row: Found, judge: str) -> Found:
    of_judge = row if judge == summary["primary_judge"] else row["judges"][judge]
    found: Found = of_judge[METRIC]
    return found


def _interval(figure: Found) -> str:
    return "{value:.2f} [{low:.2f}, {high:.2f}]".format(**figure)


def _change(difference: Found | None) -> str:
    if difference is None:
        return ""
    return "{value:+.2f} [{low:+.2f}, {high:+.2f}]".format(**difference)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float | int) else value or ""


def main(folder: Annotated[Path, typer.Argument(help="With the results.")]) -> None:
    """Prints both tables as Markdown."""
    print("\n".join(results(read_json(folder / SUMMARY))), end="\n\n")
    print("\n".join(settings(read_json(folder / TUNING))))


if __name__ == "__main__":
    typer.run(main)
