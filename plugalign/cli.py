"""The command line: ``plugalign compare``, ``fit``, ``bench`` and ``methods``.

A command is a function here that parses its options and hands over to the module that does the
work, which it imports itself: ``plugalign --help`` loads neither torch nor transformers.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="Plug-in alignment: steer a Hugging Face language model while it decodes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
OUT = "plugalign-compare"
WIDTH = 110  # columns of a table that goes to a file


def main() -> None:
    """The console entry: an error is one line on stderr and exit code 2."""
    try:
        app()
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        lines = [str(error), *getattr(error, "__notes__", [])]
        print("error:", " ".join(" ".join(lines).split()), file=sys.stderr)
        raise SystemExit(2) from None


# The options of `compare`, in the order of --help. What is not given is left to the spec file, and
# what that leaves out to the function's own defaults.
Spec = Annotated[Path | None, typer.Option(help="A YAML file of these options; given ones win.")]
Model = Annotated[
    str | None, typer.Option(help="Hub id or folder.", show_default="the pocket model")
]
Prompts = Annotated[
    str | None, typer.Option(help='JSONL or CSV with a "text" field, or text file.')
]
Limit = Annotated[int | None, typer.Option(help="Only so many of the first prompts.")]
Methods = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Methods to compare.", show_default="all there are"),
]
Controllers = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=FOLDER", help="A fitted controller; may be repeated."),
]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]JUDGE",
        help="'pocket', hub id or folder of a text classifier, .joblib file or module:function; "
        "may be repeated, the first is the primary one.",
    ),
]
Scorer = Annotated[
    str | None, typer.Option(help="For perplexity.", show_default="the unsteered base")
]
Agreement = Annotated[
    str | None, typer.Option(help="Texts with reference scores, to check judges.")
]
Samples = Annotated[
    int | None, typer.Option(help="Answers to a prompt.", show_default="25, pocket 4")
]
NewTokens = Annotated[
    int | None, typer.Option(help="Length of an answer in tokens.", show_default="20")
]
Temperature = Annotated[float | None, typer.Option(show_default="1.0")]
TopP = Annotated[float | None, typer.Option(show_default="0.9")]
BatchSize = Annotated[
    int | None, typer.Option(help="Answers at a time.", show_default="32, pocket 50")
]
Seed = Annotated[int | None, typer.Option(show_default="0")]
Out = Annotated[
    str | None, typer.Option(help="Folder to write.", show_default=f"{OUT}, {OUT}-2, ...")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in OUT where it stopped.")]


@app.command()
def compare(
    spec: Spec = None,
    model: Model = None,
    prompts: Prompts = None,
    limit: Limit = None,
    methods: Methods = None,
    controllers: Controllers = None,
    judge: Judges = None,
    scorer: Scorer = None,
    agreement: Agreement = None,
    samples: Samples = None,
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Compare methods on one model, prompts and noise; without options, on the pocket world."""
    given = {
        "model": model, "prompts": prompts, "limit": limit, "scorer": scorer,
        "methods": None if methods is None else [m for m in methods.split(",") if m],
        "controllers": _named(controllers, "--controllers"), "judges": _judges(judge),
        "agreement": agreement, "samples": samples, "max_new_tokens": max_new_tokens,
        "temperature": temperature, "top_p": top_p, "batch_size": batch_size, "seed": seed,
        "out": out, "resume": resume or None,
    }  # fmt: skip
    from plugalign.evaluation.compare import compare as run
    from plugalign.evaluation.spec import read_spec

    options = read_spec(spec, {name: value for name, value in given.items() if value is not None})
    options.setdefault("out", default_out(Path.cwd(), resume=options.get("resume", False)))
    _silence_libraries()
    comparison = run(**options)
    console = _console()
    console.print(comparison)
    console.print("The report:", str(comparison.report), markup=False, soft_wrap=True)


@app.command()
def fit(
    method: Annotated[str, typer.Argument(help="What to fit; see plugalign methods.")],
    model: Annotated[str, typer.Option(help="Hub id or folder of the model to steer.")],
    data: Annotated[
        list[Path], typer.Option(help="JSONL or CSV with labelled texts; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to save the controller in.")],
    text: Annotated[str, typer.Option(help="The column with the text.")] = "text",
    label: Annotated[str, typer.Option(help="The column with the label.")] = "label",
    pairs: Annotated[
        str | None,
        typer.Option(metavar="UNDESIRED,DESIRED", help="Columns of paired texts, if there are."),
    ] = None,
    desired: Annotated[
        str | None, typer.Option(help="The label of the desired class. [default: 0]")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many texts.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="steps=300, lr=5e-4, seed=1, …"),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0, help="What it may take: less is learnt where it would be more.")
    ] = 10,
    dtype: Annotated[
        str,
        typer.Option(metavar="auto|bfloat16|float16|float32", help="The precision of the model."),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="CPU threads of torch.")
    ] = None,
) -> None:
    """Train what a controller needs. Killed and started again, it continues."""
    undesired, comma, wanted = (pairs or "").partition(",")
    if pairs is not None and not (undesired and wanted):
        raise ValueError(f"--pairs takes two columns, UNDESIRED,DESIRED, got {pairs!r}")
    from plugalign.fitting.command import fit_files

    _silence_libraries()
    columns = {"desired": wanted, "undesired": undesired} if comma else {}
    done = fit_files(
        method, model, data, out, columns={"text": text, "label": label, **columns}, limit=limit,
        desired=desired, settings=settings or [], minutes=minutes, dtype=dtype, threads=threads,
    )  # fmt: skip
    _console().print(done, markup=False, soft_wrap=True)


