"""What a method costs, as a row of a table and of a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table


@dataclass(frozen=True)
class Cost:
    """One method at one batch size.

    Attributes:
        ms_per_token: median wall-clock milliseconds per new token of one row.
        ratio_to_plain: median over rounds of the method's time over plain ``generate``'s.
        low, high: the smallest and the largest of these ratios.
        ratio_to_loop: the same median over the time of our loop without a controller.
        path: "loop", "graph" (the loop, whose steps are replayed on a GPU) or "processor".
        base_ms, auxiliary_ms, tail_ms, host_ms: milliseconds of a step of the whole batch, in one
            more run that is watched, step by step: the base's forward with all that rides in it as
            rows, other forwards, reweighting with sampling, and the rest.
        acceptance: the part of drafted tokens that stayed; None where nothing was drafted.
        cache, plain_cache: "dynamic" or "static", of steered calls and of plain ``generate``.
        compiled: whether models behind static caches may be compiled.
    """

    method: str
    batch: int
    ms_per_token: float
    ratio_to_plain: float
    low: float
    high: float
    ratio_to_loop: float
    path: str
    base_ms: float
    auxiliary_ms: float
    tail_ms: float
    host_ms: float
    rounds: int
    new_tokens: int
    prompt_tokens: int
    model: str
    dtype: str
    device: str
    threads: int
    acceptance: float | None = None
    cache: str = "dynamic"
    plain_cache: str = "dynamic"
    compiled: bool = True


HEADINGS = (
    "batch", "ms/token", "x plain", "x loop", "path", "base", "others", "tail", "host", "kept",
)  # fmt: skip


def table(costs: Sequence[Cost]) -> Table:
    """The costs as a terminal table, one row for a method at a batch size."""
    first = costs[0]
    grid = Table(
        title=f"cost per token on {first.model} ({first.device})",
        caption="base, others, tail (reweighting and sampling), host: ms of a step, watched; "
        "kept: of what was drafted",
    )
    grid.add_column("method", no_wrap=True)
    for heading in HEADINGS:
        grid.add_column(heading, justify="left" if heading == "path" else "right")
    for cost, after in zip(costs, [*costs[1:], first], strict=True):
        parts = (cost.base_ms, cost.auxiliary_ms, cost.tail_ms, cost.host_ms)
        grid.add_row(
            cost.method, str(cost.batch), f"{cost.ms_per_token:.2f}",
            f"{cost.ratio_to_plain:.2f} [{cost.low:.2f}, {cost.high:.2f}]",
            f"{cost.ratio_to_loop:.2f}", cost.path, *(f"{part:.2f}" for part in parts),
            "-" if cost.acceptance is None else f"{cost.acceptance:.0%}",
            end_section=after.batch != cost.batch,
        )  # fmt: skip
    return grid


def write(costs: Sequence[Cost], out: Path) -> None:
    """Writes the costs as JSON, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps([asdict(c) for c in costs], indent=2) + "\n", encoding="utf-8")
    os.replace(part, out)
