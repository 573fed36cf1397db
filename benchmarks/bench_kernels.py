"""Every kernel beside the formula it replaces, that formula compiled, and the memory's speed.

    python benchmarks/bench_kernels.py --out kernels.json

On a GPU this takes less than eight minutes; on a CPU, where the torch references run in place of
the kernels, about one. Each operation is first compared with its reference and, where nothing is
drawn, with the eager formula. Times are medians over interleaved rounds. The floor is what an
operation's least memory traffic takes at the speed of a large copy on the same device. On a GPU,
calls are captured in a graph; those marked * are not. The file is valid JSON whenever the run is
stopped. ``--tune`` measures a GPU's row of `plugalign.kernels.occupancy.PROGRAMS` instead.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from kernel_agreement import correctness
from kernel_cases import HIDDEN, NOISE, Case
from kernel_operations import OPERATIONS, Call, Operation
from kernel_report import Result, machine, save, table
from kernel_timing import (
    Runner,
    Stopwatch,
    Times,
    cache_bytes,
    host_microseconds,
    input_sets,
    interleaved,
    on_gpu,
    quartiles,
    runner,
)
from kernel_tuning import save_tuned, tuned
from rich.console import Console
from rich.progress import Progress

from plugalign.benchmarking.failures import FAILURES, reason
from plugalign.kernels.backend import Backend
from plugalign.kernels.occupancy import MOST_PROGRAMS

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEFAULTS = {
    "cpu": ("1,8", "50257", "float32"),
    "cuda": ("1,8,64,256", "32000,50257,128256,151936", "bfloat16"),
}
MOST_BATCH, MOST_VOCAB = 2**16, 2**18
FIRST = ((64, 128256), (8, 50257), (1, 128256), (256, 128256))  # sizes, should time run out
OWN_SHAPES = 2  # sizes that torch.compile compiles for; the others share code of dynamic shapes
COMPILING = 0.7  # of the budget: behind it nothing new is compiled
BACKENDS = ("auto", "triton", "torch")

Task = tuple[Operation, tuple[int, int], bool]


@dataclass
class Bench:
    """A run's settings, and what does not change from size to size."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    rounds: int
    zipf: float
    budget: float
    compile: bool
    backend: Backend = "auto"
    check: bool = False
    start: float = field(default_factory=time.monotonic)
    compiled: dict[tuple[str, bool], Callable[..., Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.watch = Stopwatch(self.device, self.threads)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def conditions(self) -> Result:
        """Everything that a figure depends on."""
        return machine(self.device) | {
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": self.threads,
            "clock": self.watch.name,
            "rounds": self.rounds,
            "budget": self.budget,
            "compile": self.compile,
            "backend": self.backend,
            "checked_only": self.check,
            "cache_bytes": cache_bytes(self.device),
            "copy_bytes": self.watch.source.numel(),
            "hidden": HIDDEN[self.device.type],
            "zipf": self.zipf,
            "noise": NOISE,
            "unit": "microsecond",
        }

    def measure(self, operation: Operation, size: tuple[int, int], own_shape: bool) -> Result:
        """One row of the report."""
        case = partial(Case, *size, self.dtype, self.device, self.zipf)
        checked = correctness(operation, case, self.backend)
        if self.check:
            return checked
        one = case(seed=1)
        traffic = operation.traffic(one)
        calls = [operation.build(one) for _ in range(input_sets(self.device, traffic))]
        runners, failed = self.runners(operation, calls, own_shape)
        seconds, copied = interleaved(runners, self.watch, self.rounds)
        timed: Result = {name: runners[name].shown(seconds[name]) for name in runners}
        speed = self.watch.bandwidth(copied)
        floor = 1e6 * traffic / speed
        if on_gpu(self.device):
            timed["host"] = host_microseconds(partial(calls[0].ours, self.backend), self.device)
        return (
            checked
            | failed
            | timed
            | compared(seconds)
            | {
                "input_sets": len(calls),
                "bytes": traffic,
                "copy_gb_per_s": speed / 1e9,
                "floor": floor,
                "times_floor": timed["ours"]["median"] / floor,
                "own_shape": own_shape,
            }
        )

    def runners(
        self, operation: Operation, calls: Sequence[Call], own_shape: bool
    ) -> tuple[dict[str, Runner], Result]:
        """What is timed, and why the rest of it cannot be."""
        ready = {"ours": runner([partial(call.ours, self.backend) for call in calls], self.watch)}
        failed: Result = {}
        for name in ("eager", "compiled") if self.compile else ("eager",):
            formula = operation.eager
            try:
                if name == "compiled":
                    formula = self.compiled_formula(operation, own_shape)
                theirs = [partial(formula, *call.eager) for call in calls]
                ready[name] = runner(theirs, self.watch, operation.capture)
            except FAILURES as error:
                failed[name] = {"error": reason(error)}
        return ready, failed

    def compiled_formula(self, operation: Operation, own_shape: bool) -> Callable[..., Any]:
        key = (operation.name, own_shape)
        if key not in self.compiled:
            if self.seconds > COMPILING * self.budget:
                raise RuntimeError(f"not compiled: {COMPILING:.0%} of the budget was spent")
            self.compiled[key] = torch.compile(operation.eager, dynamic=not own_shape)
        return self.compiled[key]


def compared(seconds: Times) -> Result:
    """How many times as long as ours the others take, round by round."""
    return {
        f"times_{name}": quartiles([a / b for a, b in zip(theirs, seconds["ours"], strict=True)])
        for name, theirs in seconds.items()
        if name != "ours"
    }


def plan(operations: Sequence[Operation], grid: Sequence[tuple[int, int]]) -> list[Task]:
    """Operation, size, and whether it is compiled for that very size; important sizes first.

    An operation that knows no vocabulary comes once for each batch size.
    """
    order = [size for size in FIRST if size in grid]
    order += [size for size in grid if size not in order]
    tasks: dict[tuple[Any, ...], Task] = {}
    for place, size in enumerate(order):
        for operation in operations:
            key = (operation.name, size if operation.by_vocab else size[0])
            tasks.setdefault(key, (operation, size, place < OWN_SHAPES))
    return list(tasks.values())


def run(bench: Bench, work: Sequence[Task], out: Path) -> Result:
    """The report, which ``out`` holds after each result; ``left`` is what there was no time for."""
    names = [{"operation": o.name, "batch": b, "vocab": v} for o, (b, v), _ in work]
    report: Result = {"conditions": bench.conditions(), "results": [], "left": names}
    save(report, out)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        progress = bar.add_task("", total=len(work))
        for task, name in zip(work, names, strict=True):
            if bench.seconds > bench.budget:
                break
            bar.update(progress, description=" ".join(map(str, name.values())))
            try:
                found = bench.measure(*task)
            except FAILURES as error:
                found = {"error": reason(error), "wrong": True}
            report["results"].append(name | found)
            report["left"] = names[len(report["results"]) :]
            report["conditions"] |= {"seconds": bench.seconds, "load_at_end": os.getloadavg()}
            save(report, out)
            bar.advance(progress)
    return report


def main(
    out: Annotated[Path, typer.Option(help="JSON file, rewritten after every result")],
    device: Annotated[str | None, typer.Option(help="cuda or cpu; by default cuda if any")] = None,
    batch: Annotated[str | None, typer.Option(help="batch sizes: 1,8")] = None,
    vocab: Annotated[str | None, typer.Option(help="vocabularies: 32000,50257")] = None,
    only: Annotated[str | None, typer.Option(help="operations by name: plain,fudge")] = None,
    dtype: Annotated[str | None, typer.Option(help=f"of logits: {', '.join(DTYPES)}")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
    rounds: Annotated[int, typer.Option(help="interleaved rounds")] = 25,
    budget: Annotated[float, typer.Option(help="seconds after which nothing is begun")] = 440,
    zipf: Annotated[float, typer.Option(help="how fast logits fall with the log of rank")] = 1.3,
    compile: Annotated[
        bool | None, typer.Option(help="time torch.compile too; by default on a GPU alone")
    ] = None,
    tune: Annotated[bool, typer.Option(help="measure this GPU's row of the launch table")] = False,
    tried: Annotated[
        str, typer.Option(help="programs on a multiprocessor that --tune tries")
    ] = "1,2,3,4,6,8",
    backend: Annotated[str, typer.Option(help="of our side: auto, triton or torch")] = "auto",
    check: Annotated[bool, typer.Option(help="compare results only, and time nothing")] = False,
) -> None:
    """Times the kernels against their papers' formulas, eager and compiled."""
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in DEFAULTS or (kind == "cuda" and not torch.cuda.is_available()):
        raise typer.BadParameter(f"--device must be cpu, or cuda where there is one, got {kind}")
    counts = {"threads": threads, "rounds": rounds, "budget": budget, "zipf": zipf}
    for name, value in counts.items():
        if not 0 < value < math.inf:
            raise typer.BadParameter(f"--{name} must be finite and above 0, got {value}")
    if backend not in BACKENDS:
        raise typer.BadParameter(f"--backend must be {' or '.join(BACKENDS)}, got {backend}")
    if tune and not on_gpu(torch.device(kind)):
        raise typer.BadParameter("--tune needs a GPU: on a CPU no launch is planned")
    batches, vocabs, precision = DEFAULTS[kind]
    if (precision := dtype or precision) not in DTYPES:
        raise typer.BadParameter(f"--dtype must be one of {', '.join(DTYPES)}, got {precision}")
    sizes = product(
        _numbers("batch", batch or batches, MOST_BATCH),
        _numbers("vocab", vocab or vocabs, MOST_VOCAB),
    )
    work, programs = plan(_chosen(only), list(sizes)), _numbers("tried", tried, MOST_PROGRAMS)
    torch.set_num_threads(threads)
    compile = kind == "cuda" if compile is None else compile
    bench = Bench(
        torch.device(kind),
        DTYPES[precision],
        threads,
        rounds,
        zipf,
        budget,
        compile,
        cast("Backend", backend),
        check,
    )
    if tune:
        case = partial(Case, *work[0][1], bench.dtype, bench.device, zipf)
        tune_with = partial(tuned, case, bench.watch, rounds, programs, bench.backend)
        raise typer.Exit(0 if save_tuned(tune_with, bench.conditions(), out) else 1)
    report = run(bench, work, out)
    Console(width=140).print(table(report["results"]))
    if report["left"]:
        typer.echo(f"{len(report['left'])} of {len(work)} left when the budget was spent")
    if any(row["wrong"] for row in report["results"]):
        raise typer.Exit(1)


def _chosen(only: str | None) -> list[Operation]:
    known = {operation.name: operation for operation in OPERATIONS}
    names = list(known) if only is None else only.split(",")
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(
            f"--only names no operation '{unknown[0]}'; known are {', '.join(known)}"
        )
    return [known[name] for name in names]


def _numbers(name: str, given: str, most: int) -> list[int]:
    numbers = [int(x) if x.isdecimal() else 0 for x in given.split(",")]
    if not all(1 <= number <= most for number in numbers):
        raise typer.BadParameter(f"--{name} must be whole numbers from 1 to {most}, got {given}")
    return numbers


if __name__ == "__main__":
    typer.run(main)
