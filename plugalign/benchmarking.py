"""What each controller costs per token, as a ratio to plain ``generate`` in the same run.

Cost does not depend on learned values, so nothing needs to be fitted: `untrained` makes parts of
the right shape for any model. Every round times plain ``generate`` and every method in turn, so a
machine that slows down slows all of them; the ratio is the median over rounds.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from plugalign.controller import Controller
from plugalign.controllers.dexperts import DExperts, shared_copy
from plugalign.controllers.fudge import Fudge, Predictor
from plugalign.controllers.fudge_head import FudgeHead
from plugalign.controllers.nullspace import Nullspace
from plugalign.controllers.prefix_tuning import PrefixTuning
from plugalign.controllers.self_critique import SelfCritique
from plugalign.controllers.self_debias import SelfDebias
from plugalign.identity import model_name
from plugalign.wrapping import wrap

RANK = 16  # of adapters, heads and removed subspaces
PREFIX_LENGTH = 10
DEBIAS_PROMPTS = ("The following text is rude:\n", "The following text is a threat:\n")


@dataclass(frozen=True)
class Cost:
    """One method at one batch size.

    Attributes:
        ms_per_token: median wall-clock milliseconds per new token of one row.
        ratio_to_plain: median over rounds of the method's time over plain ``generate``'s.
        low, high: the smallest and the largest of these ratios.
    """

    method: str
    batch: int
    ms_per_token: float
    ratio_to_plain: float
    low: float
    high: float
    rounds: int
    new_tokens: int
    prompt_tokens: int
    model: str
    dtype: str
    device: str
    threads: int


def untrained(method: str, model: Any, tokenizer: Any) -> Controller | None:
    """A controller with random parts of the right shape for ``model``; None for "none".

    Raises:
        ValueError: for an unknown method; names the known ones.
    """
    if method not in MAKERS:
        raise ValueError(f"unknown method '{method}'; known are {', '.join(MAKERS)}")
    return MAKERS[method](model)


def run_bench(
    model: Any,
    tokenizer: Any,
    methods: Sequence[str] | None = None,
    *,
    batches: Sequence[int] = (1, 8),
    new_tokens: int = 32,
    prompt_tokens: int = 16,
    rounds: int = 5,
    threads: int | None = None,
    out: Path | None = None,
) -> list[Cost]:
    """Times every method at every batch size, interleaved, sampling with top-p 0.9.

    Args:
        threads: CPU threads of torch for the length of the run; None leaves them.
        out: a JSON file, rewritten after every batch size.

    Raises:
        ValueError: for an unknown method, or counts that are not positive.
    """
    methods = list(MAKERS) if methods is None else list(methods)
    settings = {"new_tokens": new_tokens, "prompt_tokens": prompt_tokens, "rounds": rounds}
    for name, value in [*settings.items(), *(("batch", b) for b in batches)]:
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        calls = {m: generation(untrained(m, model, tokenizer), model, tokenizer) for m in methods}
        conditions = {
            **settings, "model": model_name(model), "dtype": str(model.dtype).split(".")[-1],
            "device": device_name(model.device), "threads": torch.get_num_threads(),
        }  # fmt: skip
        costs: list[Cost] = []
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("timing", total=len(batches) * (rounds + 1) * (len(calls) + 1))
            for batch in batches:
                plain = generation(None, model, tokenizer)
                prompts = random_prompts(model, batch, prompt_tokens)
                times = _times({"": plain, **calls}, prompts, new_tokens, rounds, bar, task)
                costs += [_cost(m, batch, times, conditions) for m in methods]
                if out is not None:
                    write(costs, out)
        return costs
    finally:
        torch.set_num_threads(before)


def table(costs: Sequence[Cost]) -> Table:
    """The costs as a terminal table, one row a method."""
    batches = list(dict.fromkeys(c.batch for c in costs))
    grid = Table(title=f"cost per token on {costs[0].model} ({costs[0].device})")
    grid.add_column("method")
    for batch in batches:
        grid.add_column(f"ms/token, batch {batch}", justify="right")
        grid.add_column("x plain", justify="right")
    for method in dict.fromkeys(c.method for c in costs):
        rows = [c for c in costs if c.method == method]
        cells = [
            text
            for c in rows
            for text in (
                f"{c.ms_per_token:.2f}",
                f"{c.ratio_to_plain:.2f} [{c.low:.2f}, {c.high:.2f}]",
            )
        ]
        grid.add_row(method, *cells)
    return grid


def write(costs: Sequence[Cost], out: Path) -> None:
    """Writes the costs as JSON, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps([asdict(c) for c in costs], indent=2) + "\n", encoding="utf-8")
    os.replace(part, out)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


