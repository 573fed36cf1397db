"""``plugalign capabilities``: what a controller gives a model, and what it takes."""

from __future__ import annotations

from typing import Annotated

import typer

from plugalign.commands import compare as shared
from plugalign.commands import options
from plugalign.commands import values as asked
from plugalign.commands.console import quiet_libraries, show

OUT = "plugalign-capabilities"

Judgements = Annotated[
    str | None,
    typer.Option(help="Comprehension: JSONL with a text and a label, 1 for right, 0 for wrong."),
]
Prompts = Annotated[
    str | None, typer.Option(help="Diagnosis and rectification: what own texts go on from.")
]
Judge = Annotated[
    str | None,
    typer.Option(help="Finds the fault in own texts: folder of plugalign fit judge, or hub id."),
]
Texts = Annotated[str | None, typer.Option(help="Performance: texts for the perplexity.")]
Tasks = Annotated[
    str | None,
    typer.Option(help="Performance: JSONL with a question, choices and the answer's place."),
]
Fault = Annotated[str, typer.Option(help="What texts should not be; the judge scores the same.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only so many of the first of each.")]
NewTokens = Annotated[int, typer.Option(min=2, max=4096, help="Length of own texts in tokens.")]
Seed = Annotated[int, typer.Option(min=0)]
Out = Annotated[
    str | None, typer.Option(help="Folder to write.", show_default=f"{OUT}, {OUT}-2, ...")
]


def capabilities(
    models: asked.Models,
    controllers: asked.Controllers = None,
    settings: shared.Set = None,
    judgements: Judgements = None,
    prompts: Prompts = None,
    judge: Judge = None,
    texts: Texts = None,
    tasks: Tasks = None,
    fault: Fault = "rude or insulting",
    limit: Limit = None,
    max_new_tokens: NewTokens = 30,
    seed: Seed = 0,
    chat: asked.Chat = "auto",
    system: asked.System = None,
    out: Out = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    resume: shared.Resume = False,
) -> None:
    """Four capabilities, one table a controller: comprehension, diagnosis, rectification, tax."""
    given = options.named(controllers, "--controllers")
    chosen = options.settings(settings, "--set")
    folder = shared.run_folder(out, OUT, resume=resume)
    from plugalign.values.capabilities.data import load_data
    from plugalign.values.capabilities.measurement import measure_capabilities

    quiet_libraries()
    found = measure_capabilities(
        models,
        load_data(judgements, prompts, texts, tasks, limit),
        judge=judge,
        controllers=given,
        settings=chosen,
        fault=fault,
        max_new_tokens=max_new_tokens,
        seed=seed,
        chat=chat,
        system=system,
        out=folder,
        resume=resume,
        dtype=dtype,
        threads=threads,
    )
    show(found.table())
    show(f"The report: {found.report}")
