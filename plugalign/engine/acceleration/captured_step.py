"""The whole step as one CUDA graph: forwards, heads, mixture, draw and what ends a row.

On a GPU a step of few rows is mostly the host's: hundreds of launches, each dearer than the work
that it starts. With static caches every step does the same operations in the same memory, so one
step is captured and replayed, a launch a token. Tokens, their column and all that counts steps are
on the device, and the host looks only now and then whether all rows have ended. A graph lives as
long as its call: none can meet another batch, length, cache or controller. What must be looked at
in between, or is known to wait for the device, keeps a call from being captured (`obstacle`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import StaticCache

from plugalign.algebra.identity import model_name
from plugalign.engine.acceleration.cuda_graph import CudaGraph, unavailable
from plugalign.engine.acceleration.switch import CaptureSwitch
from plugalign.engine.acceleration.tracing import ATTENTION, has_global_hooks, is_tampered_with
from plugalign.engine.call import Call
from plugalign.engine.plan import Plan
from plugalign.engine.readers.heads import SplitModels
from plugalign.engine.readers.incremental import is_static, text_config
from plugalign.engine.selection import Selection
from plugalign.engine.stopping import Stopping, others
from plugalign.errors import name_of
from plugalign.kernels import steer

GROWING = "cache_implementation='static' is not asked for"
LEAST = 16  # tokens for which a capture pays
FIRST = 3  # the first two steps set all up, so the third is the first that can be replayed


class Graph(Protocol):
    """Operations on a device that are launched together."""

    def warm(self, step: Callable[[], None]) -> str | None:
        """Runs a step as it will be captured, so that nothing is set up later. Returns what of it
        would make a capture fail, in words, or None."""

    def capture(self, step: Callable[[], None]) -> None:
        """Takes a step down, and changes nothing on the device.

        Raises:
            RuntimeError: if the step waits for the device.
        """

    def replay(self) -> None:
        """Runs what was captured, in the same memory."""


def graph_on(device: torch.device) -> Graph | None:
    """A new graph, or None where `unavailable` says why there is none."""
    return CudaGraph(device) if unavailable(device) is None else None


def graph_obstacle(device: torch.device) -> str | None:
    """Why `graph_on` has no graph, in words, or None where it has one."""
    if graph_on(device) is not None:
        return None
    return unavailable(device) or "captures are switched off"


def graph_for(
    call: Call,
    plan: Plan,
    split_models: SplitModels,
    extra: int,
    switch: CaptureSwitch,
    also: str | None,
) -> Graph | None:
    """What the steps of a call are captured in, or None where each is launched by the host.

    Args:
        also: what else stands in the way, see `argument_obstacle`. extra: see `obstacle`.

    Raises:
        ValueError: if a capture is asked for and something stands in its way; names it.
    """
    device = call.model.device
    if switch.required:  # no other argument would help where the device has none
        switch.check(graph_obstacle(device))
    why = also or obstacle(call, plan, split_models, extra, switch)
    why = why or _of_heads([call.model, *plan.experts.values()], split_models)
    switch.check(why)
    return graph_on(device) if why is None else None


class CapturedSteps:
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
        why = self._graph.warm(self._step)
        yield self._grown()
        why = why or self._capture()
        if why is not None:
            self._refused(why)
            return
        while True:
            self._graph.replay()
            self._at(self._length)
            yield self._grown()

    def _capture(self) -> str | None:
        """Captures a step; why it could not be, in words, if it could not."""
        try:
            self._graph.capture(self._step)
        except RuntimeError as error:
            self._at(self._length - 1)  # nothing has run
            return str(error)
        return None

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


def obstacle(
    call: Call,
    plan: Plan,
    split_models: SplitModels,
    extra: int,
    switch: CaptureSwitch | None = None,
) -> str | None:
    """Why no step of a call is captured, in words, or None. No model is run for it.

    Args:
        split_models: of the models, as far as they are known.
        extra: cache positions that attachments put in front of the prompt.
        switch: whether a capture is asked for, forbidden, or made where it pays.
    """
    switch = switch or CaptureSwitch()
    if switch.why_off is not None:
        return switch.why_off
    if not is_static(call.cache):
        return "the cache has sliding windows" if isinstance(call.cache, StaticCache) else GROWING
    if switch.required and call.max_new_tokens < FIRST:
        return (
            f"the first to be captured is step {FIRST}, and {call.max_new_tokens} tokens may follow"
        )
    if not switch.required and call.max_new_tokens < LEAST:
        return f"for {call.max_new_tokens} tokens it does not pay"
    looking = [*call.selection.waits_for, *map(name_of, others(call.criteria))]
    if call.returns_logits or looking:
        what = "output_logits" if call.returns_logits else looking[0]
        return f"{what} is looked at by the host at every step"
    if extra and plan.contexts:
        return "a prompt behind a trained prefix is read anew at every step"
    return (
        split_models.why_uncapturable
        or _of_shifts(plan, call.selection)
        or _of_models([call.model, *plan.experts.values()], split_models)
    )


def argument_obstacle(drafts: bool, trace: Any) -> str | None:
    """What of ``generate``'s own arguments stands in the way of a capture, in words, or None."""
    if drafts:
        return "a draft is as long as it happens to be"
    return None if trace is None else "a trace looks at every step"


def _of_heads(models: Sequence[Any], split_models: SplitModels) -> str | None:
    """Which model is found to be no body under a linear head, once it is run; or None."""
    for model in models:
        if split_models.get(model) is None:
            return f"'{model_name(model)}' is not a body under a linear head"
    return None


def _of_shifts(plan: Plan, selection: Selection) -> str | None:
    """What of the controllers' formulas waits for the device, or None."""
    if plan.why_uncapturable:
        return plan.why_uncapturable
    if parts := steer.unfused(plan.truncation, selection.after):
        return f"no kernel fuses {parts}"
    return None


def _of_models(models: Sequence[Any], split_models: SplitModels) -> str | None:
    """Which model cannot be read in a fixed way, or None."""
    for model in models:
        name = f"'{model_name(model)}'"
        if model.device != models[0].device:
            return f"{name} is on {model.device} and the base is on {models[0].device}"
        if not is_static(StaticCache(config=text_config(model), max_cache_len=1)):
            return f"{name} has layers that no static cache holds"
        if not split_models.may_split(model):
            return f"{name} is not a body under a linear head"
        if (why := _of_body(model.base_model)) is not None:
            return f"{name} {why}"
        quantizer = getattr(model, "hf_quantizer", None)
        compiles = quantizer is None or quantizer.is_compileable
        if not (compiles and getattr(model, "_can_compile_fullgraph", False)):
            return f"{name} does other operations at other steps"
    return None


def _of_body(body: Any) -> str | None:
    """What in a body looks at every step, or None."""
    kind = getattr(body.config, "_attn_implementation", None)
    if kind not in ATTENTION:
        return f"attends by {kind}, which looks at its mask"
    if any(map(is_tampered_with, body.modules())) or has_global_hooks():
        return "has hooks, which a replay does not run"
    if any(getattr(module, "rope_type", "") == "dynamic" for module in body.modules()):
        return "turns its positions by their length"
    return None
