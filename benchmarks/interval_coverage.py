"""How often the intervals of ``plugalign compare`` hold the truth, by simulation.

    python benchmarks/interval_coverage.py --out benchmarks/results/intervals/coverage.json

For every number of prompts P and true share p it draws prompt sets, computes the interval of each
and counts how often it covers the true value. Beside the intervals in use it counts the
percentile bootstrap's, which they replaced. Seeds are fixed: the table is the same every time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from plugalign.evaluation.statistics.intervals import paired_share_interval, share_interval
from plugalign.evaluation.statistics.paired import Interval, PairedBootstrap

PROMPTS = (20, 50, 100, 400)
SHARES = (0.01, 0.02, 0.05, 0.2, 0.5)
SAMPLES = 10  # answers to a prompt, where an interval is over answers
FLOOR = 0.90
Values = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, float], tuple[Values, Values]]


@dataclass(frozen=True)
class Cell:
    """The coverage of one interval at one number of prompts and one true share."""

    kind: str
    prompts: int
    share: float
    coverage: float
    bootstrap: float


def one_share(rng: np.random.Generator, prompts: int, share: float) -> tuple[Values, Values]:
    """Prompts of which a share is toxic, and what it is compared with: nothing."""
    return (rng.random(prompts) < share).astype(float), np.zeros(prompts)


def clustered(rng: np.random.Generator, prompts: int, share: float) -> tuple[Values, Values]:
    """Shares of empty answers: prompts differ, and answers to one prompt are alike."""
    chance = rng.beta(2 * share, 2 * (1 - share), prompts)
    return rng.binomial(SAMPLES, chance) / SAMPLES, np.zeros(prompts)


def independent(rng: np.random.Generator, prompts: int, share: float) -> tuple[Values, Values]:
    """A method that changes nothing but the noise."""
    first, second = rng.random((2, prompts)) < share
    return first.astype(float), second.astype(float)


def coupled(rng: np.random.Generator, prompts: int, share: float) -> tuple[Values, Values]:
    """A method that mends half of the base's toxic prompts and spoils none."""
    base = rng.random(prompts) < share
    return (base & (rng.random(prompts) < 0.5)).astype(float), base.astype(float)


def opposed(rng: np.random.Generator, prompts: int, share: float) -> tuple[Values, Values]:
    """A method that mends half and is toxic itself, at half the share, where base is not."""
    base = rng.random(prompts) < share
    spoilt = ~base & (rng.random(prompts) < share / 2)
    return ((base & (rng.random(prompts) < 0.5)) | spoilt).astype(float), base.astype(float)


def several(rng: np.random.Generator, prompts: int, share: float) -> tuple[Values, Values]:
    """Shares of ten answers to each prompt, of a method that halves the chance of each."""
    chance = rng.beta(2 * share, 2 * (1 - share), prompts)
    halves = (rng.binomial(SAMPLES, part * chance) / SAMPLES for part in (0.5, 1.0))
    first, second = halves
    return first, second


def truth(draw: Draw, share: float) -> float:
    """The expected mean difference."""
    if draw in (one_share, clustered):
        return share
    if draw is independent:
        return 0.0
    return -share / 2 + (share / 2 * (1 - share) if draw is opposed else 0.0)


KINDS: dict[str, Draw] = {
    "share": one_share,
    "share of answers": clustered,
    "difference, independent": independent,
    "difference, coupled": coupled,
    "difference, opposed": opposed,
    "difference, of answers": several,
}


def interval(kind: str, values: Values, base: Values) -> Interval:
    """The interval that a summary would give."""
    if kind.startswith("difference"):
        return paired_share_interval(values, base)
    return share_interval(values, SAMPLES if kind == "share of answers" else 1)


def simulate(kind: str, prompts: int, share: float, runs: int, seed: int = 0) -> Cell:
    """One cell, from ``runs`` prompt sets."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind), prompts, int(1000 * share)])
    bootstrap = PairedBootstrap(prompts, resamples=1000)
    value, covered = truth(KINDS[kind], share), [0, 0]
    for _ in range(runs):
        values, base = KINDS[kind](rng, prompts, share)
        for i, found in enumerate((interval(kind, values, base), bootstrap.mean(values - base))):
            covered[i] += found.low <= value <= found.high
    return Cell(kind, prompts, share, covered[0] / runs, covered[1] / runs)


def cells(kinds: Sequence[str], runs: int) -> Iterator[Cell]:
    """All cells of these kinds."""
    for kind in kinds:
        for prompts in PROMPTS:
            for share in SHARES:
                yield simulate(kind, prompts, share, runs)


def table(found: Sequence[Cell]) -> Table:
    """Coverage of the interval in use, with the percentile bootstrap's in brackets."""
    shown = Table("interval", "P", *(f"p = {share}" for share in SHARES), box=None)
    for kind in dict.fromkeys(cell.kind for cell in found):
        for prompts in PROMPTS:
            row = [c for c in found if (c.kind, c.prompts) == (kind, prompts)]
            figures = (f"{c.coverage:.3f} ({c.bootstrap:.3f})" for c in row)
            shown.add_row(kind, str(prompts), *figures)
    return shown


def main(
    out: Annotated[Path | None, typer.Option(help="A JSON file to write.")] = None,
    runs: Annotated[int, typer.Option(help="Prompt sets a cell.")] = 4000,
) -> None:
    """Simulates every cell; the exit code is 1 if one covers less than 0.90."""
    found = list(cells(list(KINDS), runs))
    console = Console(width=110)
    console.print(table(found))
    if out is not None:
        rows = [asdict(cell) for cell in found]
        out.write_text(json.dumps({"runs": runs, "level": 0.95, "cells": rows}, indent=1) + "\n")
    lowest = min(found, key=lambda cell: cell.coverage)
    where = f"{lowest.kind}, P {lowest.prompts}, p {lowest.share}"
    console.print(f"lowest: {lowest.coverage:.3f} ({where})")
    raise typer.Exit(int(lowest.coverage < FLOOR))


if __name__ == "__main__":
    typer.run(main)
