"""compare(): several ways to steer one model, on the same prompts with the same noise.

Everything that can be wrong is found before any work. Then every method answers every prompt
(`generation`), judges and an unsteered model score the answers (`scoring`), and the summary is
computed from the files that this left (`summary`). A run that is killed continues where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group

from plugalign.evaluation.comparison.agreements import References, agreements, named_files
from plugalign.evaluation.comparison.alignment import (
    HumanTexts,
    judged_texts,
    keep,
    read_labels,
)
from plugalign.evaluation.comparison.decoding import Decoding, make_decoding
from plugalign.evaluation.comparison.generation import Generator
from plugalign.evaluation.comparison.progress import Progress
from plugalign.evaluation.comparison.prompts import Prompts, chunks, encode
from plugalign.evaluation.comparison.references import make_references
from plugalign.evaluation.comparison.revising import Revisions, watched
from plugalign.evaluation.comparison.scoring import Scoring
from plugalign.evaluation.comparison.study import Study, make_study
from plugalign.evaluation.comparison.summary import summarise
from plugalign.evaluation.comparison.variants import named_settings
from plugalign.evaluation.metrics.metric import Metric
from plugalign.evaluation.report.conditions import settings_lines
from plugalign.evaluation.report.exports import write_tables
from plugalign.evaluation.report.html import write_report
from plugalign.evaluation.report.table import comparison_table
from plugalign.evaluation.run_folder.answers import read_answers
from plugalign.evaluation.run_folder.folder import (
    GENERATIONS,
    MANIFEST,
    PROMPTS,
    REPORT,
    SCORES,
    SUMMARY,
    locked,
    open_run,
    replace_text,
    write_json,
)
from plugalign.evaluation.run_folder.journal import Journal
from plugalign.evaluation.run_folder.manifest import AgreementSet, read_manifest
from plugalign.evaluation.run_folder.records import Generated, Scored
from plugalign.evaluation.run_folder.summary import Summary
from plugalign.files.folders import check_folder
from plugalign.files.rows import check_rows
from plugalign.generation.wrap import wrap
from plugalign.threads import torch_threads

USUAL = {"samples": 25, "batch_size": 32}
POCKET = {"samples": 4, "batch_size": 50}


@dataclass(frozen=True)
class Comparison:
    """What a run found, and where its files are.

    Attributes:
        out: the folder with manifest.json, prompts.jsonl, generations.jsonl, scores.jsonl,
            summary.json, table.csv, table.tex, report.html and progress.log.
        results: what was found.
        settings: of every method that has some, in a line.
    """

    out: Path
    results: Summary
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        return self.results.to_json()

    @property
    def report(self) -> Path:
        """The report, one self-contained HTML file."""
        return self.out / REPORT

    def table(self) -> Group:
        """The summary as tables for a terminal."""
        return comparison_table(self.results, self.settings)

    def __rich__(self) -> Group:
        return self.table()


def compare(
    model: Any = None,
    tokenizer: Any = None,
    *,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    controllers: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    prompts: str | Path | Sequence[Any] | None = None,
    limit: int | None = None,
    chat: str = "auto",
    system: str | None = None,
    judges: Mapping[str, Any] | Sequence[Any] | None = None,
    metrics: Sequence[Metric] | None = None,
    scorer: Any = None,
    perplexity_model: Any = None,
    agreement: References | None = None,
    human_texts: str | Path | None = None,
    human_labels: str | Path | None = None,
    samples: int | None = None,
    max_new_tokens: int = 20,
    min_new_tokens: int = 0,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int = 0,
    greedy: bool = False,
    num_beams: int = 1,
    repetition_penalty: float = 1.0,
    batch_size: int | None = None,
    seed: int = 0,
    out: str | Path = "plugalign-compare",
    resume: bool = False,
    dtype: str = "auto",
    threads: int | None = None,
    command: str | None = None,
) -> Comparison:
    """Compares ways to steer a model; the model alone is always the reference, called "base".

    Without a model it is the pocket world: the embedded model, its controllers, its judge. Beside
    base stand plain ``generate``, for its cost, and for each support of a controller the base that
    is cut alike, see `plugalign.evaluation.comparison.references`.

    Args:
        model, tokenizer: a causal language model; or a hub id or folder, of which both are loaded.
        methods: names of the controllers to compare, those that need nothing fitted among them; by
            default all of ``controllers``, or of the pocket world. Also by name the settings of
            each, as in ``{"dexperts": {"alpha": [0, 1, 2]}}``.
        controllers: by name, a controller or its folder.
        settings: by "method.setting" a value in place of the saved one, or a list of values, of
            which each makes a row of its own, called ``method[setting=value]``.
        prompts: a ``.jsonl`` or ``.csv`` file with a "text" field or with a conversation as
            "messages", a ``.txt`` file, or texts and conversations; see `load_prompts`.
        limit: only so many of the first prompts.
        chat: whether a prompt becomes a conversation in the tokenizer's chat template, in which
            the answer is the assistant's turn: "on", "off", or "auto", which is on for an instruct
            model (`plugalign.generation.chat_format`) and for conversations.
        system: a system message in front of each conversation.
        judges: what scores answers, see `load_judge`; the first is the primary judge.
        metrics: see `Metric`; toxicity by default. The first of judges' scores is the primary one.
        scorer: a model like ``model``, for perplexity; by default the base without steering.
        perplexity_model: an outside model for a second perplexity, in its own tokens: a hub id or
            folder, or a pair of a model and its tokenizer.
        agreement: a file of texts with reference scores (`load_references`) to measure judges by,
            several, or files by name.
        human_texts: a file of texts to measure the gap to, see `judged_texts`.
        human_labels: a file of labelled answers of this run, see `read_labels`; for a resumed one.
        samples: answers to each prompt; 25 by default, 4 in the pocket world of many prompts, and
            1 where nothing is drawn.
        max_new_tokens, min_new_tokens: the most and the fewest tokens of an answer.
        temperature, top_p, top_k: of the draw, 1, 0.9 and 0 (all tokens) by default.
        greedy, num_beams: greedy decoding, or beam search, in the place of drawing.
        repetition_penalty: of tokens that the text has already; 1 is none.
        batch_size: answers that are generated together; 32 by default, 50 in the pocket world.
        seed: equal seeds give equal answers, and one noise for all methods.
        out: the folder to write; it must not hold another run, and nobody else may write it.
        resume: continues a run in ``out``.
        dtype: the precision of models that are given by name: "auto", "bfloat16", "float16" or
            "float32", see `plugalign.files.precision.chosen_dtype`.
        threads: CPU threads of torch; by default as many as it has, and 1 in the pocket world.
        command: the command line that this is, for the report.

    Raises:
        ValueError: for anything wrong with the arguments, before any work.
        OSError: if the disk is full; what was generated is kept.
    """
    check_folder(out)
    usual = POCKET if model is None else USUAL
    decoding = make_decoding(
        samples=samples,
        usual_samples=usual["samples"],
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        greedy=greedy,
        num_beams=num_beams,
        repetition_penalty=repetition_penalty,
        batch_size=usual["batch_size"] if batch_size is None else batch_size,
        seed=seed,
    )
    chosen, settings = named_settings(methods, settings)
    check_rows(*named_files(agreement).values(), human_texts, human_labels)
    study = make_study(
        model,
        tokenizer,
        methods=chosen,
        controllers=controllers,
        settings=settings,
        prompts=prompts,
        limit=limit,
        judges=judges,
        scorer=scorer,
        metrics=metrics,
        dtype=dtype,
        chat=chat,
        system=system,
        perplexity_model=perplexity_model,
    )
    # The pocket model is too small for two threads to help each other.
    with torch_threads(1 if threads is None and study.is_pocket else threads):
        human = None if human_texts is None else judged_texts(Path(human_texts), study.judges)
        measured = agreements(study.judges, agreement)
        return _run(study, decoding, measured, human, human_labels, Path(out), resume, command)


def _run(
    study: Study,
    decoding: Decoding,
    measured: list[AgreementSet],
    human: HumanTexts | None,
    human_labels: str | Path | None,
    out: Path,
    resume: bool,
    command: str | None,
) -> Comparison:
    """Checks what is left to check, then generates, scores and sums up."""
    encoded = encode(
        study.prompts, study.model, study.tokenizer, decoding.max_new_tokens, study.chat.format
    )
    revisions = {name: Revisions() for name in study.controllers}
    steered = {
        name: wrap(study.model, study.tokenizer, watched(controller, revisions[name]))
        for name, controller in study.controllers.items()
    }
    references = make_references(study.model, study.tokenizer, steered)
    methods = {**references.generators, **steered}
    generator = Generator(methods, study.tokenizer, encoded, decoding, study.ends, revisions)
    manifest = study.manifest(decoding, references, command)
    labels = None
    if human_labels is not None:
        rows, prompts = manifest.settings.rows(), len(study.prompts.texts)
        labels = read_labels(Path(human_labels), rows, prompts, decoding.samples)
    with locked(out):
        open_run(out, manifest.with_agreements(measured).to_json(), resume=resume)
        stored = read_manifest(out)
        if (merged := stored.with_agreements(measured)) != stored:
            write_json(out / MANIFEST, merged.to_json())
        _write_prompts(out, study.prompts)
        _work(study, generator, out, manifest.run or "")
        keep(out, human, labels, lambda: read_answers(out, manifest))
        summary = summarise(out, study.metrics.every)
        write_json(out / SUMMARY, summary.to_json())
        settings = settings_lines(manifest.settings.methods)
        write_tables(out, summary, settings)
        write_report(out, summary, lambda ids: _decoded(study, ids))
    return Comparison(out, summary, settings)


def _work(study: Study, generator: Generator, out: Path, run: str) -> None:
    """Generates and scores what the run's journals lack."""
    batches = chunks(generator.encoded, generator.decoding.samples, generator.decoding.batch_size)
    units = generator.units(batches)
    total = sum(map(len, units))
    answers = Journal(out / GENERATIONS, Generated, units, run)
    with Progress(out) as progress:
        if answers.missing:
            for line in study.notes():
                progress.say(line)
        work = generator.run(batches, answers, progress.say)
        progress.stage("generating", total, lambda: len(answers.records), work)
        answers.order()
        scoring = Scoring(
            answers.records,
            study.judges,
            study.perplexity(generator.encoded),
            lambda ids: _decoded(study, ids),
            study.ends,
            study.outside_perplexity(),
        )
        scored = Journal(out / SCORES, Scored, units, run, scoring.fits)
        progress.stage("scoring", total, lambda: len(scored.records), scoring.run(scored))
        scored.order()


def _decoded(study: Study, ids: Sequence[int]) -> str:
    return str(study.tokenizer.decode(ids, skip_special_tokens=True))


def _write_prompts(out: Path, prompts: Prompts) -> None:
    rows = [{"prompt": i, **row} for i, row in enumerate(prompts.rows())]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    replace_text(out / PROMPTS, "".join(lines))
