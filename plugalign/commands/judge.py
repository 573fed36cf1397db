"""``plugalign judge``: texts by one or several values, their conflicts, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from plugalign.commands import options
from plugalign.commands.console import quiet_libraries, show

Texts = Annotated[list[str] | None, typer.Argument(help="Texts to judge.", show_default=False)]
Value = Annotated[
    list[str],
    typer.Option(
        metavar="NAME=FOLDER",
        help="What plugalign fit value made; may be repeated, in order of priority.",
    ),
]
File = Annotated[
    Path | None, typer.Option(help='Texts from a file: JSONL or CSV with a "text" field.')
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Leave out each word once, and say what it does.")
]
Json = Annotated[bool, typer.Option("--json", help="A line of JSON for each text.")]


def judge(
    value: Value,
    texts: Texts = None,
    file: File = None,
    explain: Explain = False,
    as_json: Json = False,
    threads: options.Threads = None,
) -> None:
    """Judge texts by values: a verdict by each, conflicts by priority, and which words count."""
    folders = options.named(value, "--value") or {}
    given = [*(texts or []), *(_read(file) if file is not None else ())]
    if not given:
        raise ValueError("there is no text to judge; give one, or a --file of them")
    from plugalign.threads import torch_threads

    quiet_libraries()
    with torch_threads(threads):
        _judge(folders, given, explain, as_json)


def _judge(folders: Mapping[str, str], given: Sequence[str], explain: bool, as_json: bool) -> None:
    from plugalign.values.discriminator.explanation import explain as explained
    from plugalign.values.discriminator.judgement import judge_texts
    from plugalign.values.discriminator.saved import load_discriminators

    principles = load_discriminators(folders)
    for found in judge_texts(principles, given):
        reasons = explained(principles, found.text) if explain else []
        if as_json:
            why = {"explanations": [each.to_json() for each in reasons]} if explain else {}
            typer.echo(json.dumps({**found.to_json(), **why}, ensure_ascii=False))
            continue
        # An explanation begins with the judgement that it explains.
        lines = [*map(str, reasons), *found.conflicts_in_words()] if explain else [str(found)]
        show("\n".join([found.text, *lines]))


def _read(file: Path) -> Iterator[str]:
    from plugalign.files.rows import read_rows

    yield from (row.text(row.first("text")) for row in read_rows(file))
