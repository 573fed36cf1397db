"""The command line: ``plugalign compare``, ``fit``, ``bench`` and ``methods``.

A command is a function here that parses its options and hands over to the module that does the
work, which it imports itself: ``plugalign --help`` loads neither torch nor transformers.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from plugalign.commands import options
from plugalign.commands.console import fail, message_of, show
from plugalign.files.folders import check_file, check_folder

app = typer.Typer(
    help="Plug-in alignment: steer a Hugging Face language model while it decodes.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
OUT = "plugalign-compare"


def main() -> None:
    """The console entry: an error is one line on stderr and exit code 2."""
    arguments = sys.argv[1:] or ["--help"]
    try:
        options.check_arguments(arguments)
        status = app(arguments, prog_name="plugalign", standalone_mode=False)
    except typer.TyperException as error:  # an option that is unknown, or of another type
        fail(error.format_message() + options.value_of(getattr(error, "param", None), arguments))
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        fail(message_of(error))
    else:
        raise SystemExit(status)
    raise SystemExit(2)


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
        help="'pocket', folder or hub id of a text classifier, folder of plugalign fit judge, "
        "module:function, or .joblib file (a pickle, which runs code as it is loaded: needs "
        "--trust); may be repeated, the first is the primary one.",
    ),
]
Scorer = Annotated[
    str | None, typer.Option(help="For perplexity.", show_default="the unsteered base")
]
Agreement = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE",
        help="Texts with reference scores, to check judges; may be repeated, and added later.",
    ),
]
Samples = Annotated[
    int | None, typer.Option(help="Answers to a prompt.", show_default="25, pocket 4")
]
NewTokens = Annotated[
    int | None, typer.Option(help="Length of an answer in tokens.", show_default="20")
]
MinNewTokens = Annotated[
    int | None,
    typer.Option(help="No answer ends before so many tokens.", show_default="0"),
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
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Judges may run code: .joblib files, and what a spec names."),
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
    min_new_tokens: MinNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    out: Out = None,
    resume: Resume = False,
    trust: Trust = False,
) -> None:
    """Compare methods on one model, prompts and noise; without options, on the pocket world."""
    given = {
        "model": model,
        "prompts": prompts,
        "limit": limit,
        "scorer": scorer,
        "methods": options.names(methods, "--methods"),
        "controllers": options.named(controllers, "--controllers"),
        "judges": options.judges(judge),
        "agreement": agreement,
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "batch_size": batch_size,
        "seed": seed,
        "out": out,
        "resume": resume or None,
    }
    from plugalign.evaluation.comparison.compare import compare as run
    from plugalign.evaluation.comparison.spec import read_spec

    set_ones = {name: value for name, value in given.items() if value is not None}
    chosen = read_spec(spec, set_ones, trust=trust)
    chosen.setdefault("out", default_out(Path.cwd(), resume=chosen.get("resume", False)))
    check_folder(chosen["out"])
    if trust:
        chosen["judges"] = _trusted(chosen.get("judges"))
    _silence_libraries()
    comparison = run(**chosen)
    show(comparison.table())
    show(f"The report: {comparison.report}")


@app.command()
def fit(
    method: Annotated[
        str, typer.Argument(help="What to fit; see plugalign methods. Or judge, for compare.")
    ],
    data: Annotated[
        list[Path], typer.Option(help="JSONL or CSV with labelled texts; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to save the controller or the judge in.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Hub id or folder of the model to steer. For a judge: an encoder to tune, else it "
            "is TF-IDF and a logistic regression."
        ),
    ] = None,
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
    """Train what a controller needs, or a judge. Killed and started again, it continues."""
    pair = options.columns(pairs, "--pairs")
    columns = {"undesired": pair[0], "desired": pair[1]} if pair else {}
    check_folder(out)
    if method == "judge":
        if settings:
            raise ValueError(f"a judge has no settings, got --set {settings[0]}")
        read = {"text": text, "label": label, "limit": limit, **columns}
        _fit_judge(data, out, model, desired, read)
        return
    if model is None:
        raise ValueError(f"fit {method} needs --model, the model to steer")
    from plugalign.fitting.command import fit_files

    _silence_libraries()
    done = fit_files(
        method,
        model,
        data,
        out,
        columns={"text": text, "label": label, **columns},
        limit=limit,
        desired=desired,
        settings=settings or [],
        minutes=minutes,
        dtype=dtype,
        threads=threads,
    )
    show(done)


def _fit_judge(
    data: list[Path], out: Path, encoder: str | None, desired: str | None, read: dict[str, Any]
) -> None:
    from plugalign.fitting.data import load_data
    from plugalign.fitting.judge import fit_judge

    _silence_libraries()
    labelled = load_data(data, **read)
    show(fit_judge(labelled, out, desired=desired, encoder=encoder).describe())


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
    draft_tokens: Annotated[int, typer.Option(min=1, help="Tokens drafted at a time.")] = 4,
    cache: Annotated[
        str, typer.Option(help="dynamic, or static: a GPU then replays whole steps.")
    ] = "dynamic",
    plain_cache: Annotated[str, typer.Option(help="The same for plain generate.")] = "dynamic",
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Behind static caches.")
    ] = True,
    capture: Annotated[
        str,
        typer.Option(
            metavar="auto|on|off",
            help="Whether a GPU replays whole steps; on takes a static cache, on,off times both.",
        ),
    ] = "auto",
    expert_config: Annotated[
        Path | None,
        typer.Option(
            help="A folder with the configuration of dexperts' models. [default: --model]"
        ),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option(help="Of the model's configuration alone; costs are the same.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="CPU threads of torch.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write.")] = None,
) -> None:
    """Time every method beside plain generate, and its parts; nothing needs to be fitted for it."""
    batches, chosen = options.sizes(batch, "--batch"), options.names(methods, "--methods")
    if out is not None:
        check_file(out)
    from transformers import AutoConfig

    from plugalign import pocket
    from plugalign.benchmarking.bench import run_bench
    from plugalign.benchmarking.costs import failures, table
    from plugalign.loading import check_context, load_model, random_model

    _silence_libraries()
    if model is None and random_weights:
        raise ValueError("--random-weights needs --model, whose configuration it takes")
    if model is None:
        loaded, tokenizer = pocket.load()
    else:
        loaded, tokenizer = (random_model if random_weights else load_model)(model)
    check_context(loaded, prompt_tokens + new_tokens)
    costs = run_bench(
        loaded,
        tokenizer,
        chosen,
        batches=batches,
        new_tokens=new_tokens,
        prompt_tokens=prompt_tokens,
        rounds=rounds,
        draft=draft,
        draft_tokens=draft_tokens,
        cache=cache,
        plain_cache=plain_cache,
        compiled=compiled,
        captures=capture.split(","),
        expert_config=None if expert_config is None else AutoConfig.from_pretrained(expert_config),
        threads=threads,
        out=out,
    )
    show(table(costs))
    if failed := failures(costs):
        print(*failed, sep="\n", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def methods() -> None:
    """What is there: each method's name, where it acts, its paper, what it needs fitted."""
    from plugalign.commands.methods_table import table

    show(table())


def default_out(folder: Path, *, resume: bool) -> str:
    """The folder of a run that was given none: the first free number, or the last one to resume."""
    number, last = 1, OUT
    while (folder / (name := OUT if number == 1 else f"{OUT}-{number}")).exists():
        number, last = number + 1, name
    return last if resume else name


def _trusted(judges: list[str] | dict[str, str] | None) -> Any:
    """Judges that may run code as they are loaded; pickles are named first of all."""
    from plugalign.evaluation.judging.load import is_pickle, trusted

    for spec in judges.values() if isinstance(judges, dict) else judges or ():
        if is_pickle(spec):
            show(f"{spec} is a pickle: loading it runs code from that file, as --trust allows")
    return trusted(judges)


def _silence_libraries() -> None:
    """What libraries say to programmers would stand between the user and the progress bar."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
