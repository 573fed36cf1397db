"""Times on equal terms: interleaved rounds, inputs that no cache holds, graph replays on a GPU."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONG_ENOUGH = 5e-3  # seconds of a run, against which an event and a graph's launch are little
MOST_CALLS = {"cpu": 16, "cuda": 128}
COPIED = {"cpu": 2**26, "cuda": 2**30}  # bytes of the copy in front of a run
CPU_CACHE = 2**25
HOST_CALLS, HOST_SECONDS = 200, 0.05  # of which one call's wall time is the mean

Times = dict[str, list[float]]


def on_gpu(device: torch.device) -> bool:
    """Whether calls are launched by a host and captured in graphs."""
    return device.type == "cuda"


@dataclass(frozen=True)
class Runner:
    """So many calls in one run; ``captured`` in a graph or not, None where there are no graphs."""

    run: Callable[[], Any]
    calls: int
    captured: bool | None

    def shown(self, seconds: Sequence[float]) -> dict[str, Any]:
        """Microseconds of a call."""
        times = quartiles([1e6 * s for s in seconds])
        return times | {"calls": self.calls, "captured": self.captured}


class Stopwatch:
    """Seconds of a run, and of a large copy right in front of it.

    The copy leaves none of a run's inputs in a cache. On a GPU it also keeps the device busy while
    the host launches what is timed. On a CPU with one thread the clock is the process's own time,
    which other processes do not lengthen.
    """

    def __init__(self, device: torch.device, threads: int):
        self.device = device
        self.clock = time.process_time if threads == 1 else time.perf_counter
        self.name = "process time" if threads == 1 else "wall time"
        if on_gpu(device):
            self.name = "CUDA events"
        self.source = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
        self.target = torch.empty_like(self.source)

    def __call__(self, run: Callable[[], Any]) -> tuple[float, float]:
        if on_gpu(self.device):
            return self._on_gpu(run)
        times = [self.clock()]
        for step in (self._copy, run):
            step()
            times.append(self.clock())
        return times[1] - times[0], times[2] - times[1]

    def _on_gpu(self, run: Callable[[], Any]) -> tuple[float, float]:
        timed: Any = torch.cuda.Event
        marks = [timed(enable_timing=True) for _ in range(3)]
        marks[0].record()
        self._copy()
        marks[1].record()
        run()
        marks[2].record()
        torch.cuda.synchronize(self.device)
        copied, ran = (a.elapsed_time(b) / 1000 for a, b in pairwise(marks))
        return copied, ran

    def _copy(self) -> Tensor:
        return self.target.copy_(self.source)

    def bandwidth(self, seconds: float) -> float:
        """Bytes per second of a copy, those read and those written."""
        return 2 * self.source.numel() / seconds


def cache_bytes(device: torch.device) -> int:
    """The last cache in front of memory: a GPU's L2, a CPU's L3 where Linux tells."""
    if on_gpu(device):
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 2**26))
    path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    size = path.read_text().strip() if path.is_file() else ""
    return int(size[:-1]) * 1024 if size[:-1].isdigit() and size.endswith("K") else CPU_CACHE


def input_sets(device: torch.device, bytes_of_one: int) -> int:
    """How many inputs to rotate, so that all of them are twice what the cache holds."""
    wanted = math.ceil(2 * cache_bytes(device) / bytes_of_one)
    return min(wanted, MOST_CALLS[device.type])


def runner(calls: Sequence[Callable[[], Any]], watch: Stopwatch, capture: bool = True) -> Runner:
    """Enough of ``calls``, one after the other, to be timed; compiled and warmed up.

    On a GPU they are captured in a graph, unless one waits for the device or may not be.
    """
    for call in (calls[0], calls[-1], calls[0]):
        call()
    seconds = max(watch(calls[0])[1], 1e-9)  # a clock may stand still
    count = min(math.ceil(LONG_ENOUGH / seconds), MOST_CALLS[watch.device.type])
    rotation = cycle(calls)
    if on_gpu(watch.device) and capture and not waits(calls[0]):
        return Runner(captured(list(islice(rotation, count))), count, True)

    def run() -> None:
        for call in islice(rotation, count):
            call()

    return Runner(run, count, False if on_gpu(watch.device) else None)


def host_microseconds(call: Callable[[], Any], device: torch.device) -> float:
    """Wall time of a call that no graph holds, from many one after the other: what the host takes
    to launch it, or the device to run it where that is longer."""
    torch.cuda.synchronize(device)
    start, count = time.perf_counter(), 0
    while count < HOST_CALLS and time.perf_counter() - start < HOST_SECONDS:
        call()
        count += 1
    torch.cuda.synchronize(device)
    return 1e6 * (time.perf_counter() - start) / count


def waits(call: Callable[[], Any]) -> bool:
    """Whether a call makes the host wait for the GPU, as far as PyTorch notices."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def captured(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """The replay of one graph of all ``calls``, which must have run before."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def interleaved(runners: dict[str, Runner], watch: Stopwatch, rounds: int) -> tuple[Times, float]:
    """Seconds per call of each runner in each round, and the median seconds of the copies."""
    seconds: Times = {name: [] for name in runners}
    copies = []
    for turn in range(rounds + 1):
        for name, one in runners.items():
            copied, ran = watch(one.run)
            if turn:  # the first round only warms up
                seconds[name].append(ran / one.calls)
                copies.append(copied)
    return seconds, float(np.median(copies))


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "low": low, "high": high}
