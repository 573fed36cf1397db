"""How long fits take with their defaults on this machine, one after the other, and what they learn.

Of every method that learns, of a value discriminator and of a judge. The same command goes on where
it was killed, but for the fit that was running::

    python benchmarks/fit_times.py --model MODEL --encoder MINILM --data DATA --work W --out OUT
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from results_tools import GUIDES, JUDGED, load_guides

from plugalign.catalogue import FITTERS
from plugalign.evaluation.run_folder.folder import read_json, write_json
from plugalign.files.precision import chosen_dtype
from plugalign.fitting.command import run_fit
from plugalign.fitting.data import DESIRED, Labelled, load_data
from plugalign.fitting.judge import fit_judge
from plugalign.fitting.progress import say
from plugalign.fitting.value import fit_value
from plugalign.fitting.workspace import RECORD
from plugalign.loading import load_model
from plugalign.threads import torch_threads
from plugalign.values.discriminator.loading import load_reader

STATEMENT = "It respects others."
VALUE, JUDGE = "value", "judge"


def fits(
    model: str, encoder: str | None, data: Path, work: Path, minutes: float, chat: str
) -> dict[str, Callable[[], Any]]:
    """What to time, by name; each begins with models that are loaded.

    Args:
        encoder: what a judge is tuned from; None leaves it out.
        data: the folder of `results_tools`.
        minutes: of each.
    """
    guides = load_guides(data, None)
    base, tokenizer = load_model(model, chosen_dtype("auto"))

    def method(name: str) -> None:
        settings = {"chat": chat}
        run_fit(name, base, tokenizer, guides, work / name, minutes=minutes, settings=settings)

    found: dict[str, Callable[[], Any]] = {name: partial(method, name) for name in FITTERS}
    found[VALUE] = partial(_value, model, guides, work / VALUE, minutes)
    if encoder is not None:
        labelled = load_data(data / JUDGED)
        found[JUDGE] = partial(fit_judge, labelled, work / JUDGE, encoder=encoder, minutes=minutes)
    return found


def _value(model: str, guides: Labelled, out: Path, minutes: float) -> None:
    """Its model is loaded in float32, which is counted."""
    reader = load_reader("causal", model)
    fit_value(reader, model, guides, out, statement=STATEMENT, desired=DESIRED, minutes=minutes)


def measured(out: Path) -> dict[str, Any]:
    """What a fit says of itself."""
    name = RECORD if (out / RECORD).is_file() else "held_out.json"
    record = read_json(out / name)
    return dict(record.get("measured", record))


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder.")],
    data: Annotated[Path, typer.Option(help=f"A folder with {', '.join(GUIDES)}, {JUDGED}.")],
    work: Annotated[Path, typer.Option(help="Keeps what is fitted.")],
    out: Annotated[Path, typer.Option(help="A JSON file to write.")],
    encoder: Annotated[str | None, typer.Option(help="For a judge.")] = None,
    methods: Annotated[str | None, typer.Option(help="Of these alone, with commas.")] = None,
    minutes: Annotated[float, typer.Option(help="Of each.")] = 10.0,
    chat: Annotated[str, typer.Option(help="on or off, for methods.")] = "off",
    threads: Annotated[int | None, typer.Option(help="Of torch.")] = None,
) -> None:
    """Times each fit by the clock on the wall."""
    found: dict[str, Any] = read_json(out) if out.is_file() else {}
    with torch_threads(threads):
        every = fits(model, encoder, data, work, minutes, chat)
        chosen = methods.split(",") if methods else list(every)
        if unknown := [name for name in chosen if name not in every]:
            raise typer.BadParameter(f"{unknown[0]} is none; there are {', '.join(every)}")
        for name in chosen:
            if name in found:
                continue
            say(f"fitting {name}")
            started = time.monotonic()
            every[name]()
            seconds = round(time.monotonic() - started, 1)
            found[name] = {"seconds": seconds, "minutes": minutes, **measured(work / name)}
            say(f"{name}: {seconds:.0f} s")
            write_json(out, found)


if __name__ == "__main__":
    typer.run(main)
