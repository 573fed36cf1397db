"""How many programs of a kernel on a multiprocessor are fastest: a row of `occupancy.PROGRAMS`.

What a launch is planned by changes while a graph is captured, and never in a model's run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from kernel_cases import Case
from kernel_operations import OPERATIONS
from kernel_report import Result, save
from kernel_timing import Stopwatch, input_sets, interleaved, runner

from plugalign.benchmarking.failures import FAILURES, reason
from plugalign.kernels.backend import Backend
from plugalign.kernels.occupancy import ELSEWHERE, KERNELS, PROGRAMS, architecture_of

# In this order: what a later operation launches beside its own kernel is tuned before.
TIMED_BY = {
    "gumbel.sweep": "plain",
    "row_lse.sweep": "row_lse",
    "sweep": "dexperts_top_p",
    "sweep debias": "self_debias_2",
    "threshold.ladder": "dexperts_scores",
    "scores.write": "dexperts_scores",
    "topk.sweep": "topk_select",
    "spec.weigh": "spec_verify",
    "spec.draw": "spec_verify",
}


def save_tuned(tune: Callable[[], Iterator[Result]], conditions: Result, out: Path) -> bool:
    """Writes what `tuned` finds to a file after every kernel, prints the row, and tells whether it
    is whole."""
    found: Result = {}
    for found in tune():
        save({"conditions": conditions} | found, out)
    print(f'("{found["architecture"]}", {tuple(found["programs"][kernel] for kernel in KERNELS)}),')
    for kernel, error in found["failed"].items():
        print(f"{kernel}: {error}; its entry is the table's")
    return not found["failed"]


def tuned(
    case: Callable[..., Case],
    watch: Stopwatch,
    rounds: int,
    tried: Sequence[int],
    backend: Backend = "auto",
) -> Iterator[Result]:
    """After each kernel, the table's row for the device at hand, the median microseconds that it
    comes from, and why some kernels could not be timed."""
    architecture, _ = architecture_of(watch.device)
    row = dict.fromkeys(KERNELS, ELSEWHERE) | PROGRAMS.get(architecture, {})
    found: Result = {"batch": case().batch, "vocab": case().vocab, "architecture": architecture}
    found |= {"programs": row, "microseconds": {}, "failed": {}}
    for kernel, name in TIMED_BY.items():
        try:
            calls = _calls(name, case, watch, backend)
            times = medians(kernel, architecture, row, calls, watch, rounds, tried)
        except FAILURES as error:
            found["failed"][kernel] = reason(error)
        else:
            found["microseconds"][kernel] = times
            row[kernel] = int(min(times, key=times.__getitem__))
        yield found


def _calls(
    name: str, case: Callable[..., Case], watch: Stopwatch, backend: Backend
) -> list[Callable[[], Any]]:
    """An operation on so many inputs that no cache holds them."""
    operation = next(o for o in OPERATIONS if o.name == name)
    one = case(seed=1)
    sets = input_sets(watch.device, operation.traffic(one))
    return [partial(operation.build(one).ours, backend) for _ in range(sets)]


def medians(
    kernel: str,
    architecture: str,
    row: dict[str, int],
    calls: Sequence[Callable[[], Any]],
    watch: Stopwatch,
    rounds: int,
    tried: Sequence[int],
) -> dict[str, float]:
    """Microseconds of a call by the programs that a multiprocessor is given of a kernel."""
    runners = {
        str(count): runner(
            [partial(planned_by, {architecture: row | {kernel: count}}, c) for c in calls], watch
        )
        for count in tried
    }
    seconds, _ = interleaved(runners, watch, rounds)
    return {count: 1e6 * float(np.median(times)) for count, times in seconds.items()}


def planned_by(table: dict[str, dict[str, int]], call: Callable[[], Any]) -> Any:
    """``call`` with its launches planned by other entries than the table's."""
    with patch.dict(PROGRAMS, table):
        return call()
