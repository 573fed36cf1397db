"""The whole step as one CUDA graph: forwards, heads, mixture, draw and end-of-text test.

On a GPU a step of few rows is bound by the host: hundreds of launches, each of which takes longer
than the work that it starts. With static caches every step does the same operations in the same
memory, so one step is captured and then replayed, one launch a token. Tokens, their column and all
that counts steps are on the device, and the host checks only now and then whether all rows have
ended. A graph lives as long as its call, so it never meets another batch, length, cache or
controller. A call is not captured if the host must read something at every step, or if an operation
is known to wait for the device (`obstacle`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import StaticCache

from plugalign.algebra.identity import model_name
from plugalign.engine.acceleration.cuda_graph import CudaGraph, unavailable
from plugalign.engine.acceleration.hooks import has_global_hooks, is_tampered_with
from plugalign.engine.acceleration.switch import CaptureSwitch
from plugalign.engine.acceleration.tracing import ATTENTION
from plugalign.engine.call import Call
from plugalign.engine.plan import Plan
from plugalign.engine.prefix import Prefix
from plugalign.engine.readers.cache_spec import text_config, windows_of
from plugalign.engine.readers.heads import SplitModels
from plugalign.engine.readers.incremental import is_static
from plugalign.engine.selection import Selection
from plugalign.engine.stopping import Stopping, other_criteria
from plugalign.errors import name_of
from plugalign.kernels import steer

GROWING = "cache_implementation='static' is not asked for"
MIN_TOKENS = 16  # for which a capture pays
FIRST = 3  # two steps set everything up, so the third is the first that can be captured


class Graph(Protocol):
    """Operations on a device that are launched together."""

    def warm(self, step: Callable[[], None]) -> str | None:
        """Runs a step as it will be captured, so that nothing is set up later. Returns why a
        capture of it would fail, or None."""

    def capture(self, step: Callable[[], None]) -> None:
        """Records a step's operations, without running them.

        Raises:
            RuntimeError: if the step waits for the device.
        """

    def replay(self) -> None:
        """Runs what was captured, in the same memory."""


def graph_on(device: torch.device) -> Graph | None:
    """A new graph, or None where `unavailable` says why there is none."""
    return CudaGraph(device) if unavailable(device) is None else None


def graph_obstacle(device: torch.device) -> str | None:
    """Why `graph_on` has no graph, or None where it has one."""
    if graph_on(device) is not None:
        return None
    return unavailable(device) or "captures are switched off"


def graph_for(
    call: Call,
    plan: Plan,
    split_models: SplitModels,
    extra: int,
    switch: CaptureSwitch,
    why: str | None,
) -> Graph | None:
    """A new graph for the steps of a call, or None where the host launches each step.

    Args:
        extra: see `obstacle`.
        why: why it is not captured as far as is known already, see `argument_obstacle`.

    Raises:
        ValueError: if a capture is required and there is an obstacle; names it.
    """
    device = call.model.device
    if switch.required:  # no other argument would help where the device has none
        switch.check(graph_obstacle(device))
    why = why or obstacle(call, plan, split_models, extra, switch)
    why = why or _head_obstacle([call.model, *plan.experts.values()], split_models)
    switch.check(why)
    return graph_on(device) if why is None else None


class CapturedSteps:
    """The steps that follow the first of a call.

    Args:
        tokens: gives the tokens ``(R,)`` after a captured step's prefix.
        set_length: is called with the number of columns that a replay has read.
        on_failure: is called with the reason where no step could be captured.
        prefix: the texts so far, whose last column no model has read.
        max_new_tokens: that may follow.
    """

    def __init__(
        self,
        graph: Graph,
        tokens: Callable[[Prefix], Tensor],
        set_length: Callable[[int], None],
        on_failure: Callable[[str], None],
        stopping: Stopping,
        prefix: Prefix,
        max_new_tokens: int,
    ):
        self._graph, self._tokens, self._stopping = graph, tokens, stopping
        self._set_length, self._on_failure = set_length, on_failure
        ids, mask = prefix.ids, prefix.mask
        rows, self._length = ids.shape
        self._last = ids[:, -1:].clone()
        # Wider than any step reads it, so that all steps take the same slice.
        self._mask = torch.cat([mask, mask.new_ones(rows, 2)], 1)
        self._column = torch.full((), self._length, device=ids.device)
        self._texts = torch.cat([ids, ids.new_zeros(rows, max_new_tokens)], 1)

    def texts(self) -> Iterator[Tensor]:
        """The texts ``(R, T + 1)``, ``(R, T + 2)`` and so on, as views of one buffer. They end
        early where no step can be captured."""
        why = self._graph.warm(self._step)
        yield self._grown()
        why = why or self._capture()
        if why is not None:
            self._on_failure(why)
            return
        while True:
            self._graph.replay()
            self._set_length(self._length)
            yield self._grown()

    def _capture(self) -> str | None:
        """Captures a step. Returns why that failed, or None."""
        try:
            self._graph.capture(self._step)
        except RuntimeError as error:
            self._set_length(self._length - 1)  # nothing has run
            return str(error)
        return None

    def _grown(self) -> Tensor:
        self._length += 1
        return self._texts[:, : self._length]

    def _step(self) -> None:
        """One more token for every row. All that it reads and writes keeps its address."""
        ids, mask = self._last.expand(-1, self._length), self._mask[:, : self._length]
        tokens = self._tokens(Prefix(ids, mask, self._column))
        tokens = self._stopping.padded(tokens, self._column)
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
    """Why no step of a call is captured, or None. No model is run to find out.

    Args:
        split_models: as far as they are known.
        extra: cache positions that attachments put in front of the prompt.
        switch: whether a capture is required, forbidden, or made where it pays.
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
    if not switch.required and call.max_new_tokens < MIN_TOKENS:
        return f"for {call.max_new_tokens} tokens it does not pay"
    readers = [*call.selection.host_readers, *map(name_of, other_criteria(call.criteria))]
    if call.returns_logits or readers:
        name = "output_logits" if call.returns_logits else readers[0]
        return f"{name} is looked at by the host at every step"
    if extra and plan.contexts:
        return "a prompt behind a trained prefix is read anew at every step"
    if plan.contexts and windows_of(call.model, call.cache):
        return "local attention counts the columns of other rows' prompts"
    return (
        split_models.why_uncapturable
        or _shift_obstacle(plan, call.selection)
        or _model_obstacle([call.model, *plan.experts.values()], split_models)
    )


