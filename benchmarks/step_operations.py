"""Where a decoding step's time goes, operation by operation, on a CPU.

For each method a long call is profiled once the loop has recorded its steps, and the processor time
of the operations, without what they call, is summed up by kind, over the whole call and its
tokens. What is left of the processor time of the same call without the profiler is Python and the
way from there to an operation. With the profiler operations take a little longer, views above all,
so where there is next to no Python that can be less than nothing::

    python benchmarks/step_operations.py --model MODEL --methods plain,none --out operations.json
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.profiler import ProfilerActivity, profile

import plugalign as pa
from plugalign.benchmarking.untrained import untrained
from plugalign.evaluation.run_folder.folder import write_json
from plugalign.files.precision import chosen_dtype
from plugalign.fitting.progress import say
from plugalign.loading import load_model

PLAIN, HOST, TOTAL = "plain", "Python", "step"
WARMING = 3  # calls: after 128 steps of a kind the loop records them
# What an operation does, by its name behind the namespace.
KINDS = {
    "weights": ("mm", "addmm", "baddbmm", "bmm", "_linear_pointwise", "linear", "matmul"),
    "packing": ("_reorder_linear_weight",),
    "caches and copies": (
        "cat",
        "copy_",
        "_to_copy",
        "to",
        "clone",
        "contiguous",
        "index",
        "gather",
    ),
    "views": (
        *("view", "as_strided", "slice", "transpose", "t", "reshape", "_unsafe_view", "unsqueeze"),
        *("expand", "select", "narrow", "empty", "empty_strided", "detach", "flatten", "split"),
        *("unbind", "squeeze", "permute", "chunk", "resolve_conj", "lift_fresh", "alias"),
    ),
    "draw": ("sort", "topk", "exponential_", "multinomial", "argmax", "cumsum", "isin", "nonzero"),
}
ATTENTION, OTHER = "attention", "norms, activations, rest"


def kind_of(name: str) -> str:
    """The kind of an operation, by its name in a profile."""
    plain = name.rsplit("::", 1)[-1]
    if "scaled_dot_product" in plain:
        return ATTENTION
    return next((kind for kind, names in KINDS.items() if plain in names), OTHER)


def operations(call: Callable[[], Any], tokens: int) -> dict[str, float]:
    """Milliseconds of processor time a token, by kind; `HOST` and `TOTAL` among them."""
    for _ in range(WARMING):
        call()
    started = time.process_time()
    call()
    whole = 1e3 * (time.process_time() - started) / tokens
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        call()
    found = Counter[str]()
    for event in watched.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / 1e3 / tokens
    return {**found, HOST: whole - sum(found.values()), TOTAL: whole}


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder.")],
    methods: Annotated[str, typer.Option(help="Of bench, and plain for plain generate.")],
    out: Annotated[Path, typer.Option(help="A JSON file to write.")],
    batch: Annotated[int, typer.Option(min=1, help="Prompts.")] = 1,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 64,
    dtype: Annotated[str, typer.Option(help="The precision of the model.")] = "auto",
) -> None:
    """Times each method in one thread."""
    torch.set_num_threads(1)
    base, tokenizer = load_model(model, chosen_dtype(dtype))
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(len(tokenizer) // 2, (batch, 16), generator=draw)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    sampling = {"do_sample": True, "top_p": 0.9, "top_k": 0, "pad_token_id": 0}
    found = {}
    for name in methods.split(","):
        steered = base if name == PLAIN else pa.wrap(base, tokenizer, untrained(name, base))
        call = partial(steered.generate, **inputs, **length, **sampling)
        parts = operations(call, new_tokens)
        found[name] = {kind: round(ms, 2) for kind, ms in parts.items()}
        say(f"{name}: {found[name]}")
        write_json(out, found)


if __name__ == "__main__":
    typer.run(main)
