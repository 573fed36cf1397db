"""A CUDA graph of one step: its stream, its memory pool, and the clean-up of a failed capture."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from plugalign.engine.acceleration.host_sync import HostSyncDetector

MIN_TORCH = (2, 9)  # the clean-up of a failed capture is known from this version on
CLEANS_UP = (2, 13)  # from this version on torch does it by itself
CAPTURING = threading.Lock()  # CUDA captures one graph of a process at a time
# Graphs whose capture failed. They are never freed, since torch's allocators still point at them,
# and after one nothing more is captured in this process.
ABANDONED: list[Any] = []


def unavailable(device: torch.device) -> str | None:
    """Why no step can be captured on a device, or None where one can be."""
    if device.type != "cuda":
        return f"there are no CUDA graphs on a {device.type}"
    if _torch_version() < MIN_TORCH:
        return f"torch {torch.__version__} is older than {'.'.join(map(str, MIN_TORCH))}"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if ABANDONED:
        return "an earlier capture of this process has failed"
    return None


class CudaGraph:
    """A `Graph` of `captured_step` on a CUDA device.

    While it is captured no other thread may synchronise the device or empty its memory caches;
    other threads' captures wait.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._graph: Any = None

    def warm(self, step: Callable[[], None]) -> str | None:
        """See `Graph.warm`."""
        stream, watching = place_on(self._device).stream, HostSyncDetector()
        outside = torch.cuda.current_stream(self._device)
        stream.wait_stream(outside)
        try:
            with torch.cuda.stream(stream), watching:
                step()
        finally:
            outside.wait_stream(stream)
        return watching.why

    def capture(self, step: Callable[[], None]) -> None:
        """See `Graph.capture`."""
        place, graph = place_on(self._device), torch.cuda.CUDAGraph()
        # Not by torch.cuda.graph, which returns all free memory to the device every time.
        with CAPTURING, torch.cuda.stream(place.stream):
            torch.cuda.synchronize(self._device)
            try:
                graph.capture_begin(pool=place.pool.id, capture_error_mode="thread_local")
                step()
                graph.capture_end()
            except BaseException:
                _end(graph, place)
                raise
        self._graph = graph

    def replay(self) -> None:
        """See `Graph.replay`."""
        self._graph.replay()


@dataclass(frozen=True, eq=False)
class Place:
    """The resources of captures on one device.

    Attributes:
        stream: a single one, since each keeps working memory of its own.
        pool: the memory of a step's intermediate results. It outlives its graphs: memory that every
            call allocated anew would be returned under pressure only.
    """

    stream: Any
    pool: Any


class Places(threading.local):
    """The places of one thread, by device index.

    Calls of one thread can share memory, also where one runs inside another, since nothing in a
    pool outlives a replay. Those of two threads cannot.
    """

    def __init__(self) -> None:
        self.by_device: dict[int, Place] = {}


PLACES = Places()


def place_on(device: torch.device) -> Place:
    """This thread's place on a device."""
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in PLACES.by_device:
        with torch.cuda.device(index):
            stream = torch.cuda.Stream(index)  # type: ignore[no-untyped-call]
            PLACES.by_device[index] = Place(stream, torch.cuda.MemPool())
    return PLACES.by_device[index]


def _end(graph: Any, place: Place) -> None:
    """Ends a capture in which an error was raised. Where CUDA has refused an operation, ending it
    raises before torch has cleaned up."""
    try:
        graph.capture_end()
    except RuntimeError:
        ABANDONED.append(graph)
        if _torch_version() < CLEANS_UP:
            _clean_up(place)


def _clean_up(place: Place) -> None:
    """What torch before 2.13 leaves out: its allocator goes on taking memory from the capture's
    pool, and its default generator refuses to draw outside of a capture."""
    index = place.stream.device.index
    with suppress(RuntimeError):  # where the capture had not begun
        torch._C._cuda_endAllocateToPool(index, place.pool.id)
        torch._C._cuda_releasePool(index, place.pool.id)
    one, again = torch.zeros((), device=place.stream.device), torch.cuda.CUDAGraph()
    again.capture_begin(capture_error_mode="thread_local")
    one.add_(1)
    again.capture_end()  # resets the generator


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])