def argument_obstacle(drafts: bool, trace: Any) -> str | None:
    """Why ``generate``'s own arguments prevent a capture, or None."""
    if drafts:
        return "a draft is as long as it happens to be"
    return None if trace is None else "a trace looks at every step"


def _head_obstacle(models: Sequence[Any], split_models: SplitModels) -> str | None:
    """Which model is no body under a linear head, found out by running it; or None."""
    for model in models:
        if split_models.get(model) is None:
            return f"'{model_name(model)}' is not a body under a linear head"
    return None


def _shift_obstacle(plan: Plan, selection: Selection) -> str | None:
    """Which of the controllers' formulas waits for the device, or None."""
    if plan.why_uncapturable:
        return plan.why_uncapturable
    if parts := steer.unfused(plan.truncation, selection.after):
        return f"no kernel fuses {parts}"
    return None


def _model_obstacle(models: Sequence[Any], split_models: SplitModels) -> str | None:
    """Which model does not do the same operations at every step, or None."""
    for model in models:
        name = f"'{model_name(model)}'"
        if model.device != models[0].device:
            return f"{name} is on {model.device} and the base is on {models[0].device}"
        if not is_static(StaticCache(config=text_config(model), max_cache_len=1)):
            return f"{name} has layers that no static cache holds"
        if not split_models.may_split(model):
            return f"{name} is not a body under a linear head"
        if (why := _body_obstacle(model.base_model)) is not None:
            return f"{name} {why}"
        quantizer = getattr(model, "hf_quantizer", None)
        compiles = quantizer is None or quantizer.is_compileable
        if not (compiles and getattr(model, "_can_compile_fullgraph", False)):
            return f"{name} does other operations at other steps"
    return None


def _body_obstacle(body: Any) -> str | None:
    """Why the host must run a body at every step, or None."""
    kind = getattr(body.config, "_attn_implementation", None)
    if kind not in ATTENTION:
        return f"attends by {kind}, which looks at its mask"
    if any(map(is_tampered_with, body.modules())) or has_global_hooks():
        return "has hooks, which a replay does not run"
    if any(getattr(module, "rope_type", "") == "dynamic" for module in body.modules()):
        return "turns its positions by their length"
    return None
