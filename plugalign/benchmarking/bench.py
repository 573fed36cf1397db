"""What each controller costs per token, beside plain ``generate`` and the bare loop.

Cost does not depend on learned values, so nothing needs to be fitted
(`plugalign.benchmarking.untrained`). Every
round times plain ``generate`` and a method in turn, so a machine that slows down slows both; ratios
are medians over rounds. Only one method's parts are in memory at a time, and one that fails is
reported and leaves the others alone. Where a step's time goes is found out in one more run.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from plugalign.algebra.identity import model_name
from plugalign.benchmarking.costs import Cost, Failed, write
from plugalign.benchmarking.failures import FAILURES, reason
from plugalign.benchmarking.floors import copy_bandwidth, step_bytes
from plugalign.benchmarking.memory import freed, peak_gib
from plugalign.benchmarking.settings import PLAIN_STATIC, Settings
from plugalign.benchmarking.timed_call import (
    Around,
    Generation,
    generation,
    interleaved,
    random_prompts,
    warming_rounds,
)
from plugalign.benchmarking.untrained import untrained
from plugalign.catalogue import UNTRAINED
from plugalign.engine.plan import Plan
from plugalign.generation.chat_format import choose_chat
from plugalign.loading import check_context
from plugalign.threads import torch_threads

PLAIN, NONE = "plain generate", "none"
WATCHED = 24  # tokens of the run that is watched, at most


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
    captures: Sequence[str] = ("auto",),
    expert_config: Any | None = None,
    threads: int | None = None,
    chat: str = "auto",
    system: str | None = None,
    out: Path | None = None,
) -> list[Cost | Failed]:
    """Times every method at every batch size, sampling with top-p 0.9.

    Args:
        methods: names of `plugalign.catalogue.UNTRAINED`, by default all of them;
            "plain_static" is plain ``generate`` with a static cache, which transformers compiles
            on a GPU.
        draft: "base" or "prompt" lets the methods that can verify a draft speculate.
        draft_tokens: at a time.
        cache: of steered calls; plain ``generate`` has ``plain_cache``.
        compiled: whether models behind a static cache are compiled, where transformers would.
        captures: whether a GPU shall replay whole steps: "auto", "on" (which takes a static cache)
            or "off", or several, which are rows of their own.
        expert_config: the configuration of models beside the base; by default the model's.
        threads: CPU threads of torch for the length of the run; None leaves them.
        chat: whether prompts are what a user says in the tokenizer's chat template: "on", "off",
            or "auto", see `plugalign.generation.chat_format`.
        system: a system message in front of them.
        out: a JSON file, rewritten after every method and batch size.

    Returns:
        By batch size, then method, then capture: a cost, or why there is none.

    Raises:
        ValueError: for an unknown method, cache or capture, none at all, counts that are not
            positive, prompts that are longer than the context, or a chat that cannot be.
    """
    methods = list(UNTRAINED) if methods is None else list(methods)
    counts = tuple(batches), new_tokens, prompt_tokens, rounds
    caches = cache, plain_cache, compiled, tuple(captures)
    settings = Settings(*counts, draft, draft_tokens, *caches)
    settings.check(methods)
    choice = choose_chat(model, tokenizer, chat, system)
    around = Around() if choice.format is None else Around(*choice.format.around())
    check_context(model, len(around) + prompt_tokens + new_tokens)
    with torch_threads(threads):
        bench = Bench(model, tokenizer, settings, expert_config, around)
        return _rows(bench, methods, out)


def _rows(bench: Bench, methods: Sequence[str], out: Path | None) -> list[Cost | Failed]:
    """All rows, the bare loop timed first, since others are compared with it."""
    rows: list[Cost | Failed] = []
    order = [NONE, *(method for method in methods if method != NONE)]
    settings = bench.settings

    def place(row: Cost | Failed) -> tuple[int, ...]:
        capture = settings.captures.index(row.capture) if row.capture else 0
        return settings.batches.index(row.batch), methods.index(row.method), capture

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("timing", total=len(order) * len(settings.batches))
        for method in order:
            bar.update(task, description=method)
            for found in bench.rows(method):
                rows += [row for row in found if row.method in methods]
                rows.sort(key=place)
                if out is not None:
                    write(rows, out)
                bar.advance(task)
    return rows


class Bench:
    """A model, how it is timed, and what is known of its bare loop."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: Settings,
        expert_config: Any | None,
        around: Around,
    ):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self._expert_config, self._around = expert_config, around
        plain = generation(None, model, tokenizer)
        self._plain = plain.behind(settings.plain_cache, settings.compiled)
        self._bandwidth = copy_bandwidth(model.device)
        self._loops: dict[tuple[int, str | None], Cost] = {}
        self._conditions = settings.kept | {
            "model": model_name(model),
            "dtype": str(model.dtype).split(".")[-1],
            "device": device_name(model.device),
            "threads": torch.get_num_threads(),
            "expert_config": None if expert_config is None else config_name(expert_config),
            "chat": len(around) > 0,
        }
        self._warm: set[int] = set()  # batch sizes at which plain generate has been warmed up
        if settings.draft is not None:
            self._calls(NONE)  # refuses what is no draft before anything is timed

    def rows(self, method: str) -> Iterator[list[Cost | Failed]]:
        """The rows of a method, those of one batch size after the other. Its parts are made here
        and live as long as this."""
        calls: dict[str, Generation] = {}
        why = None
        try:
            calls = self._calls(method)
        except FAILURES as error:
            why = reason(error)
        for batch in self.settings.batches:
            if why is None:
                yield self._timed(method, batch, calls)
            else:
                yield [Failed(method, batch, None, why)]
        calls.clear()
        freed()

    def _calls(self, method: str) -> dict[str, Generation]:
        """The calls of a method, by what they ask to be captured."""
        settings = self.settings
        if method == PLAIN_STATIC:
            return {method: generation(None, self.model, self.tokenizer).behind("static", True)}
        controller = untrained(method, self.model, self._expert_config)
        call = generation(controller, self.model, self.tokenizer)
        calls = {}
        for capture in settings.captures:
            one = call.behind(settings.cache_of(capture), settings.compiled)
            if settings.draft is not None:
                one = one.drafting(settings.draft, settings.draft_tokens)
            calls[capture] = one.capturing(capture)
        return calls

    def _timed(self, method: str, batch: int, calls: dict[str, Generation]) -> list[Cost | Failed]:
        """A row for each call."""
        settings, rows = self.settings, list[Cost | Failed]()
        prompts = random_prompts(self.model, batch, settings.prompt_tokens, self._around)
        warming = dict.fromkeys(calls, warming_rounds(settings.new_tokens, self.model.device))
        warming[PLAIN] = 0 if batch in self._warm else 1
        peak_gib(self.model.device)
        found = interleaved(
            {PLAIN: self._plain} | calls, prompts, settings.new_tokens, settings.rounds, warming
        )
        self._warm.add(batch)
        beside: dict[str, Any] = {"batch": batch, "peak_gib": peak_gib(self.model.device)}
        beside |= {"warmed_tokens": settings.new_tokens * max(warming.values())}
        for name, call in calls.items():
            capture = name if call.steered else None
            why = found.failed.get(PLAIN, found.failed.get(name))
            if why is None:
                try:
                    parts = self._watched(call, prompts, capture)
                except FAILURES as error:
                    why = reason(error)
            if why is not None:
                rows.append(Failed(method, batch, capture, why))
                continue
            seconds = found.seconds[name], found.seconds[PLAIN]
            rows.append(self._cost(method, capture, *seconds, beside | parts))
        freed()
        return rows

    def _watched(
        self, call: Generation, prompts: dict[str, Tensor], capture: str | None
    ) -> dict[str, Any]:
        """What is known of a call beside its time, as fields of a `Cost`."""
        settings, batch = self.settings, len(prompts["input_ids"])
        kept = call.acceptance()
        parts = call.parts(prompts, min(settings.new_tokens, WATCHED))
        call.acceptance()  # of the run that was watched, which no row reports
        loop = self._loops.get((batch, capture))
        floor = self._floor(call, batch)
        return apart(parts, loop) | call.drafts | {"acceptance": kept, "floor_ms": floor}

    def _cost(
        self,
        method: str,
        capture: str | None,
        seconds: Sequence[float],
        plain: Sequence[float],
        beside: dict[str, Any],
    ) -> Cost:
        """The row of a call: its and plain ``generate``'s seconds by round, and other fields."""
        batch, floor = beside["batch"], beside["floor_ms"]
        ratios = [mine / other for mine, other in zip(seconds, plain, strict=True)]
        ratio, key = statistics.median(ratios), (batch, capture)
        step, of_plain = (
            1000 * statistics.median(times) / self.settings.new_tokens for times in (seconds, plain)
        )
        cost = Cost(
            method=method,
            capture=capture,
            cache=self.settings.cache_of(capture),
            compiled=self.settings.compiled_of(capture),
            ms_per_token=step / batch,
            plain_ms_per_token=of_plain / batch,
            ratio_to_plain=ratio,
            low=min(ratios),
            high=max(ratios),
            ratio_to_loop=None,
            floor_share=floor and floor / step,
            **beside,
            **self._conditions,
        )
        if method == NONE:
            self._loops[key] = cost
        if key not in self._loops:
            return cost
        return replace(cost, ratio_to_loop=ratio / self._loops[key].ratio_to_plain)

    def _floor(self, call: Generation, batch: int) -> float | None:
        """The least milliseconds of a step in the middle of a call; None where controllers do more
        than steps, or as many steps are made as drafts fail."""
        columns = len(self._around) + self.settings.prompt_tokens + self.settings.new_tokens // 2
        plan = call.generator.plan if call.steered else Plan(())
        if call.acts_beyond_steps or call.speculation is not None:
            return None
        read = step_bytes(self.model, plan, batch, columns)
        return None if read is None else 1000 * read / self._bandwidth


def apart(parts: dict[str, Any], loop: Cost | None) -> dict[str, Any]:
    """Of a forward with more rows than the base's, what the base alone takes is the base's, and
    what it takes longer is the rows'."""
    together = parts["rows_ms"]
    if not together or loop is None or loop.base_ms is None:
        return parts
    alone = min(together, loop.base_ms)
    return parts | {"base_ms": alone, "rows_ms": together - alone}


def config_name(config: Any) -> str:
    """The name of a configuration: its hub id or folder without the path, or its class."""
    return Path(config.name_or_path).name or type(config).__name__


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