# --------------------------------------------------------------------------- timing

Generate = Callable[[dict[str, Tensor], int], Any]


def generation(controller: Controller | None, model: Any, tokenizer: Any) -> Generate:
    """``call(prompts, new_tokens)``: exactly so many tokens a row, sampled with top-p 0.9."""
    steered: Any = model if controller is None else wrap(model, tokenizer, controller)
    pad = model.generation_config.pad_token_id
    pad = pad if pad is not None else tokenizer.pad_token_id or 0

    def run(prompts: dict[str, Tensor], new_tokens: int) -> Any:
        return steered.generate(
            **prompts, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=True,
            top_p=0.9, top_k=0, pad_token_id=pad,
        )  # fmt: skip

    return run


def _times(
    calls: dict[str, Generate],
    prompts: dict[str, Tensor],
    new_tokens: int,
    rounds: int,
    bar: Progress,
    task: Any,
) -> dict[str, list[float]]:
    """Seconds of every call in every round; the first round only warms up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            torch.manual_seed(turn)
            start = _now(prompts["input_ids"].device)
            call(prompts, new_tokens)
            if turn:
                times[name].append(_now(prompts["input_ids"].device) - start)
            bar.update(
                task, advance=1, description=f"{name or 'plain'}, batch {len(prompts['input_ids'])}"
            )
    return times


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _cost(
    method: str, batch: int, times: dict[str, list[float]], conditions: dict[str, Any]
) -> Cost:
    ratios = [mine / plain for mine, plain in zip(times[method], times[""], strict=True)]
    per_token = 1000 * statistics.median(times[method]) / (batch * conditions["new_tokens"])
    return Cost(
        method=method, batch=batch, ms_per_token=per_token,
        ratio_to_plain=statistics.median(ratios), low=min(ratios), high=max(ratios), **conditions,
    )  # fmt: skip


def random_prompts(model: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Token ids ``(batch, length)`` without padding; the low ids, often special, are left out."""
    vocab = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(vocab // 10, vocab, (batch, length), generator=generator)
    ids = ids.to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


# --------------------------------------------------------------------------- untrained parts


def _twin(model: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(model.config, dtype=model.dtype).to(model.device).eval()


def _adapted(model: Any, seed: int) -> Any:
    """What a merged LoRA adapter is: the base with other weights in its linear layers."""
    generator = torch.Generator().manual_seed(seed)
    twin, head = shared_copy(model), model.get_output_embeddings().weight
    for module in twin.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or isinstance(module, nn.Embedding):
            continue
        if weight.data_ptr() != head.data_ptr():
            down, up = (torch.randn(RANK, n, generator=generator) for n in weight.shape)
            change = (0.01 * down.T @ up).to(weight.device, weight.dtype)
            module.weight = nn.Parameter(weight + change, requires_grad=False)
    return twin


def _fudge_head(model: Any) -> FudgeHead:
    vocab, hidden = model.get_output_embeddings().weight.shape
    generator = torch.Generator().manual_seed(0)
    shapes = ((hidden, RANK), (hidden, RANK), (vocab,), (hidden,))
    left, right, token_bias, state = (torch.randn(s, generator=generator) for s in shapes)
    return FudgeHead(0.1 * left, 0.1 * right, token_bias, 0.1 * state, 0.0)


def _nullspace(model: Any) -> Nullspace:
    hidden = model.get_output_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(hidden, min(RANK, hidden), generator=generator)).Q
    return Nullspace(basis)


def _prefix(model: Any) -> PrefixTuning:
    ids = torch.arange(PREFIX_LENGTH, device=model.device)[None]
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    layers = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    return PrefixTuning(torch.stack(layers).float())


MAKERS: dict[str, Callable[[Any], Controller | None]] = {
    "none": lambda model: 0 * SelfDebias(DEBIAS_PROMPTS),
    "fudge": lambda model: Fudge(Predictor(model.get_output_embeddings().weight.shape[0])),
    "fudge_head": _fudge_head,
    "dexperts": lambda model: DExperts(_twin(model, 1), _twin(model, 2)),
    "dexperts_lora": lambda model: DExperts(_adapted(model, 1), _adapted(model, 2)),
    "self_debias": lambda model: SelfDebias(DEBIAS_PROMPTS),
    "nullspace": _nullspace,
    "prefix": _prefix,
    "self_critique": lambda model: SelfCritique(threshold=0.0),  # every answer is rewritten
}
