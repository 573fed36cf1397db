"""``plugalign bench``: what every method costs per token, beside plain ``generate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from plugalign.commands import options
from plugalign.commands.console import quiet_libraries, show
from plugalign.files.folders import check_file

Model = Annotated[str | None, typer.Option(help="Hub id or folder. [default: the pocket model]")]
Methods = Annotated[str | None, typer.Option(metavar="A,B", help="Which to time. [default: all]")]
Batch = Annotated[str, typer.Option(metavar="N,M", help="Batch sizes.")]
NewTokens = Annotated[int, typer.Option(help="New tokens a row.")]
PromptTokens = Annotated[
    int, typer.Option(help="Length of the prompts, without a chat's own tokens.")
]
Rounds = Annotated[int, typer.Option(help="Times everything so often, in turn.")]
Draft = Annotated[
    str | None, typer.Option(help="Speculate: base (without controllers) or prompt (look up).")
]
DraftTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens drafted at a time. [default: 4]")
]
Cache = Annotated[str, typer.Option(help="dynamic, or static: a GPU then replays whole steps.")]
PlainCache = Annotated[str, typer.Option(help="The same for plain generate.")]
Compiled = Annotated[bool, typer.Option("--compile/--no-compile", help="Behind static caches.")]
Capture = Annotated[
    str,
    typer.Option(
        metavar="auto|on|off",
        help="Whether a GPU replays whole steps; on takes a static cache, on,off times both.",
    ),
]
ExpertConfig = Annotated[
    Path | None,
    typer.Option(
        help="A folder with the configuration of models beside the base. [default: --model]"
    ),
]
RandomWeights = Annotated[
    bool, typer.Option(help="Of the model's configuration alone; costs are the same.")
]
Out = Annotated[Path | None, typer.Option(help="A JSON file to write.")]


def bench(
    model: Model = None,
    methods: Methods = None,
    batch: Batch = "1,8",
    new_tokens: NewTokens = 32,
    prompt_tokens: PromptTokens = 16,
    rounds: Rounds = 5,
    draft: Draft = None,
    draft_tokens: DraftTokens = None,
    cache: Cache = "dynamic",
    plain_cache: PlainCache = "dynamic",
    compiled: Compiled = True,
    capture: Capture = "auto",
    expert_config: ExpertConfig = None,
    random_weights: RandomWeights = False,
    chat: options.Chat = "auto",
    system: options.System = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    out: Out = None,
) -> None:
    """Time every method beside plain generate, and its parts; nothing needs to be fitted for it."""
    batches, chosen = options.sizes(batch, "--batch"), options.names(methods, "--methods")
    if draft_tokens is not None and draft is None:
        raise ValueError(f"--draft-tokens {draft_tokens} has no use without --draft base or prompt")
    if out is not None:
        check_file(out)
    from plugalign.benchmarking.bench import run_bench
    from plugalign.benchmarking.costs import failures, table

    quiet_libraries()
    loaded, tokenizer = _loaded(model, dtype, random_weights=random_weights)
    costs = run_bench(
        loaded,
        tokenizer,
        chosen,
        batches=batches,
        new_tokens=new_tokens,
        prompt_tokens=prompt_tokens,
        rounds=rounds,
        draft=draft,
        draft_tokens=4 if draft_tokens is None else draft_tokens,
        cache=cache,
        plain_cache=plain_cache,
        compiled=compiled,
        captures=capture.split(","),
        expert_config=None if expert_config is None else _config(expert_config),
        threads=threads,
        chat=chat,
        system=system,
        out=out,
    )
    show(table(costs))
    if failed := failures(costs):
        print(*failed, sep="\n", file=sys.stderr)
        raise typer.Exit(1)


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    from plugalign.files.pretrained import loading

    with loading("the configuration", folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _loaded(model: str | None, dtype: str, *, random_weights: bool) -> tuple[Any, Any]:
    """The model that is timed, and its tokenizer."""
    from plugalign.files.precision import chosen_dtype
    from plugalign.loading import random_model, resolve_model

    if not random_weights:
        return resolve_model(model, None, dtype)
    if model is None:
        raise ValueError("--random-weights needs --model, whose configuration it takes")
    return random_model(model, chosen_dtype(dtype))
