"""What a ``generate`` call would do, in words: its path, what is fused, what is captured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.sources import BASE, Logits
from plugalign.engine.acceleration import captured_step
from plugalign.engine.acceleration.switch import CaptureSwitch
from plugalign.engine.batching.batched_base import takes_contexts, takes_experts
from plugalign.engine.call import Call, prepared_call
from plugalign.engine.plan import Plan
from plugalign.engine.readers.cache_spec import windows_of
from plugalign.engine.speculative.drafts import BASE as DRAFTED_BY_BASE
from plugalign.engine.speculative.drafts import Speculation
from plugalign.engine.stopping import max_length_of
from plugalign.generation.calling import PreparedCall
from plugalign.generation.routing import obstacle
from plugalign.kernels.truncation import Truncation
from plugalign.sampling import CoupledSampler

LOOP, PROCESSOR = "the owned loop", "the processor path"  # how an explanation begins
REPLAYED = "the third is captured, and then replayed"
CACHE_LENGTH = "_previous_max_cache_length"


@dataclass(frozen=True)
class Explanation:
    """Says what a prepared call does. Nothing runs but transformers' own preparation of the call.

    Args:
        call: its prompts may be stand-ins, see `example_prompts`.
        attached: whether a controller acts on the model's own forward.
        revisers: the controllers that revise finished answers.
        speculation: what drafts tokens, if anything.
        switch: whether steps are to be captured.
    """

    call: PreparedCall
    attached: bool
    revisers: Sequence[Controller]
    speculation: Speculation | None
    switch: CaptureSwitch

    def text(self) -> str:
        """A line for each thing there is to say, the path first."""
        why = obstacle(self.call.model, self.call.ids, self.call.request)
        lines = self._of_loop() if why is None else self._of_processor(why)
        if self.speculation is not None:
            lines.append(
                f"drafted: {self.speculation.described if why is None else 'nothing there'}"
            )
        if self.revisers:
            names = ", then ".join(part.display_name for part in self.revisers)
            lines.append(f"finished answers are revised by {names}")
        return "\n".join(lines)

    def _of_processor(self, why: str) -> list[str]:
        steps = [_steps(why, self.switch)] if self.switch.required else []
        return [f"{PROCESSOR}: {why}", *steps]

    def _of_loop(self) -> list[str]:
        plan, call = self.call.run.plan, self._prepared()
        selection, uncaptured = call.selection, self._uncaptured(call)
        beside = [source.name for key, source in plan.always_read.items() if key != BASE]
        gated = [source.name for key, source in plan.sources.items() if key not in plan.always_read]
        rows = takes_experts(call.cache, uncaptured is None) and not self._alone
        return [
            f"{LOOP}: {'greedy' if selection.temperature == 0 else 'sampling'}",
            f"run at every step: {', '.join(['the base', *beside])}",
            *([f"run where a gate is open: {', '.join(gated)}"] if gated else []),
            *_experts(plan, self.call.model, rows),
            *self._contexts(call, rows),
            *selection.description(),
            f"kept of the base: {_words(plan.truncation)}",
            *(f"kept by a mask: {type(support).__name__}" for support in plan.masks),
            f"kept of what is drawn from: {_words(selection.after)}, at temperature "
            f"{selection.temperature}",
            _steps(uncaptured, self.switch),
        ]

    def _contexts(self, call: Call, rows: bool) -> list[str]:
        """How the base is run under prompts and behind trained prefixes, in a line."""
        count, run = len(self.call.run.plan.contexts), self.call.run
        if not count:
            return []
        columns = run.columns_with_contexts(max_length_of(call.criteria))
        how = "rows of the base's forward"
        if not rows:
            how = "a forward of their own: the base takes no rows"
        elif not takes_contexts(call.model, call.cache, columns):
            window = min(windows_of(call.model, call.cache))
            how = (
                f"a forward of their own: {columns or 'any number of'} columns may be more than a "
                f"window of {window} holds"
            )
        return [f"the base in other contexts ({count}): {how}"]

    @property
    def _alone(self) -> bool:
        """Whether no other source is read in the base's forward."""
        drafts = self.speculation is not None and self.speculation.draft == DRAFTED_BY_BASE
        return self.attached or drafts

    def _prepared(self) -> Call:
        """The call as transformers prepares it."""
        call = self.call
        arguments = {name: v for name, v in call.arguments.items() if name != "streamer"}
        prompts = {"input_ids": call.ids, "attention_mask": call.mask}
        # Selecting tokens draws a seed, and the next call is to draw the same.
        with torch.random.fork_rng(devices=[]), _unchanged(call.model):
            prepared: Call = call.model.generate(
                **prompts, **arguments, custom_generate=prepared_call
            )
        return prepared

    def _uncaptured(self, call: Call) -> str | None:
        """Why the host launches each step of the call, or None where steps are replayed."""
        run, drafts = self.call.run, self.speculation is not None
        return (
            self.switch.why_off
            or captured_step.graph_obstacle(call.model.device)
            or captured_step.argument_obstacle(drafts, run.trace)
            or captured_step.obstacle(
                call, run.plan, run.split_models, int(self._alone), self.switch
            )
        )


def example_prompts(processors: Sequence[Any], device: torch.device) -> Tensor:
    """Token ids ``(1, T)`` for a call that is explained without prompts: one token, or as many
    columns as a `CoupledSampler` was made for."""
    samplers = [p for p in processors if isinstance(p, CoupledSampler)]
    columns = max((p.prompt_length or 1 for p in samplers), default=1)
    return torch.ones(1, columns, dtype=torch.long, device=device)


def _steps(why: str | None, switch: CaptureSwitch) -> str:
    """How a call's steps are launched, where ``why`` says what stands in the way of a capture."""
    if why is None:
        return f"steps: {REPLAYED}"
    how = f"{switch.origin} is refused" if switch.required else "launched by the host"
    return f"steps: {how}: {why}"


@contextmanager
def _unchanged(model: Any) -> Iterator[None]:
    """transformers makes every later static cache of a model as long as the longest it prepared."""
    before = getattr(model, CACHE_LENGTH, None)
    try:
        yield
    finally:
        if before is not None:
            setattr(model, CACHE_LENGTH, before)
        elif hasattr(model, CACHE_LENGTH):
            delattr(model, CACHE_LENGTH)


def _experts(plan: Plan, model: Any, rows: bool) -> list[str]:
    """How the other models are run, a line each."""
    lines = []
    for source in plan.sources.values():
        if isinstance(source, Logits) and source.model is not None:
            why = _why_apart(plan, source, model, rows)
            how = f"a forward of its own: {why}" if why else "rows of the base's forward"
            lines.append(f"{source.name}: {how}")
    return lines


def _why_apart(plan: Plan, source: Logits, model: Any, rows: bool) -> str | None:
    """Why another model has no rows in the base's forward, or None where it has."""
    if source.key not in plan.always_read:
        return "it stands behind a gate"
    if not source.context.is_empty:
        return "it reads another context"
    why: str | None = plan.groups.why_not_grouped(model, source.model)
    return why if rows else "the base takes no rows"


def _words(cut: Truncation) -> str:
    named = (("top-k", cut.top_k, 0), ("top-p", cut.top_p, 1.0), ("min-p", cut.min_p, 0.0))
    return ", ".join(f"{name} {value}" for name, value, all_ in named if value != all_) or "all"
