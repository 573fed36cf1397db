"""Runs a program as on a GPU where there is none: graphs, events and streams are stand-ins.

    python benchmarks/rehearsal.py SCRIPT ARGUMENTS
    python benchmarks/rehearsal.py -m MODULE ARGUMENTS

Everything else is the program's own. Times that come out of it mean nothing: a replay of a kernel's
graph does nothing, one of a decoding step runs the step anew, and nothing is really compiled. With
Triton 3.6 it takes a NumPy below 2.4, as that version's interpreter does.
"""

from __future__ import annotations

import runpy
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kernel_cases
import kernel_timing

from plugalign.benchmarking.stopwatch import Rerun
from plugalign.engine.acceleration import captured_step

L2_BYTES = 2**12
HIDDEN = 64  # width of the layers: the interpreter is slow


class Event:
    """`torch.cuda.Event` by the host's clock."""

    def __init__(self, enable_timing: bool = False):
        self._timing = enable_timing

    def record(self) -> None:
        self._time = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end._time - self._time)


class Stream:
    """`torch.cuda.Stream` of a device that does one thing after the other."""

    def wait_stream(self, stream: Stream) -> None:
        pass


class Graph:
    """`torch.cuda.CUDAGraph` that holds nothing."""

    def replay(self) -> None:
        pass


def eagerly(formula: Any, **options: Any) -> Any:
    """`torch.compile` without a compiler behind it."""
    return compile_(formula, **options, backend="eager")


compile_ = torch.compile
STAND_INS: dict[str, Any] = {
    "Event": Event,
    "Stream": Stream,
    "CUDAGraph": Graph,
    "graph": lambda graph: nullcontext(),
    "stream": lambda stream: nullcontext(),
    "current_stream": lambda *_: Stream(),
    "synchronize": lambda *_: None,
    "set_sync_debug_mode": lambda mode: None,
    "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=L2_BYTES),
}


def main() -> None:
    """Runs what the command line names."""
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(torch.cuda, **STAND_INS))
        stack.enter_context(patch.object(torch, "compile", eagerly))
        stack.enter_context(patch.object(kernel_timing, "on_gpu", lambda device: True))
        stack.enter_context(patch.dict(kernel_cases.HIDDEN, cpu=HIDDEN))
        stack.enter_context(patch.object(captured_step, "graph_on", lambda *_: Rerun()))
        sys.argv = sys.argv[1:]
        if sys.argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
