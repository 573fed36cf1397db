"""``plugalign maxim``: what becomes of a maxim when everybody follows it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plugalign.commands import options
from plugalign.commands.console import quiet_libraries, show

Name = Annotated[str, typer.Argument(help="lie, truth, greed or share.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="Hub id or folder of a model that chooses. It is refused where it answers the letter.",
        show_default="scripted agents",
    ),
]
Controller = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="The maxim in the place of its words, for --model."),
]
Runs = Annotated[int, typer.Option(help="Of each world, for the intervals.")]


def maxim(
    context: typer.Context,
    name: Name,
    model: Model = None,
    controller: Controller = None,
    runs: Runs = 20,
    seed: Annotated[int, typer.Option()] = 0,
    dtype: options.Dtype = "auto",
) -> None:
    """Test whether a maxim still works, and leaves nobody worse off, when all follow it."""
    if model is None:
        scripted = ("name", "runs", "seed")
        options.refuse_others(context, "a maxim of scripted agents, without --model,", scripted)
    from plugalign.values.universalising.universalise import universalise

    chosen: dict[str, Any] = {"runs": runs, "seed": seed}
    if model is not None:
        chosen["agents"] = [_agent(model, controller, dtype)]
    show(universalise(name, **chosen).table())


def _agent(model: str, controller: Path | None, dtype: str) -> Any:
    """A model as an agent."""
    quiet_libraries()
    from plugalign.loading import load_controllers, resolve_model
    from plugalign.values.universalising.model_agent import ModelAgent

    given = {} if controller is None else {"controller": controller}
    loaded, tokenizer = resolve_model(model, None, dtype)
    return ModelAgent(loaded, tokenizer, load_controllers(given).get("controller"))
