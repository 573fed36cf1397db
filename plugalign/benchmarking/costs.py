"""What a method costs, as a row of a table and of a JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from plugalign.files.replacing import replace_text


@dataclass(frozen=True)
class Cost:
    """One method at one batch size.

    Attributes:
        ms_per_token: median wall-clock milliseconds of a call over all its new tokens, those of
            every row.
        ratio_to_plain: median over rounds of the method's time over plain ``generate``'s.
        low, high: the smallest and the largest of these ratios.
        ratio_to_loop: ``ratio_to_plain`` over that of our loop without a controller, captured or
            not like this one; None where the loop failed.
        path: "loop", "graph" (the loop, whose steps are replayed on a GPU), "processor", or
            "generate" for the model's own.
        base_ms, rows_ms, auxiliary_ms, tail_ms, host_ms: milliseconds of a step of the whole batch,
            in one more run that is watched, step by step: the forward of the base alone, what it
            takes longer with the rows of prompts and experts in it, other forwards, reweighting
            with sampling, and the rest. None for the model's own ``generate``.
        draft, draft_tokens: what drafted, and how many tokens at a time; None where nothing did.
        acceptance: the part of drafted tokens that stayed in the rounds that count; None where
            nothing was drafted.
        cache, plain_cache: "dynamic" or "static", of steered calls and of plain ``generate``.
        compiled: whether models behind the static cache of this call may be compiled.
        capture: what was asked for, "auto", "on" or "off"; None for the model's own ``generate``.
        plain_ms_per_token: the median of plain ``generate`` in the same rounds.
        warmed_tokens: new tokens of a row before the first round.
        floor_ms: milliseconds of a step that did nothing but read all weights and caches once, at
            the speed of a large copy; None where that depends on the text, as with drafts.
        floor_share: of the time of a step.
        peak_gib: the most GPU memory that was allocated, in GiB.
        expert_config: whose configuration models beside the base have, if not the base's.
        chat: whether prompts were turns of a chat, whose own tokens ``prompt_tokens`` leaves out.
    """

    method: str
    batch: int
    ms_per_token: float
    ratio_to_plain: float
    low: float
    high: float
    ratio_to_loop: float | None
    path: str
    base_ms: float | None
    auxiliary_ms: float | None
    tail_ms: float | None
    host_ms: float | None
    rounds: int
    new_tokens: int
    prompt_tokens: int
    model: str
    dtype: str
    device: str
    threads: int
    draft: str | None = None
    draft_tokens: int | None = None
    acceptance: float | None = None
    cache: str = "dynamic"
    plain_cache: str = "dynamic"
    compiled: bool = True
    rows_ms: float | None = None
    capture: str | None = None
    plain_ms_per_token: float | None = None
    warmed_tokens: int | None = None
    floor_ms: float | None = None
    floor_share: float | None = None
    peak_gib: float | None = None
    expert_config: str | None = None
    chat: bool = False


@dataclass(frozen=True)
class Failed:
    """One method at one batch size that could not be timed, and why."""

    method: str
    batch: int
    capture: str | None
    error: str


HEADINGS = (
    "method",
    "batch",
    "ms/token",
    "x plain",
    "x loop",
    "floor",
    "path",
    "base",
    "rows",
    "others",
    "tail",
    "host",
    "kept",
)


def table(costs: Sequence[Cost | Failed]) -> Table:
    """The costs as a terminal table, one row for a method at a batch size."""
    timed = [cost for cost in costs if isinstance(cost, Cost)]
    on = f" on {timed[0].model} ({timed[0].device})" if timed else ""
    grid = Table(
        title=f"cost per token{on}",
        caption=_caption(timed),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    drafted = any(cost.acceptance is not None for cost in timed)
    for heading in HEADINGS if drafted else HEADINGS[:-1]:
        left = heading in ("method", "path")
        grid.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for cost, after in zip(costs, [*costs[1:], costs[0]], strict=True):
        cells = _cells(cost, drafted) if isinstance(cost, Cost) else ("failed",)
        grid.add_row(
            cost.method,
            str(cost.batch),
            *cells,
            end_section=after.batch != cost.batch,
            style=None if isinstance(cost, Cost) else "red",
        )
    return grid


def _cells(cost: Cost, drafted: bool) -> tuple[str, ...]:
    parts = (cost.base_ms, cost.rows_ms, cost.auxiliary_ms, cost.tail_ms, cost.host_ms)
    return (
        f"{cost.ms_per_token:.2f}",
        f"{cost.ratio_to_plain:.2f} [{cost.low:.2f}, {cost.high:.2f}]",
        _number(cost.ratio_to_loop),
        _percent(cost.floor_share),
        cost.path,
        *map(_number, parts),
        *([_percent(cost.acceptance)] if drafted else []),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _caption(timed: Sequence[Cost]) -> str:
    """What the columns are, and under which conditions."""
    lines = [
        "x plain: over plain generate; x loop: over this loop without a controller; path: how the "
        "call decodes (explain() says why); floor: the least time, of reading all weights and "
        "caches once, over the step's; base, rows (of prompts and experts, beyond the base alone), "
        "others, tail (reweighting and sampling), host: ms of a step, watched; kept: of what was "
        "drafted"
    ]
    if timed:
        first, warmed = timed[0], max(cost.warmed_tokens or 0 for cost in timed)
        lines.append(
            f"plain: generate with a {first.plain_cache} cache; medians of {first.rounds} rounds "
            f"of {first.new_tokens} tokens, after {warmed} that warmed each call up"
            f"{'; prompts are turns of a chat' if first.chat else ''}"
        )
    return "\n".join(map(escape, lines))


def failures(costs: Sequence[Cost | Failed]) -> list[str]:
    """A line for every row that could not be timed."""
    return [
        f"{cost.method}, batch {cost.batch}{f', capture {cost.capture}' if cost.capture else ''}: "
        f"{cost.error}"
        for cost in costs
        if isinstance(cost, Failed)
    ]


def write(costs: Sequence[Cost | Failed], out: Path) -> None:
    """Writes the costs as JSON, whole or not at all. Rows that failed have an ``error``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out, json.dumps([asdict(c) for c in costs], indent=2) + "\n")
