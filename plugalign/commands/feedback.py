"""``plugalign feedback``: teaches an equilibrium what people say of its texts."""

from __future__ import annotations

from typing import Annotated

import typer

from plugalign.commands import options
from plugalign.commands.console import quiet_libraries, show

Folder = Annotated[str, typer.Argument(metavar="DIR", help="Folder of a saved equilibrium.")]
Add = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="JSONL or CSV: prompt with chosen and rejected; text and liked; or text and edited. "
        "Without it, what was learned up to now is shown.",
    ),
]
Model = Annotated[str | None, typer.Option(help="Hub id or folder; the pocket model by default.")]
Texts = Annotated[
    str | None, typer.Option(metavar="RUN", help="Folder of a compare whose texts FILE names.")
]
Learner = Annotated[
    str, typer.Option(metavar="map|gradient", help="All evidence, or step by step.")
]
Ridge = Annotated[
    float | None,
    typer.Option(help="Precision of the prior, if nothing was learned yet.", show_default="1.0"),
]
Keep = Annotated[float, typer.Option(help="The share of earlier evidence that still counts.")]


def feedback(
    context: typer.Context,
    folder: Folder,
    add: Add = None,
    model: Model = None,
    texts: Texts = None,
    learner: Learner = "map",
    ridge: Ridge = None,
    keep: Keep = 1.0,
    chat: options.Chat = "auto",
    system: options.System = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
) -> None:
    """Teach an equilibrium from pairs, likes or edits; each lesson is kept in its history."""
    if add is None:
        options.refuse_others(context, "feedback without --add", ("folder",))
    from plugalign.threads import torch_threads
    from plugalign.values.feedback_learning import load_taught, teach

    quiet_libraries()
    with torch_threads(threads):
        if add is None:
            taught = load_taught(folder)
        else:
            taught = teach(
                folder,
                add,
                model=model,
                texts=texts,
                learner=learner,  # type: ignore[arg-type]  # checked there
                ridge=ridge,
                keep=keep,
                dtype=dtype,
                chat=chat,
                system=system,
            )
    show(taught.table())
    if taught.history:
        show(taught.summary())
    else:
        show("Nothing has been learned yet; give feedback with --add FILE.")
