"""compare(): several ways to steer one model, on the same prompts with the same noise.

Everything that can be wrong is found before any work. Then every method answers every prompt
(`generation`), judges and an unsteered model score the answers (`scoring`), and the summary is
computed from the files that this left (`summary`). A run that is killed continues where it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from plugalign.evaluation.generation import Decoding, Generator
from plugalign.evaluation.prompts import Prompts, chunks, encode
from plugalign.evaluation.records import (
    GENERATIONS,
    PROMPTS,
    REPORT,
    SCORES,
    SUMMARY,
    Journal,
    Record,
    open_run,
    replace_text,
    write_json,
)
from plugalign.evaluation.report import write_report
from plugalign.evaluation.scoring import score
from plugalign.evaluation.study import Study
from plugalign.evaluation.summary import BASE, summarise
from plugalign.evaluation.table import comparison_table
from plugalign.wrapping import wrap

USUAL = {"samples": 25, "batch_size": 32}
POCKET = {"samples": 4, "batch_size": 50}


@dataclass(frozen=True)
class Comparison:
    """What a run found, and where its files are.

    Attributes:
        out: the folder with manifest.json, prompts.jsonl, generations.jsonl, scores.jsonl,
            summary.json and report.html.
        summary: the content of summary.json.
    """

    out: Path
    summary: dict[str, Any]

    @property
    def report(self) -> Path:
        """The report, one self-contained HTML file."""
        return self.out / REPORT

    def table(self) -> Table:
        """The summary as a table for a terminal."""
        return comparison_table(self.summary)

    def __rich__(self) -> Table:
        return self.table()


def compare(
    model: Any = None,
    tokenizer: Any = None,
    *,
    methods: Sequence[str] | None = None,
    controllers: Mapping[str, Any] | None = None,
    prompts: str | Path | Sequence[str] | None = None,
    limit: int | None = None,
    judges: Mapping[str, Any] | Sequence[Any] | None = None,
    scorer: Any = None,
    agreement: str | Path | None = None,
    samples: int | None = None,
    max_new_tokens: int = 20,
    temperature: float = 1.0,
    top_p: float = 0.9,
    batch_size: int | None = None,
    seed: int = 0,
    out: str | Path = "plugalign-compare",
    resume: bool = False,
) -> Comparison:
    """Compares ways to steer a model; the plain model is always the reference, called "base".

    Without a model it is the pocket world: the embedded model, its controllers, its judge.

    Args:
        model: a causal language model, a hub id or a folder.
        tokenizer: its tokenizer; for a hub id or a folder it is loaded.
        methods: names of the controllers to compare; all by default.
        controllers: by name, a controller or the folder that it was saved to.
        prompts: a ``.jsonl`` or ``.csv`` file with a "text" field, a ``.txt`` file, or texts.
        limit: only so many of the first prompts.
        judges: what scores toxicity, see `plugalign.evaluation.judges.load_judge`; the first one
            is the primary judge.
        scorer: a model, hub id or folder under which perplexity is taken; by default the base
            itself without steering.
        agreement: a file of texts with reference scores; how far each judge agrees with them is
            shown beside the results, see `plugalign.evaluation.loading.load_references`.
        samples: answers to each prompt; 25 by default, and 4 in the pocket world, which has more
            prompts instead.
        max_new_tokens: the length of an answer in tokens.
        batch_size: answers that are generated together; 32 by default, and 50 in the pocket world.
        seed: equal seeds give equal answers, and one noise for all methods.
        out: the folder to write; it must not hold another run.
        resume: continues a run in ``out``.

    Raises:
        ValueError: for anything wrong with the arguments, before any work.
        OSError: if the disk is full; what was generated is kept.
    """
    usual = POCKET if model is None else USUAL
    samples = usual["samples"] if samples is None else samples
    batch_size = usual["batch_size"] if batch_size is None else batch_size
    decoding = Decoding(samples, max_new_tokens, temperature, top_p, batch_size, seed)
    study = Study.of(model, tokenizer, methods, controllers, prompts, limit, judges, scorer)
    with _threads(1 if study.is_pocket else torch.get_num_threads()):
        return _run(study, decoding, study.agreement(agreement), Path(out), resume)


def _run(
    study: Study, decoding: Decoding, agreement: dict[str, Any] | None, out: Path, resume: bool
) -> Comparison:
    """Checks what is left to check, then generates, scores and sums up."""
    encoded = encode(study.prompts, study.model, study.tokenizer, decoding.max_new_tokens)
    steered = {name: wrap(study.model, study.tokenizer, c) for name, c in study.controllers.items()}
    generator = Generator({BASE: study.model, **steered}, study.tokenizer, encoded, decoding)
    open_run(out, {**study.manifest(decoding), "agreement": agreement}, resume=resume)
    _write_prompts(out, study.prompts)
    batches = chunks(encoded, decoding.samples, decoding.batch_size)
    sizes = [len(batches[batch]) for _, batch in generator.units(batches)]
    generations, scores = (Journal(out / name, sizes) for name in (GENERATIONS, SCORES))
    with _progress() as progress:
        _watch(progress, "generating", generations, sizes, generator.run(batches, generations))
        units = list(_split(generations.records, sizes))
        work = score(units, study.judges, study.perplexity(encoded), scores)
        _watch(progress, "scoring", scores, sizes, work)
    summary = summarise(out)
    write_json(out / SUMMARY, summary)
    write_report(out, lambda ids: str(study.tokenizer.decode(ids, skip_special_tokens=True)))
    return Comparison(out, summary)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Runs with so many threads. The pocket model is too small for two to help each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_prompts(out: Path, prompts: Prompts) -> None:
    rows = [{"prompt": i, "text": text} for i, text in enumerate(prompts.texts)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    replace_text(out / PROMPTS, "".join(lines))


def _split(records: Sequence[Record], sizes: Sequence[int]) -> Iterator[Sequence[Record]]:
    start = 0
    for size in sizes:
        yield records[start : start + size]
        start += size


def _watch(
    progress: Progress, title: str, journal: Journal, sizes: Sequence[int], work: Iterator[None]
) -> None:
    """Drives ``work`` to its end with a bar that counts answers."""
    task = progress.add_task(title, total=sum(sizes), completed=len(journal.records))
    for _ in work:
        progress.update(task, completed=len(journal.records))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("answers"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
