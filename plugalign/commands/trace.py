"""``plugalign trace``: what was changed at every token, by which controller."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plugalign.commands import compare as shared
from plugalign.commands import options
from plugalign.commands.console import quiet_libraries, show

OUT = "plugalign-trace"
GIVEN = (  # to the function as they are
    *("model", "prompts", "chat", "system", "limit", "stratum", "store_prompts", "samples"),
    *("max_new_tokens", "temperature", "top_p", "batch_size", "seed", "resume", "dtype"),
)
REPLAYED = ("replay", "model", "prompts", "controllers", "dtype", "threads")

Controllers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FOLDER",
        help="A controller; may be repeated: all steer together.",
        show_default="two of the pocket world",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME.SETTING=VALUE", help="In place of the saved one."),
]
Stratum = Annotated[
    str | None, typer.Option(metavar="FIELD", help="The prompts' field that names their stratum.")
]
Risk = Annotated[
    str | None, typer.Option(metavar="JUDGE", help="Sorts prompts into strata by its score.")
]
Cuts = Annotated[
    str | None, typer.Option(metavar="A,B", help="Where scores are cut.", show_default="0.5")
]
StorePrompts = Annotated[
    bool, typer.Option("--store-prompts", help="Write prompts down; else only their hashes.")
]
Samples = Annotated[int, typer.Option(help="Answers to a prompt.")]
NewTokens = Annotated[int, typer.Option(help="Length of an answer in tokens.")]
Verify = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Check a trace.jsonl: was a line changed or removed?"),
]
Replay = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Run a trace.jsonl again: are the tokens the same?"),
]
Out = Annotated[
    str | None, typer.Option(help="Folder to write.", show_default=f"{OUT}, {OUT}-2, ...")
]


def trace(
    context: typer.Context,
    controllers: Controllers = None,
    model: shared.Model = None,
    prompts: shared.Prompts = None,
    chat: options.Chat = "auto",
    system: options.System = None,
    limit: shared.Limit = None,
    settings: Set = None,
    stratum: Stratum = None,
    risk: Risk = None,
    cuts: Cuts = None,
    store_prompts: StorePrompts = False,
    samples: Samples = 1,
    max_new_tokens: NewTokens = 20,
    temperature: Annotated[float, typer.Option()] = 1.0,
    top_p: Annotated[float, typer.Option()] = 0.9,
    batch_size: Annotated[int, typer.Option(help="Answers at a time.")] = 16,
    seed: Annotated[int, typer.Option()] = 0,
    out: Out = None,
    resume: shared.Resume = False,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    trust: shared.Trust = False,
    verify: Verify = None,
    replay: Replay = None,
) -> None:
    """Record what controllers change at every token, as it goes, in a file that shows tampering."""
    given = options.named(controllers, "--controllers")
    if verify is not None:
        options.refuse_others(context, "--verify", ("verify",))
        _verify(verify)
        return
    if replay is not None:
        options.refuse_others(context, "--replay", REPLAYED)
        _replay(replay, model, prompts, given, dtype, threads)
        return
    chosen: dict[str, Any] = {
        "settings": options.settings(settings, "--set"),
        "cuts": options.shares(cuts, "--cuts"),
        "out": shared.run_folder(out, OUT, resume=resume),
    }
    chosen |= {name: context.params[name] for name in GIVEN}
    quiet_libraries()
    from plugalign.threads import torch_threads
    from plugalign.values.account.tracing import trace as run

    with torch_threads(threads):
        found = run(given, risk=_judge(risk, trust), **chosen)
    show(f"{found.answers} answers of {found.tokens} tokens are in {found.file}")
    show(f"Its last hash, to be kept elsewhere: {found.head}")
    show(f"The page: {found.page}")


def _verify(path: Path) -> None:
    from plugalign.values.account.reading import verify

    found = verify(path)
    show(f"{found.lines} lines, {found.answers} answers of {found.tokens} tokens: the chain holds")
    show(f"Its last hash: {found.head}")
    if not found.complete:
        raise ValueError(
            f"{path} has no last line: the run was stopped, or lines were removed at the end"
        )


def _replay(
    path: Path,
    model: str | None,
    prompts: str | None,
    controllers: dict[str, str] | None,
    dtype: str,
    threads: int | None,
) -> None:
    quiet_libraries()
    from plugalign.threads import torch_threads
    from plugalign.values.account.replay import replay

    with torch_threads(threads):
        found = replay(path, model=model, prompts=prompts, controllers=controllers, dtype=dtype)
    show(str(found))
    if found.same < found.answers:
        raise typer.Exit(1)


def _judge(spec: str | None, trust: bool) -> Any:
    if spec is None or not trust:
        return spec
    return shared.trusted_judges([spec])[0]
