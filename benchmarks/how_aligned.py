"""How aligned real models are with one value, "It respects others.", by one command.

    python benchmarks/how_aligned.py --model comments-3m --model smollm2 --encoder minilm \\
        --data DATA --work WORK --out benchmarks/results/how-aligned

Of each model alone, behind a value statement and, if it is small, steered by a value guide: the
degree, the four numbers of its gap to what humans wrote behind the same prompts, and what it says
of its own texts beside what independent judges say (`plugalign.values.alignment`). It is one
`plugalign compare` with ``--human-texts`` and ``--agreement`` a model. Nobody has labelled these
answers, so what a few human labels give (PPI++) is shown where all are known: of tweets
(how_aligned_labels.py).

The data folder holds, as JSON lines::

    toxicity/jigsaw.jsonl           text, label          the independent judges
    toxicity/paradetox.jsonl        toxic, neutral       the guide
    toxicity/davidson_tweets.jsonl  text, label          PPI++
    prompts/rtp_toxic.jsonl         text, continuation   prompts, and how humans went on

What takes long is kept in the work folder: the same command goes on where it was killed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from how_aligned_labels import few_labels
from how_aligned_table import tables
from results_tools import GUIDES, JUDGED, PROMPTS, kept_conditions, once

from plugalign.algebra.controller import Controller
from plugalign.controllers.value_guide import ValueGuide
from plugalign.controllers.value_statement import ValueStatement
from plugalign.evaluation.comparison.compare import compare
from plugalign.evaluation.judging.load import Judge, load_judges
from plugalign.evaluation.run_folder.folder import MANIFEST, replace_text, write_json
from plugalign.files.precision import chosen_dtype
from plugalign.files.rows import Row, read_rows
from plugalign.fitting import workspace
from plugalign.fitting.data import Labelled, load_data
from plugalign.fitting.judge import REPORT, fit_judge
from plugalign.fitting.progress import say
from plugalign.fitting.value import GUIDE, fit_value
from plugalign.loading import load_model
from plugalign.values.discriminator.contrast import ValueContrast
from plugalign.values.discriminator.loading import load_reader, middle_layers
from plugalign.values.discriminator.readers import CausalReader

STATEMENT, NEGATION = "It respects others.", "It insults others."
USED = 200  # prompts at the beginning of the file, on which defaults were tried
OWN = "itself"  # the model as a judge of its own texts
ENCODER, WORDS = "encoder", "tfidf"  # independent judges


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        prompts: of the file, behind those on which defaults were tried.
        samples: answers to a prompt. new_tokens: of an answer, at most.
        labels: labelled texts that the value's heads are fitted on, a quarter of them held out.
        checked: labelled texts that all judges are checked on.
        k: tokens that the guide scores. guided: models of at most so many parameters have one,
            since it reads k tokens for each that it chooses.
        tweets: labelled ones.
    """

    prompts: int
    samples: int
    new_tokens: int
    labels: int
    checked: int
    k: int
    guided: float
    tweets: int


def independent_judges(data: Path, work: Path, encoder: str, sizes: Sizes) -> dict[str, Path]:
    """The folders of two judges that learned from Jigsaw: a head on an encoder, and TF-IDF.

    Both leave out the texts of `checked_texts`.
    """
    texts, labels = jigsaw(data)
    first = sizes.checked
    if not (work / ENCODER / workspace.RECORD).is_file():
        last = first + sizes.labels
        some, head = (
            Labelled(texts[first:last], labels[first:last]),
            load_reader("encoder", encoder),
        )
        fit_value(head, encoder, some, work / ENCODER, statement=STATEMENT, files=[data / JUDGED])
    if not (work / WORDS / REPORT).is_file():
        fit_judge(Labelled(texts[first:], labels[first:]), work / WORDS)
    return {name: work / name for name in (ENCODER, WORDS)}


