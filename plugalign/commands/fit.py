"""``plugalign fit``: trains what a controller needs, a judge, or a value discriminator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plugalign.commands import options
from plugalign.commands.console import quiet_libraries, show
from plugalign.files.folders import check_folder

Method = Annotated[
    str,
    typer.Argument(help="What to fit; see plugalign methods. Or judge, for compare, or value."),
]
Data = Annotated[
    list[Path] | None,
    typer.Option(
        help="JSONL or CSV with labelled texts; may be repeated. A value can do without.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option(help="Folder to save the controller or the judge in.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="Hub id or folder of the model to steer. For a judge: an encoder to tune, else it "
        "is TF-IDF and a logistic regression."
    ),
]
Text = Annotated[str, typer.Option(help="The column with the text.")]
Label = Annotated[str, typer.Option(help="The column with the label.")]
Pairs = Annotated[
    str | None,
    typer.Option(metavar="UNDESIRED,DESIRED", help="Columns of paired texts, if there are."),
]
Desired = Annotated[str | None, typer.Option(help="The label of the desired class. [default: 0]")]
Limit = Annotated[int | None, typer.Option(help="At most so many texts.")]
OneStyle = Annotated[
    bool,
    typer.Option("--one-style", help="Learn from lower case, punctuation marks set apart."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="steps=300, lr=5e-4, seed=1, …"),
]
Statement = Annotated[
    str | None, typer.Option(help='Of a value: the statement, as "It respects others."')
]
Negation = Annotated[
    str | None,
    typer.Option(help="Of a value without data: its opposite.", show_default="It is not true that"),
]
Encoder = Annotated[
    str | None,
    typer.Option(help="Of a value: a sentence encoder that reads in the place of --model."),
]
Licence = Annotated[
    str | None, typer.Option(help="Of a value: the licence of the data, for its data sheet.")
]
Level = Annotated[
    float | None,
    typer.Option(help="Of a value: the share of verdict sets with the label.", show_default="0.9"),
]
MINUTES, MOST_MINUTES = 10.0, 1e6
Minutes = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="What it may take: less is learnt where it would be more.",
        show_default=f"{MINUTES:g}",
    ),
]


def fit(
    method: Method,
    out: Out,
    data: Data = None,
    model: Model = None,
    statement: Statement = None,
    negation: Negation = None,
    encoder: Encoder = None,
    licence: Licence = None,
    level: Level = None,
    text: Text = "text",
    label: Label = "label",
    pairs: Pairs = None,
    desired: Desired = None,
    limit: Limit = None,
    one_style: OneStyle = False,
    settings: Set = None,
    minutes: Minutes = None,
    chat: options.Chat = "auto",
    system: options.System = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
) -> None:
    """Train what a controller needs, a judge or a value. Started again, it continues."""
    of_a_value = {
        "statement": statement,
        "negation": negation,
        "encoder": encoder,
        "licence": licence,
        "level": level,
    }
    given = {name: value for name, value in of_a_value.items() if value is not None}
    data = data or []
    _refuse_missing(method, given, data)
    pair = options.columns(pairs, "--pairs")
    columns = {"undesired": pair[0], "desired": pair[1]} if pair else {}
    columns |= {"text": text, "label": label}
    check_folder(out)
    if method in ("judge", "value"):
        _refuse_settings(f"a {method}", settings, dtype, chat, system)
        if one_style:
            raise ValueError(f"a {method} reads texts as they are; leave --one-style out")
        _refuse_minutes(method, model, data, minutes)
    bound = MINUTES if minutes is None else minutes
    if method == "judge":
        _fit_judge(data, out, model, desired, {"limit": limit, **columns}, threads, bound)
        return
    if method == "value":
        _fit_value(data, out, model, desired, {"limit": limit, **columns}, threads, bound, given)
        return
    if model is None:
        raise ValueError(f"fit {method} needs --model, the model to steer")
    from plugalign.fitting.command import fit_files

    quiet_libraries()
    done = fit_files(
        method,
        model,
        data,
        out,
        columns=columns,
        limit=limit,
        desired=desired,
        settings=settings or [],
        minutes=bound,
        dtype=dtype,
        threads=threads,
        chat=chat,
        system=system,
        one_style=one_style,
    )
    show(done)


def _refuse_missing(method: str, of_a_value: dict[str, Any], data: list[Path]) -> None:
    """Refuses options of a value for anything else, and a fit without data that needs some."""
    if method == "value":
        return
    if of_a_value:
        raise ValueError(f"--{next(iter(of_a_value))} is for fit value, not for fit {method}")
    if not data:
        raise ValueError(f"fit {method} needs --data, files of labelled texts")


def _refuse_minutes(
    method: str, model: str | None, data: list[Path], minutes: float | None
) -> None:
    """Refuses a bound on what takes seconds: a value without data, a judge without an encoder."""
    what = "a TF-IDF judge" if method == "judge" else "a value without data"
    if minutes is not None and not (model if method == "judge" else data):
        raise ValueError(
            f"{what} takes seconds and has no --minutes, got {minutes:g}; leave it out"
        )
    if minutes is not None and not 0 < minutes <= MOST_MINUTES:
        raise ValueError(f"--minutes must lie above 0, up to {MOST_MINUTES:.0e}, got {minutes:g}")


def _refuse_settings(
    what: str, settings: list[str] | None, dtype: str, chat: str, system: str | None
) -> None:
    if settings:
        raise ValueError(f"{what} has no settings, got --set {settings[0]}")
    if chat != "auto" or system is not None:
        raise ValueError(f"{what} reads texts without a chat; leave --chat and --system out")
    if dtype != "auto":
        raise ValueError(f"{what} is fitted in float32, got --dtype {dtype}; leave it out")


def _fit_judge(
    data: list[Path],
    out: Path,
    encoder: str | None,
    desired: str | None,
    read: dict[str, Any],
    threads: int | None,
    minutes: float,
) -> None:
    from plugalign.fitting.data import load_data
    from plugalign.fitting.judge import fit_judge
    from plugalign.threads import torch_threads

    quiet_libraries()
    with torch_threads(threads):
        labelled = load_data(data, **read)
        fitted = fit_judge(labelled, out, desired=desired, encoder=encoder, minutes=minutes)
        show(fitted.describe())


def _fit_value(
    data: list[Path],
    out: Path,
    model: str | None,
    desired: str | None,
    read: dict[str, Any],
    threads: int | None,
    minutes: float,
    given: dict[str, Any],
) -> None:
    from plugalign.fitting.value_command import fit_value_files
    from plugalign.threads import torch_threads

    quiet_libraries()
    with torch_threads(threads):
        done = fit_value_files(
            data, out, model=model, desired=desired, read=read, minutes=minutes, **given
        )
        show(done)
