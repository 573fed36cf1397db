"""The whole step as one CUDA graph: forwards, heads, mixture, draw and what ends a row.

On a GPU a step of few rows is mostly the host's: hundreds of launches, each dearer than the work
that it starts. With static caches every step does the same operations in the same memory, so one
step is captured and replayed, a launch a token. Tokens, their column and all that counts steps are
on the device, and the host looks only now and then whether all rows have ended. A graph lives as
long as its call: none can meet another batch, length, cache or controller. What must be looked at
in between, or is known to wait for the device, keeps a call from being captured (`obstacle`).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import StaticCache

from plugalign.engine.call import Call
from plugalign.engine.choosing import Choice
from plugalign.engine.heads import Splits
from plugalign.engine.plan import Plan
from plugalign.engine.stopping import Stopping, others
from plugalign.engine.streams import is_static, text_config
from plugalign.engine.tracing import ATTENTION, has_global_hooks, is_tampered_with
from plugalign.identity import model_name
from plugalign.kernels import steer
from plugalign.naming import name_of

GROWING = "cache_implementation='static' is not asked for"
LEAST = 16  # tokens for which a capture pays
TORCH = (2, 13)  # an earlier allocator does not get over a capture that fails
CAPTURING = threading.Lock()  # CUDA takes down one graph of a process at a time


class Graph(Protocol):
    """Operations on a device that are launched together."""

    def warm(self, step: Callable[[], None]) -> None:
        """Runs a step as it will be captured, so that nothing is set up later."""

    def capture(self, step: Callable[[], None]) -> None:
        """Takes a step down, and changes nothing on the device.

        Raises:
            RuntimeError: if the step waits for the device.
        """

    def replay(self) -> None:
        """Runs what was captured, in the same memory."""


class CudaGraph:
    """A `Graph` of a CUDA device. While it is captured no other thread may synchronise the device
    or empty its memory caches; other threads' captures wait."""

    def __init__(self, device: torch.device):
        self._graph, self._device = torch.cuda.CUDAGraph(), device
        self._stream = side_stream(device)

    def warm(self, step: Callable[[], None]) -> None:
        """See `Graph.warm`."""
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self._stream):
                step()
        finally:
            outside.wait_stream(self._stream)

    def capture(self, step: Callable[[], None]) -> None:
        """See `Graph.capture`."""
        # Not by torch.cuda.graph, which hands all free memory back to the device every time.
        with CAPTURING, torch.cuda.stream(self._stream):
            torch.cuda.synchronize(self._device)
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                step()
            except BaseException:
                with suppress(RuntimeError):  # says again that something went wrong
                    self._graph.capture_end()
                raise
            self._graph.capture_end()

    def replay(self) -> None:
        """See `Graph.replay`."""
        self._graph.replay()


@cache
def side_stream(device: torch.device) -> Any:
    """The stream of a device on which steps are captured: one, since each keeps working memory."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def graph_on(device: torch.device) -> Graph | None:
    """A new graph, or None on a device that has none."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if device.type != "cuda" or version < TORCH or find_spec("triton") is None:
        return None
    return CudaGraph(device)


