"""How a CUDA graph is captured, with stand-ins for what CUDA does: pools, streams, failures."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from plugalign.engine.acceleration import captured_step, cuda_graph
from plugalign.engine.acceleration.cuda_graph import CudaGraph, place_on
from plugalign.engine.acceleration.host_sync import HostSyncDetector

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


class Cuda:
    """What torch is asked for, in order, and a capture that may be void."""

    def __init__(self):
        self.asked, self.void, self.capturing, self.pools = [], False, False, 0

    def graph(self):
        return Graph(self)

    def pool(self):
        self.pools += 1
        return SimpleNamespace(id=(0, self.pools))

    def stream(self, index):
        return SimpleNamespace(device=torch.device("cpu"), wait_stream=lambda other: None)


class Graph:
    def __init__(self, cuda):
        self._cuda = cuda

    def capture_begin(self, pool=None, capture_error_mode="global"):
        self._cuda.asked.append(("begin", pool, capture_error_mode))
        self._cuda.capturing = True

    def capture_end(self):
        was, self._cuda.capturing = self._cuda.capturing, False
        if self._cuda.void or not was:
            self._cuda.void = False
            raise RuntimeError("operation failed due to a previous error during capture")
        self._cuda.asked.append(("end",))

    def replay(self):
        self._cuda.asked.append(("replay",))


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    monkeypatch.setattr(cuda_graph, "PLACES", cuda_graph.Places())
    monkeypatch.setattr(cuda_graph, "ABANDONED", [])
    for name, value in {
        "CUDAGraph": cuda.graph,
        "MemPool": cuda.pool,
        "Stream": cuda.stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "device": lambda index: contextlib.nullcontext(),
        "synchronize": lambda device: None,
        "current_stream": cuda.stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        tell = lambda index, pool, name=name: cuda.asked.append((name, pool))  # noqa: E731
        monkeypatch.setattr(torch._C, name, tell)
    return cuda


def test_calls_of_a_thread_share_a_stream_and_a_pool(cuda):
    for _ in range(3):
        graph = CudaGraph(FIRST)
        assert graph.warm(lambda: None) is None
        graph.capture(lambda: None)
        graph.replay()
    assert cuda.asked == 3 * [("begin", (0, 1), "thread_local"), ("end",), ("replay",)]
    assert place_on(SECOND) is not place_on(FIRST)
    found = []
    thread = threading.Thread(target=lambda: found.append(place_on(FIRST)))
    thread.start()
    thread.join()
    assert found[0].stream is not place_on(FIRST).stream
    assert len({place.pool.id for place in (found[0], place_on(FIRST), place_on(SECOND))}) == 3


def test_an_error_that_voids_nothing_ends_the_capture(cuda):
    def step():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CudaGraph(FIRST).capture(step)
    assert cuda.asked == [("begin", (0, 1), "thread_local"), ("end",)]
    assert captured_step.graph_on(FIRST) is not None


@pytest.mark.parametrize("late", [True, False], ids=["at the end", "in the step"])
@pytest.mark.parametrize("version", ["2.9.1", "2.11.0+cu130", "2.13.0"])
def test_a_void_capture_is_tidied_up_and_the_last(version, late, cuda, monkeypatch):
    def step():
        cuda.void = True
        if not late:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(RuntimeError, match="previous error" if late else "not permitted"):
        CudaGraph(FIRST).capture(step)
    tidied = [
        ("_cuda_endAllocateToPool", (0, 1)),
        ("_cuda_releasePool", (0, 1)),
        ("begin", None, "thread_local"),
        ("end",),
    ]
    assert cuda.asked[1:] == ([] if version == "2.13.0" else tidied)
    kept = weakref.ref(cuda_graph.ABANDONED[0])
    gc.collect()
    assert kept() is not None
    assert captured_step.graph_on(FIRST) is None
    assert captured_step.graph_obstacle(FIRST) == "an earlier capture of this process has failed"
    assert not cuda_graph.CAPTURING.locked()


def test_a_step_that_would_wait_is_reported(cuda, monkeypatch):
    monkeypatch.setattr(cuda_graph, "HostSyncDetector", partial(HostSyncDetector, "cpu"))
    why = CudaGraph(FIRST).warm(lambda: torch.ones(3).sum().item())
    assert "_local_scalar_dense waits for the device" in why
