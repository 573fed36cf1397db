"""Where the time of a ``generate`` call goes, for one call that is watched.

While `timed` is open the calls between the engine's parts are wrapped: the base's forwards, alone
or batched with prompts and experts, those of other models and of answers that are revised, and
what draws a token from logits.
Time inside a wrapped call counts for it alone, not for the one around it; all else is the host.
Both engines have the same calls but for the end: on the processor path transformers chooses the
token, and that counts as the host's. Watching costs a little by itself, and on a GPU it waits for
the device at every call. A CUDA graph has no calls to wrap, so where steps are captured `Rerun`
stands in for one: the same models are batched in the same forwards, and the host launches them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch

from plugalign.benchmarking.floors import now
from plugalign.engine.acceleration import captured_step
from plugalign.engine.batching.batched_base import BatchedBase
from plugalign.engine.run import Run
from plugalign.engine.selection import Selection
from plugalign.engine.sources import SourceRunner
from plugalign.engine.speculative.verification import Speculator
from plugalign.engine.step import Step
from plugalign.generation.transcript import Continuation

BASE, ROWS, AUXILIARY, TAIL, HOST = "base", "rows", "auxiliary", "tail", "host"
PARTS = (BASE, ROWS, AUXILIARY, TAIL, HOST)


def _of_forward(rows: BatchedBase, *_: Any) -> str:
    return BASE if rows.blocks == 1 else ROWS


WRAPPED_CALLS: tuple[tuple[Any, str, str | Callable[..., str]], ...] = (
    (BatchedBase, "read", _of_forward),
    (SourceRunner, "read", AUXILIARY),
    (Continuation, "generate", AUXILIARY),
    (Run, "step", TAIL),
    (Run, "check", TAIL),
    (Step, "mixture", TAIL),
    (Selection, "base", TAIL),
    (Selection, "tokens", TAIL),
    (Selection, "target", TAIL),
    (Speculator, "verified", TAIL),
)


class Stopwatch:
    """Seconds by part; what runs inside another part counts for itself.

    Args:
        clock: gives the seconds; by default once ``device`` has done what it was given.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] | None = None):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._clock = clock or partial(now, device)
        self._running, self._since = [HOST], self._clock()

    def enter(self, part: str) -> None:
        """Goes on with ``part``. A forward of the base for another source is an auxiliary one."""
        self._lap()
        self._running.append(AUXILIARY if self._running[-1] == AUXILIARY else part)

    def leave(self) -> None:
        """Goes back to what was running before."""
        self._lap()
        self._running.pop()

    def _lap(self) -> None:
        before, self._since = self._since, self._clock()
        self.seconds[self._running[-1]] += self._since - before


@contextmanager
def timed(model: Any, loop: bool) -> Iterator[Stopwatch]:
    """Watches what runs in the block, with ``model`` as the base; all is as it was afterwards.

    Args:
        loop: whether the call takes the loop, which runs the base by a call of its own. A model
            whose forward is wrapped would not be run as the loop runs it.
    """
    watch = Stopwatch(model.device)
    calls = WRAPPED_CALLS if loop else (*WRAPPED_CALLS, (model, "forward", BASE))
    with ExitStack() as stack:
        for owner, name, part in calls:
            stack.enter_context(_replaced(owner, name, _watched(getattr(owner, name), part, watch)))
        stack.enter_context(_replaced(captured_step, "graph_on", _rerun_on(captured_step.graph_on)))
        yield watch
        watch.leave()


class Rerun:
    """A `Graph` of `plugalign.engine.acceleration.captured_step` that reruns its step at replay."""

    def warm(self, step: Callable[[], None]) -> str | None:
        """See `Graph.warm`."""
        step()
        return None

    def capture(self, step: Callable[[], None]) -> None:
        """See `Graph.capture`."""
        self._step = step

    def replay(self) -> None:
        """See `Graph.replay`."""
        self._step()


def _rerun_on(graph_on: Callable[..., Any]) -> Callable[..., Rerun | None]:
    """``graph_on`` with `Rerun` for every graph that it would make."""
    return lambda *args: None if graph_on(*args) is None else Rerun()


def _watched(
    call: Callable[..., Any], part: str | Callable[..., str], watch: Stopwatch
) -> Callable[..., Any]:
    @wraps(call)
    def run(*args: Any, **options: Any) -> Any:
        watch.enter(part if isinstance(part, str) else part(*args))
        try:
            return call(*args, **options)
        finally:
            watch.leave()

    return run


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute for the length of the block."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