class Captured:
    """The steps that follow the first of a call.

    Args:
        tokens: the tokens ``(R,)`` that follow texts ``(R, T)``, and of these only the last column
            may be read; the second argument is T on the device.
        at: is told how many columns have been read, where a replay did.
        refused: is told why no step could be captured.
        ids: the texts so far ``(R, T)``, whose last column has not been read.
        room: tokens that may follow, at most.
    """

    def __init__(
        self,
        graph: Graph,
        tokens: Callable[[Tensor, Tensor], Tensor],
        at: Callable[[int], None],
        refused: Callable[[str], None],
        stopping: Stopping,
        ids: Tensor,
        room: int,
    ):
        self._graph, self._tokens, self._stopping = graph, tokens, stopping
        self._at, self._refused = at, refused
        rows, self._length = ids.shape
        self._last = ids[:, -1:].clone()
        self._column = torch.full((), self._length, device=ids.device)
        self._texts = torch.cat([ids, ids.new_zeros(rows, room)], 1)

    def texts(self) -> Iterator[Tensor]:
        """``(R, T + 1)``, ``(R, T + 2)`` and so on, one buffer's; ends early where no step can be
        captured."""
        self._graph.warm(self._step)
        yield self._grown()
        try:
            self._graph.capture(self._step)
        except RuntimeError as error:
            self._at(self._length - 1)  # nothing has run
            self._refused(f"a step could not be captured ({error})")
            warnings.warn(
                "no CUDA graph of a step can be made, so each is launched by the host, now and in "
                f"later calls: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        while True:
            self._graph.replay()
            self._at(self._length)
            yield self._grown()

    def _grown(self) -> Tensor:
        self._length += 1
        return self._texts[:, : self._length]

    def _step(self) -> None:
        """One token more for every row. What it reads and writes stays where it is."""
        ids = self._last.expand(-1, self._length)
        tokens = self._stopping.padded(self._tokens(ids, self._column), self._column)
        self._stopping.note(tokens)
        self._texts.index_copy_(1, self._column.view(1), tokens[:, None])
        self._last.copy_(tokens[:, None])
        self._column += 1


def obstacle(call: Call, plan: Plan, splits: Splits, extra: int) -> str:
    """Why no step of a call can be captured, in words, or nothing. No model is run for it.

    Args:
        splits: of the models, as far as they are known.
        extra: cache positions that attachments put in front of the prompt.
    """
    if not is_static(call.cache):
        return "the cache has sliding windows" if isinstance(call.cache, StaticCache) else GROWING
    if call.room < LEAST:
        return f"for {call.room} tokens it does not pay"
    looking = [*call.choice.waits_for, *map(name_of, others(call.criteria))]
    if call.shows_logits or looking:
        what = "output_logits" if call.shows_logits else looking[0]
        return f"{what} is looked at by the host at every step"
    if extra and plan.contexts:
        return "a prompt behind a trained prefix is read anew at every step"
    return (
        splits.uncapturable
        or _of_shifts(plan, call.choice)
        or _of_models([call.model, *plan.experts.values()], splits)
    )


def _of_shifts(plan: Plan, choice: Choice) -> str:
    """What of the controllers' formulas waits for the device, or nothing."""
    if plan.uncapturable:
        return plan.uncapturable
    if parts := steer.unfused(plan.truncation, choice.after):
        return f"no kernel fuses {parts}"
    return ""


def _of_models(models: Sequence[Any], splits: Splits) -> str:
    """Which model cannot be read in a fixed way, or nothing."""
    for model in models:
        name = f"'{model_name(model)}'"
        if model.device != models[0].device:
            return f"{name} is on {model.device} and the base is on {models[0].device}"
        if not is_static(StaticCache(config=text_config(model), max_cache_len=1)):
            return f"{name} has layers that no static cache holds"
        if not splits.may_split(model):
            return f"{name} is not a body under a linear head"
        if why := _of_body(model.base_model):
            return f"{name} {why}"
        quantizer = getattr(model, "hf_quantizer", None)
        compiles = quantizer is None or quantizer.is_compileable
        if not (compiles and getattr(model, "_can_compile_fullgraph", False)):
            return f"{name} does other operations at other steps"
    return ""


def _of_body(body: Any) -> str:
    """What in a body looks at every step, or nothing."""
    kind = getattr(body.config, "_attn_implementation", None)
    if kind not in ATTENTION:
        return f"attends by {kind}, which looks at its mask"
    if any(map(is_tampered_with, body.modules())) or has_global_hooks():
        return "has hooks, which a replay does not run"
    if any(getattr(module, "rope_type", "") == "dynamic" for module in body.modules()):
        return "turns its positions by their length"
    return ""
