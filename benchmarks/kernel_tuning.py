"""How many programs of a kernel on a multiprocessor are fastest: a row of `occupancy.PROGRAMS`.

What a launch is planned by changes while a graph is captured, and never in a model's run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from kernel_cases import Case
from kernel_operations import OPERATIONS
from kernel_report import Result, save
from kernel_timing import Stopwatch, input_sets, interleaved, runner

from plugalign.kernels.occupancy import KERNELS, PROGRAMS, architecture_of

TRIED = (1, 2, 3, 4, 6, 8)
# In this order: what a later operation launches beside its own kernel is tuned before.
TIMED_BY = {
    "gumbel.sweep": "plain", "row_lse.sweep": "row_lse", "sweep": "dexperts_top_p",
    "sweep debias": "self_debias_2", "threshold.ladder": "dexperts_scores",
    "scores.write": "dexperts_scores", "topk.sweep": "topk_select", "spec.weigh": "spec_verify",
    "spec.draw": "spec_verify",
}  # fmt: skip


def save_tuned(
    case: Callable[..., Case], watch: Stopwatch, rounds: int, conditions: Result, out: Path
) -> None:
    """Writes what `tuned` finds to a file, and prints the row."""
    found = tuned(case, watch, rounds)
    save({"conditions": conditions} | found, out)
    print(f'("{found["architecture"]}", {tuple(found["programs"][kernel] for kernel in KERNELS)}),')


def tuned(
    case: Callable[..., Case], watch: Stopwatch, rounds: int, tried: Sequence[int] = TRIED
) -> Result:
    """The table's row for the device at hand, and the median microseconds that it comes from."""
    architecture, _ = architecture_of(watch.device)
    row = dict(PROGRAMS.get(architecture, {}))
    medians = {}
    for kernel, name in TIMED_BY.items():
        operation = next(o for o in OPERATIONS if o.name == name)
        one = case(seed=1)
        sets = input_sets(watch.device, operation.traffic(one))
        calls = [partial(operation.build(one).ours, "auto") for _ in range(sets)]
        runners = {
            str(count): runner(
                [partial(planned_by, {architecture: row | {kernel: count}}, c) for c in calls],
                watch,
            )
            for count in tried
        }
        seconds, _ = interleaved(runners, watch, rounds)
        medians[kernel] = {count: 1e6 * float(np.median(s)) for count, s in seconds.items()}
        row[kernel] = int(min(medians[kernel], key=medians[kernel].__getitem__))
    size = {"batch": case().batch, "vocab": case().vocab}
    return size | {"architecture": architecture, "programs": row, "microseconds": medians}


def planned_by(table: dict[str, dict[str, int]], call: Callable[[], Any]) -> Any:
    """``call`` with its launches planned by other entries than the table's."""
    with patch.dict(PROGRAMS, table):
        return call()
