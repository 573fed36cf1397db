"""Results on real text by one command: fits every method, fits judges, compares, writes a folder.

The data folder holds, as JSON lines::

    toxicity/paradetox.jsonl          toxic, neutral        what guides learn from
    toxicity/davidson_tweets.jsonl    text, label           what guides learn from
    toxicity/jigsaw.jsonl             text, label           what judges learn from, and no guide
    prompts/rtp_toxic.jsonl           text                  prompts
    toxicity/scored_generations.jsonl continuation, perspective_toxicity    whether judges agree

Every method is fitted with its defaults, and no setting is chosen here. The defaults were tried on
some of the first prompts of the file, so the prompts are taken from behind them. What takes long is
kept in the work folder (fits, judges, the run with its texts and its report): the same command goes
on where it was killed. The results have no texts, since many offend.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from plugalign.algebra.controller import Controller
from plugalign.catalogue import ALONE, FITTERS
from plugalign.controllers.dexperts import DExperts
from plugalign.evaluation.comparison.compare import Comparison, compare
from plugalign.evaluation.comparison.prompts import load_prompts
from plugalign.evaluation.report.table import number
from plugalign.evaluation.run_folder.folder import MANIFEST, SUMMARY, read_json, write_json
from plugalign.evaluation.run_folder.summary import Row, Summary
from plugalign.evaluation.statistics.figure import Figure
from plugalign.files.pretrained import loading
from plugalign.fitting import workspace
from plugalign.fitting.command import run_fit
from plugalign.fitting.data import DESIRED, UNDESIRED, Labelled, load_data
from plugalign.fitting.judge import REPORT, fit_judge
from plugalign.fitting.progress import say
from plugalign.loading import load_model

GUIDES = ("toxicity/paradetox.jsonl", "toxicity/davidson_tweets.jsonl")
JUDGED = "toxicity/jigsaw.jsonl"
PROMPTS, REFERENCES = "prompts/rtp_toxic.jsonl", "toxicity/scored_generations.jsonl"
ANTI = "dexperts_anti"  # the anti-expert of dexperts alone
RUN = "run"
COLUMNS = ("toxicity_probability", "mean_toxicity")


def fit_methods(
    model: Any, tokenizer: Any, data: Labelled, work: Path, minutes: float
) -> dict[str, Controller]:
    """Every method that learns, fitted with its defaults or read from ``work``.

    Raises:
        ValueError: if a controller there was fitted for another model or on other texts.
    """
    controllers = {}
    for method in FITTERS:
        out = work / "fits" / method
        if (out / workspace.RECORD).is_file():
            _check_fitted(out, workspace.record(method, model, tokenizer, data, {}))
            with loading("the controller", out):
                controllers[method] = Controller.from_pretrained(str(out))
            continue
        say(f"fitting {method}")
        controllers[method] = run_fit(method, model, tokenizer, data, out, minutes=minutes)
    anti = controllers["dexperts"]
    assert isinstance(anti, DExperts)
    controllers[ANTI] = DExperts(antiexpert=anti.antiexpert, alpha=anti.alpha, top_p=anti.support.p)
    return controllers


def _check_fitted(out: Path, wanted: dict[str, Any]) -> None:
    found = read_json(out / workspace.RECORD)
    for part in ("method", "model", "data"):
        if found[part] != wanted[part]:
            was, now = found[part], wanted[part]
            raise ValueError(f"{out}: its {part} was {was} and is {now}; remove it")


def load_guides(data: Path, limit: int | None) -> Labelled:
    """What guides learn from, with two labels only: nullspace takes each label for a class."""
    paths = [data / path for path in GUIDES]
    good, bad = load_data(paths, desired="neutral", undesired="toxic", limit=limit).binary()
    labels = (DESIRED,) * len(good) + (UNDESIRED,) * len(bad)
    return Labelled((*good, *bad), labels)


def fit_judges(data: Path, work: Path, encoder: str | None) -> dict[str, Path]:
    """TF-IDF, and an encoder if one is given, fitted on other texts than the guides."""
    judges: dict[str, tuple[Path, str | None]] = {"tfidf": (work / "judges" / "tfidf", None)}
    if encoder is not None:  # the first is the primary judge
        judges = {"encoder": (work / "judges" / "encoder", encoder), **judges}
    for name, (out, tuned) in judges.items():
        if not (out / REPORT).is_file():
            say(f"fitting the judge {name}")
            out.parent.mkdir(parents=True, exist_ok=True)
            say(fit_judge(load_data(data / JUDGED), out, encoder=tuned).describe())
    return {name: out for name, (out, _) in judges.items()}


def held_out_prompts(data: Path, work: Path, skip: int, count: int) -> Path:
    """A file of the prompts behind the first ``skip``.

    Raises:
        ValueError: if there are too few.
    """
    texts = load_prompts(data / PROMPTS).texts[skip : skip + count]
    if len(texts) < count:
        raise ValueError(f"{data / PROMPTS} has {len(texts)} prompts behind {skip}, not {count}")
    path = work / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


def write_results(comparison: Comparison, work: Path, out: Path) -> None:
    """summary.json, manifest.json, fits.json, judges.json and table.md, all without texts."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SUMMARY, comparison.summary)
    write_json(out / MANIFEST, _shortened(read_json(comparison.out / MANIFEST)))
    fits = {m: read_json(work / "fits" / m / workspace.RECORD) for m in FITTERS}
    write_json(out / "fits.json", fits)
    judges = comparison.results.judges
    write_json(out / "judges.json", {j: read_json(work / "judges" / j / REPORT) for j in judges})
    (out / "table.md").write_text("\n".join(table(comparison.results)) + "\n", "utf-8")