@app.command()
def bench(
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder. [default: the pocket model]")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="A,B", help="Which to time. [default: all]")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,M", help="Batch sizes.")] = "1,8",
    new_tokens: Annotated[int, typer.Option(help="New tokens a row.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(help="Length of the prompts.")] = 16,
    rounds: Annotated[int, typer.Option(help="Times everything so often, in turn.")] = 5,
    draft: Annotated[
        str | None, typer.Option(help="Speculate: base (without controllers) or prompt (look up).")
    ] = None,
    draft_tokens: Annotated[int, typer.Option(help="Tokens drafted at a time.")] = 4,
    cache: Annotated[
        str, typer.Option(help="dynamic, or static: a GPU then replays whole steps.")
    ] = "dynamic",
    plain_cache: Annotated[str, typer.Option(help="The same for plain generate.")] = "dynamic",
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Behind static caches.")
    ] = True,
    random_weights: Annotated[
        bool, typer.Option(help="Of the model's configuration alone; costs are the same.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads of torch.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write.")] = None,
) -> None:
    """Time every method beside plain generate, and its parts; nothing needs to be fitted for it."""
    try:
        batches = [int(size) for size in batch.split(",")]
    except ValueError:
        raise ValueError(f"--batch takes numbers with commas between, got {batch!r}") from None
    from plugalign import pocket
    from plugalign.benchmarking import run_bench
    from plugalign.costs import table
    from plugalign.evaluation.loading import load_model, random_model

    _silence_libraries()
    if model is None and random_weights:
        raise ValueError("--random-weights needs --model, whose configuration it takes")
    if model is None:
        loaded, tokenizer = pocket.load()
    else:
        loaded, tokenizer = (random_model if random_weights else load_model)(model)
    chosen = None if methods is None else [m for m in methods.split(",") if m]
    costs = run_bench(
        loaded, tokenizer, chosen, batches=batches, new_tokens=new_tokens,
        prompt_tokens=prompt_tokens, rounds=rounds, draft=draft, draft_tokens=draft_tokens,
        cache=cache, plain_cache=plain_cache, compiled=compiled, threads=threads, out=out,
    )  # fmt: skip
    _console().print(table(costs))


@app.command()
def methods() -> None:
    """What is there: each method's name, where it acts, its paper, what it needs fitted."""
    from plugalign.methods import METHODS

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("method", "acts on", "paper", "needs fitted"):
        table.add_column(heading, header_style="dim", no_wrap=heading == "method")
    acts = {
        "steer": "each token",
        "attach": "the model",
        "revise": "answers",
        "prompt": "the prompt",
    }
    for method in METHODS:
        table.add_row(
            f"[bold]{method.name}[/bold]", acts[method.surface], method.paper, method.needs
        )
    _console().print(table)


def default_out(folder: Path, *, resume: bool) -> str:
    """The folder of a run that was given none: the first free number, or the last one to resume."""
    number, last = 1, OUT
    while (folder / (name := OUT if number == 1 else f"{OUT}-{number}")).exists():
        number, last = number + 1, name
    return last if resume else name


def _silence_libraries() -> None:
    """What libraries say to programmers would stand between the user and the progress bar."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _console() -> Console:
    """A terminal has the width it has; a file or a pipe gets all columns in full."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, WIDTH))


def _named(pairs: Sequence[str] | None, option: str) -> dict[str, str] | None:
    """``NAME=VALUE`` options as a mapping; several may stand in one, separated by commas."""
    if pairs is None:
        return None
    named: dict[str, str] = {}
    for pair in ",".join(pairs).split(","):
        name, sign, value = pair.partition("=")
        if not (name and sign and value):
            raise ValueError(f"{option} takes NAME=FOLDER, got {pair!r}")
        named[name] = value
    return named


def _judges(given: Sequence[str] | None) -> Any:
    """Judges by name where any was given one, else their specs."""
    if given is None or not any("=" in judge for judge in given):
        return given
    return {name: spec or name for name, _, spec in (judge.partition("=") for judge in given)}
