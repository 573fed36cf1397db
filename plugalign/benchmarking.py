"""What each controller costs per token, beside plain ``generate`` and the bare loop.

Cost does not depend on learned values, so nothing needs to be fitted (`plugalign.untrained`). Every
round times plain ``generate``, the bare loop and every method in turn, so a machine that slows down
slows all of them; ratios are medians over rounds. Where a step's time goes is found out in one more
run of each.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from plugalign.controller import Controller
from plugalign.costs import Cost, write
from plugalign.engine.drafting import Speculation
from plugalign.engine.recording import PATIENCE, PROOFS
from plugalign.engine.routing import REPLAYED
from plugalign.identity import model_name
from plugalign.stopwatch import timed
from plugalign.untrained import MAKERS, untrained
from plugalign.wrapping import wrap


def run_bench(
    model: Any,
    tokenizer: Any,
    methods: Sequence[str] | None = None,
    *,
    batches: Sequence[int] = (1, 8),
    new_tokens: int = 32,
    prompt_tokens: int = 16,
    rounds: int = 5,
    draft: str | None = None,
    draft_tokens: int = 4,
    cache: str = "dynamic",
    plain_cache: str = "dynamic",
    compiled: bool = True,
    threads: int | None = None,
    out: Path | None = None,
) -> list[Cost]:
    """Times every method at every batch size, interleaved, sampling with top-p 0.9.

    Args:
        draft: "base" or "prompt" lets the methods that can verify a draft speculate.
        draft_tokens: at a time.
        cache: "static" lets a GPU replay whole steps; plain ``generate`` has ``plain_cache``.
        compiled: whether models behind a static cache are compiled, where transformers would.
        threads: CPU threads of torch for the length of the run; None leaves them.
        out: a JSON file, rewritten after every batch size.

    Raises:
        ValueError: for an unknown method or cache, or counts that are not positive.
    """
    methods = list(MAKERS) if methods is None else list(methods)
    settings = {"new_tokens": new_tokens, "prompt_tokens": prompt_tokens, "rounds": rounds}
    _check([*settings.items(), *(("batch", b) for b in batches)], cache, plain_cache)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        made = {name: untrained(name, model, tokenizer) for name in ("none", *methods)}
        steered = {
            name: generation(controller, model, tokenizer).behind(cache, compiled)
            for name, controller in made.items()
        }
        plain = generation(None, model, tokenizer).behind(plain_cache, compiled)
        calls = {PLAIN: plain, LOOP: steered["none"], **{m: steered[m] for m in methods}}
        if draft is not None:
            calls |= {m: calls[m].drafting(draft, draft_tokens) for m in methods}
        conditions = {
            **settings, "cache": cache, "plain_cache": plain_cache, "compiled": compiled,
            "model": model_name(model), "dtype": str(model.dtype).split(".")[-1],
            "device": device_name(model.device), "threads": torch.get_num_threads(),
        }  # fmt: skip
        costs: list[Cost] = []
        with Progress(console=Console(stderr=True), transient=True) as bar:
            turns = rounds + _warming(new_tokens)
            task = bar.add_task("timing", total=len(batches) * turns * len(calls))
            for batch in batches:
                prompts = random_prompts(model, batch, prompt_tokens)
                times = _times(calls, prompts, new_tokens, rounds, bar, task)
                for method in methods:
                    parts = calls[method].parts(prompts, new_tokens)
                    conditions["acceptance"] = calls[method].acceptance()
                    costs.append(_cost(method, batch, times, parts, conditions))
                if out is not None:
                    write(costs, out)
        return costs
    finally:
        torch.set_num_threads(before)


def _check(counts: Sequence[tuple[str, int]], *caches: str) -> None:
    for name, value in counts:
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for kind in caches:
        if kind not in CACHES:
            raise ValueError(f"cache must be {' or '.join(CACHES)}, got '{kind}'")


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


# --------------------------------------------------------------------------- timing

PLAIN, LOOP = "plain generate", "the bare loop"  # beside the methods' names
CACHES = ("dynamic", "static")


@dataclass(frozen=True)
class Generation:
    """``generate`` of a model, steered or not: so many tokens a row, sampled with top-p 0.9."""

    generator: Any
    base: Any
    pad: int
    speculation: Speculation | None = None
    cache: dict[str, Any] = field(default_factory=dict)  # arguments of generate

    def __call__(self, prompts: dict[str, Tensor], new_tokens: int) -> Any:
        drafted = {} if self.speculation is None else {"speculation": self.speculation}
        return self.generator.generate(**prompts, **drafted, **self._options(new_tokens))

    def drafting(self, draft: str, tokens: int) -> Generation:
        """The same with a draft, where one can be verified."""
        prompts, told = random_prompts(self.base, 1, 2), Speculation(draft, tokens)
        try:
            replace(self, speculation=told)(prompts, 2)
        except ValueError:
            return self
        return replace(self, speculation=told)

    def behind(self, cache: str, compiled: bool) -> Generation:
        """The same with a cache of this kind."""
        static = {"cache_implementation": "static", "disable_compile": not compiled}
        return replace(self, cache=static if cache == "static" else {})

    def acceptance(self) -> float | None:
        """The part of the drafted tokens that stayed since the last call, None without drafts."""
        told = self.speculation
        if told is None or not told.drafted:
            return None
        part, told.drafted, told.accepted = told.acceptance, 0, 0
        return part

    def parts(self, prompts: dict[str, Tensor], new_tokens: int) -> dict[str, Any]:
        """The path of a steered call and where its time goes, as fields of a `Cost`."""
        explained = self.generator.explain(**prompts, **self._options(new_tokens))
        loop = explained.startswith("the owned loop")
        with timed(self.base, loop) as watch:
            self(prompts, new_tokens)
        times = {f"{part}_ms": 1000 * t / new_tokens for part, t in watch.seconds.items()}
        path = "graph" if REPLAYED in explained else "loop"
        return {"path": path if loop else "processor", **times}

    def _options(self, new_tokens: int) -> dict[str, Any]:
        return {
            "max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": True,
            "top_p": 0.9, "top_k": 0, "pad_token_id": self.pad, **self.cache,
        }  # fmt: skip


def generation(controller: Controller | None, model: Any, tokenizer: Any) -> Generation:
    """``call(prompts, new_tokens)``: the model under a controller, or its plain ``generate``."""
    steered: Any = model if controller is None else wrap(model, tokenizer, controller)
    pad = model.generation_config.pad_token_id
    return Generation(steered, model, pad if pad is not None else tokenizer.pad_token_id or 0)


def _times(
    calls: dict[str, Generation],
    prompts: dict[str, Tensor],
    new_tokens: int,
    rounds: int,
    bar: Progress,
    task: Any,
) -> dict[str, list[float]]:
    """Seconds of every call in every round; the first rounds only warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(1 - _warming(new_tokens), rounds + 1):
        for name, call in calls.items():
            torch.manual_seed(abs(turn))
            start = _now(prompts["input_ids"].device)
            call(prompts, new_tokens)
            if turn > 0:
                times[name].append(_now(prompts["input_ids"].device) - start)
            bar.update(task, advance=1, description=f"{name}, batch {len(prompts['input_ids'])}")
    return times


def _warming(new_tokens: int) -> int:
    """Rounds until the loop has recorded its steps."""
    return -(-(PATIENCE + PROOFS + 2) // new_tokens)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _cost(
    method: str,
    batch: int,
    times: dict[str, list[float]],
    parts: dict[str, Any],
    conditions: dict[str, Any],
) -> Cost:
    ratios, to_loop = (
        [mine / other for mine, other in zip(times[method], times[beside], strict=True)]
        for beside in (PLAIN, LOOP)
    )
    per_token = 1000 * statistics.median(times[method]) / (batch * conditions["new_tokens"])
    return Cost(
        method=method, batch=batch, ms_per_token=per_token,
        ratio_to_plain=statistics.median(ratios), low=min(ratios), high=max(ratios),
        ratio_to_loop=statistics.median(to_loop), **parts, **conditions,
    )  # fmt: skip


def random_prompts(model: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Token ids ``(batch, length)`` without padding; the low ids, often special, are left out."""
    vocab = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(vocab // 10, vocab, (batch, length), generator=generator)
    ids = ids.to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