def _shortened(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with names in the place of paths."""
    data = manifest["data"]
    judges = {name: Path(path).name for name, path in data["judges"].items()}
    return {**manifest, "data": {**data, "path": Path(data["path"]).name, "judges": judges}}


def table(summary: Summary) -> Iterable[str]:
    """The main figures in Markdown, under every judge."""
    judged = [f"{name.replace('_', ' ')}, {judge}" for judge in summary.judges for name in COLUMNS]
    heads = ["method", *judged, "tokens", "empty", "perplexity", "distinct-2", "cost of a step"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for name, row in summary.rows.items():
        yield f"| `{name}` | {' | '.join(_cells(summary, row))} |"


def _cells(summary: Summary, row: Row) -> Iterable[str]:
    for judge in summary.judges:
        yield from (_interval(row.judged[judge].figures[name], "share") for name in COLUMNS)
    yield number(row.texts["length"].value)
    yield number(row.texts["empty"].value, "share")
    yield _interval(row.texts["perplexity"], "")
    yield number(row.texts["distinct_2"].value, "share")
    yield number(row.costs.ratio_per_step.value)


def _interval(figure: Figure, kind: str) -> str:
    value, low, high = (number(x, kind) for x in (figure.value, figure.low, figure.high))
    return f"{value} [{low}, {high}]"


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder of the model to steer.")],
    data: Annotated[Path, typer.Option(help="Folder with the data, see the file's docstring.")],
    work: Annotated[Path, typer.Option(help="Folder for fits, judges and the run; kept.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    encoder: Annotated[str | None, typer.Option(help="An encoder to tune as first judge.")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    skip: Annotated[int, typer.Option(min=0, help="Prompts that were used before.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each prompt.")] = 10,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 100,
    minutes: Annotated[float, typer.Option(help="What a fit may take.")] = 10,
    limit: Annotated[int | None, typer.Option(help="At most so many texts for guides.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Makes the results; the same command goes on where it was killed."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    chosen = held_out_prompts(data, work, skip, prompts)
    judges = fit_judges(data, work, encoder)
    texts = load_guides(data, limit)
    base, tokenizer = load_model(model)
    controllers = fit_methods(base, tokenizer, texts, work, minutes)
    comparison = compare(
        base,
        tokenizer,
        methods=[*controllers, *ALONE],
        controllers=controllers,
        prompts=chosen,
        judges=judges,
        agreement=data / REFERENCES,
        samples=samples,
        max_new_tokens=new_tokens,
        batch_size=batch_size,
        out=work / RUN,
        resume=(work / RUN / MANIFEST).is_file(),
    )
    write_results(comparison, work, out)
    say(f"the results are in {out}, texts and report in {work / RUN}")


if __name__ == "__main__":
    typer.run(main)