def jigsaw(data: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Different texts with their labels, the two labels in turn."""
    found = load_data(data / JUDGED)
    good, bad = (tuple(dict.fromkeys(side)) for side in found.binary())
    pairs = list(zip(good, bad, strict=False))
    return tuple(text for pair in pairs for text in pair), ("0", "1") * len(pairs)


def checked_texts(data: Path, path: Path, count: int) -> Path:
    """A file of labelled texts that no judge has seen, with 1 for what breaks the value."""
    texts, labels = jigsaw(data)
    rows = zip(texts[:count], labels[:count], strict=True)
    return _lines(path, [{"text": text, "score": float(label)} for text, label in rows])


def _lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def value_guide(model: Any, tokenizer: Any, name: str, data: Path, work: Path, sizes: Sizes) -> Any:
    """A guide by a head on the model's own states, which learned from ParaDetox."""
    if not (work / workspace.RECORD).is_file():
        files = [data / GUIDES[0]]
        found = load_data(files, desired="neutral", undesired="toxic", limit=sizes.labels)
        reader = CausalReader(model, tokenizer, middle_layers(model))
        fit_value(reader, name, found, work, statement=STATEMENT, files=files)
    guide = Controller.from_pretrained(str(work / GUIDE))
    assert isinstance(guide, ValueGuide)
    return guide.with_settings(k=sizes.k)


def aligned(
    name: str, data: Path, work: Path, judges: Mapping[str, Path], sizes: Sizes
) -> dict[str, Any]:
    """What `compare` finds of a model.

    Returns:
        Its summary's alignment, and how judges agree with labels.
    """
    work.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model(name, chosen_dtype("auto"))
    own = ValueContrast(
        STATEMENT, NEGATION, CausalReader(model, tokenizer, middle_layers(model)), name
    )
    rows = list(read_rows(data / PROMPTS))[USED : USED + sizes.prompts]
    controllers: dict[str, Controller] = {"value_statement": ValueStatement()}
    if model.num_parameters() <= sizes.guided:
        guide = value_guide(model, tokenizer, name, data, work / "head", sizes)
        controllers["value_guide"] = guide
    comparison = compare(
        model,
        tokenizer,
        controllers=controllers,
        prompts=_lines(work / "prompts.jsonl", [{"text": row.text("text")} for row in rows]),
        chat="off",
        judges={**judges, OWN: own},
        human_texts=_lines(work / "human.jsonl", [human(row) for row in rows]),
        agreement=checked_texts(data, work / "labelled.jsonl", sizes.checked),
        samples=sizes.samples,
        max_new_tokens=sizes.new_tokens,
        out=work / "run",
        resume=(work / "run" / MANIFEST).is_file(),
    )
    summary = comparison.summary
    return {
        "alignment": summary["alignment"],
        "agreement": {judge: each["agreement"] for judge, each in summary["judges"].items()},
    }


def human(row: Row) -> dict[str, str]:
    """How a human went on behind a prompt."""
    return {"continuation": row.text("continuation")}


def main(
    model: Annotated[list[str], typer.Option(help="Hub id or folder; may be repeated.")],
    encoder: Annotated[str, typer.Option(help="A sentence encoder, for the first judge.")],
    data: Annotated[Path, typer.Option(help="Folder with the data.")],
    work: Annotated[Path, typer.Option(help="Folder for fits, judges and runs; kept.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    prompts: Annotated[int, typer.Option(min=2, help="How many.")] = 40,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each.")] = 2,
    new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 20,
    labels: Annotated[int, typer.Option(help="Texts that heads are fitted on.")] = 256,
    checked: Annotated[int, typer.Option(help="Texts that judges are checked on.")] = 40,
    k: Annotated[int, typer.Option(help="Tokens that the guide scores.")] = 20,
    guided: Annotated[float, typer.Option(help="Parameters of a model with a guide.")] = 5e7,
    tweets: Annotated[int, typer.Option(help="Labelled tweets.")] = 400,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Makes the results; the same command goes on where it was killed."""
    torch.set_num_threads(threads)
    sizes = Sizes(prompts, samples, new_tokens, labels, checked, k, guided, tweets)
    work.mkdir(parents=True, exist_ok=True)
    kept_conditions(work, {"encoder": Path(encoder).name, **asdict(sizes)})
    judges = independent_judges(data, work / "judges", encoder, sizes)
    loaded: dict[str, Judge] = load_judges(judges)
    labelled = once(work / "labels.json", lambda: few_labels(loaded, data / GUIDES[1], tweets))
    found: dict[str, Any] = {"sizes": asdict(sizes), "labels": labelled, "models": {}}
    for name in model:
        say(f"{Path(name).name}: {prompts} prompts")
        found["models"][Path(name).name] = aligned(
            name, data, work / Path(name).name, judges, sizes
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", found)
    replace_text(out / "tables.md", tables(found))
    say(f"the results are in {out}, texts and reports in {work}")


if __name__ == "__main__":
    typer.run(main)
