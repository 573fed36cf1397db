"""``plugalign compare``: several ways to steer one model, on the same prompts and noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from plugalign.catalogue import ALONE
from plugalign.commands import options
from plugalign.commands.console import quiet_libraries, show
from plugalign.files.folders import check_folder
from plugalign.files.shown import shown_path

OUT = "plugalign-compare"

# What is not given is left to the spec file, and what that leaves out to the function's own
# defaults.
Spec = Annotated[Path | None, typer.Option(help="A YAML file of these options; given ones win.")]
Model = Annotated[
    str | None, typer.Option(help="Hub id or folder.", show_default="the pocket model")
]
Prompts = Annotated[
    str | None,
    typer.Option(help='JSONL or CSV with a "text" or "messages" field, or text file.'),
]
Chat = Annotated[
    str | None,
    typer.Option(
        metavar="auto|on|off",
        help="Prompts as the user's turn of the tokenizer's chat template; auto: for instruct "
        "models, and for messages.",
        show_default="auto",
    ),
]
Limit = Annotated[int | None, typer.Option(help="Only so many of the first prompts.")]
Methods = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help=f"Methods to compare. {', '.join(ALONE)} need nothing fitted: name them here.",
        show_default="those of --controllers; on the pocket world all",
    ),
]
Controllers = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=FOLDER", help="A fitted controller; may be repeated."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="METHOD.SETTING=VALUE,…",
        help="A setting in place of the saved one, such as dexperts.alpha=1; with several values "
        "each is a row. May be repeated.",
    ),
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
PerplexityModel = Annotated[
    str | None, typer.Option(help="Hub id or folder of an outside model: a second perplexity.")
]
Agreement = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]FILE",
        help="Texts with reference scores, to check judges; may be repeated, and added later.",
    ),
]
HumanTexts = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Texts by humans, to measure the gap to them."),
]
HumanLabels = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help='Lines of the run\'s generations.jsonl with a field "label" more: 1 for what judges '
        "look for. Corrects the judges; given with --resume.",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(help="Answers to a prompt.", show_default="25, pocket 4, 1 where none is drawn"),
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
TopK = Annotated[int | None, typer.Option(help="0 keeps all tokens.", show_default="0")]
Greedy = Annotated[bool, typer.Option("--greedy", help="The most probable token, none is drawn.")]
NumBeams = Annotated[
    int | None, typer.Option(help="Beams of a beam search; none is drawn.", show_default="1")
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1: against repetition.", show_default="1.0")
]
BatchSize = Annotated[
    int | None, typer.Option(help="Answers at a time.", show_default="32, pocket 50")
]
Seed = Annotated[int | None, typer.Option(show_default="0")]
Out = Annotated[
    str | None, typer.Option(help="Folder to write.", show_default=f"{OUT}, {OUT}-2, ...")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="auto|bfloat16|float16|float32",
        help="The precision of the models.",
        show_default="auto",
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Judges may run code: .joblib files, and what a spec names."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in OUT where it stopped.")]


def compare(
    context: typer.Context,
    spec: Spec = None,
    model: Model = None,
    prompts: Prompts = None,
    limit: Limit = None,
    chat: Chat = None,
    system: options.System = None,
    methods: Methods = None,
    controllers: Controllers = None,
    settings: Set = None,
    judge: Judges = None,
    scorer: Scorer = None,
    perplexity_model: PerplexityModel = None,
    agreement: Agreement = None,
    human_texts: HumanTexts = None,
    human_labels: HumanLabels = None,
    samples: Samples = None,
    max_new_tokens: NewTokens = None,
    min_new_tokens: MinNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    greedy: Greedy = False,
    num_beams: NumBeams = None,
    repetition_penalty: RepetitionPenalty = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    out: Out = None,
    dtype: Dtype = None,
    threads: options.Threads = None,
    resume: Resume = False,
    trust: Trust = False,
) -> None:
    """Compare methods on one model, prompts and noise; without options, on the pocket world."""
    _check_fitted(controllers)
    given = context.params | {  # all options by name; these hold several things
        "agreement": options.references(agreement),
        "methods": options.names(methods, "--methods"),
        "controllers": options.named(controllers, "--controllers"),
        "settings": options.settings(settings, "--set"),
        "judges": options.judges(judge),
        "greedy": greedy or None,
        "resume": resume or None,
    }
    for name in ("spec", "judge", "trust"):
        del given[name]
    chosen = chosen_options(spec, given, trust=trust)
    from plugalign.evaluation.comparison.compare import compare as run

    quiet_libraries()
    comparison = run(**chosen, command=options.command_line())
    show(comparison.table())
    show(f"The report: {comparison.report}")


def _check_fitted(controllers: Sequence[str] | None) -> None:
    """Raises a ValueError for a method that needs nothing fitted, where folders are wanted."""
    for name in ",".join(controllers or ()).split(","):
        if name.strip() in ALONE:
            raise ValueError(
                f"--controllers takes NAME=FOLDER, and {name.strip()} needs no folder; pass "
                f"--methods {name.strip()}"
            )


def chosen_options(
    spec: Path | None, given: dict[str, Any], *, trust: bool, usual_out: str = OUT
) -> dict[str, Any]:
    """The arguments of `plugalign.compare`: what was given, else what the spec says.

    Args:
        given: by name; None is not given.
        usual_out: see `run_folder`.

    Raises:
        ValueError: naming an option that cannot be.
    """
    from plugalign.evaluation.comparison.spec import read_spec

    typed = {name: value for name, value in given.items() if value is not None}
    chosen = read_spec(spec, typed, trust=trust)
    resume = chosen.get("resume", False)
    chosen["out"] = str(run_folder(chosen.get("out"), usual_out, resume=resume))
    if trust:
        chosen["judges"] = trusted_judges(chosen.get("judges"))
    return chosen


def run_folder(out: str | Path | None, usual: str, *, resume: bool) -> Path:
    """The folder of a run, see `default_out`; one to resume must be there.

    Raises:
        ValueError: naming the folder that cannot be.
    """
    given = default_out(Path.cwd(), usual, resume=resume) if out is None else out
    folder = check_folder(given)
    if resume and not folder.is_dir():
        raise ValueError(
            f"there is no run in {shown_path(folder)} to continue; name its folder, or leave "
            "--resume out to begin one"
        )
    return folder


def default_out(folder: Path, usual: str = OUT, *, resume: bool) -> str:
    """The folder of a run that was given none: the first free number, or the last one to resume."""
    number, last = 1, usual
    while (folder / (name := usual if number == 1 else f"{usual}-{number}")).exists():
        number, last = number + 1, name
    return last if resume else name


def trusted_judges(judges: list[str] | dict[str, str] | None) -> Any:
    """Judges that may run code as they are loaded; pickles are named first of all."""
    from plugalign.evaluation.judging.load import is_pickle, trusted

    for spec in judges.values() if isinstance(judges, dict) else judges or ():
        if is_pickle(spec):
            show(f"{spec} is a pickle: loading it runs code from that file, as --trust allows")
    return trusted(judges)
