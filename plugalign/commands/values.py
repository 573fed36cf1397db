"""``plugalign values``: which values models lean to, and whether a questionnaire can tell."""

from __future__ import annotations

from typing import Annotated

import typer

from plugalign.commands import compare as shared
from plugalign.commands import options
from plugalign.commands.console import quiet_libraries, show

OUT = "plugalign-values"

Models = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Hub ids or folders, to ask side by side.")
]
Instrument = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="The questionnaire: a JSON file, or 'foundations' or 'basic-values', which ship with "
        "plugalign and are not validated.",
    ),
]
Controllers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FOLDER", help="A fitted controller, asked beside each model; may be repeated."
    ),
]
Formats = Annotated[
    str,
    typer.Option(
        metavar="options,letters",
        help="How answers are read: unseen options, letters in every order, or both; the first "
        "one scores.",
    ),
]
Chat = Annotated[
    str,
    typer.Option(
        metavar="auto|on|off",
        help="Whether to ask in the model's chat template; auto: for instruct models.",
    ),
]
System = Annotated[str | None, typer.Option(help="The system message of the chat.")]
Refusals = Annotated[
    bool, typer.Option("--refusals/--no-refusals", help="Also ask in words, and count refusals.")
]
Out = Annotated[
    str | None, typer.Option(help="Folder to write.", show_default=f"{OUT}, {OUT}-2, ...")
]


def values(
    models: Models,
    instrument: Instrument = "foundations",
    controllers: Controllers = None,
    settings: shared.Set = None,
    formats: Formats = "options,letters",
    chat: Chat = "auto",
    system: System = None,
    refusals: Refusals = True,
    out: Out = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    resume: shared.Resume = False,
) -> None:
    """Put a questionnaire to models; the first finding is whether it measured anything."""
    given = options.named(controllers, "--controllers")
    chosen = options.settings(settings, "--set")
    asked = options.names(formats, "--formats")
    folder = shared.run_folder(out, OUT, resume=resume)
    from plugalign.values.questionnaire.measurement import measure

    quiet_libraries()
    measurement = measure(
        models,
        instrument=instrument,
        controllers=given,
        settings=chosen,
        formats=asked or (),
        chat=chat,
        system=system,
        refusals=refusals,
        out=folder,
        resume=resume,
        dtype=dtype,
        threads=threads,
    )
    show(measurement.table())
    show(f"The report: {measurement.report}")
