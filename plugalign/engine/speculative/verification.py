"""Speculative decoding under the controlled target: all models read a draft in one forward.

`plugalign.kernels.spec_verify` decides which tokens are accepted. The mixture, the processors
around it and the filters of sampling are those of a plain step, at all positions of a draft at
once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from plugalign.algebra.identity import model_name
from plugalign.engine.batching.batched_base import BatchedBase, is_growing
from plugalign.engine.context_length import context_length_of
from plugalign.engine.plan import Plan
from plugalign.engine.prefix import Prefix, prefix_of
from plugalign.engine.readers.cache_spec import text_config
from plugalign.engine.selection import Selection
from plugalign.engine.sources import SourceRunner
from plugalign.engine.speculative.drafters import Drafter
from plugalign.engine.speculative.drafts import Draft, Speculation
from plugalign.engine.step import Step
from plugalign.engine.stopping import Stopping
from plugalign.errors import Running
from plugalign.kernels.spec_verify import spec_verify

# Processors that remember the texts they were given: a draft would be one of them.
STATEFUL = (SynthIDTextWatermarkLogitsProcessor, UnbatchedClassifierFreeGuidanceLogitsProcessor)


@dataclass(frozen=True, eq=False)
class Round:
    """The outcome of drafting and verifying once.

    Attributes:
        tokens: the next n tokens of each row ``(R, n)``; -1 where none is possible.
        step: all positions of the draft at once.
        target: ``(R, n, V)``, the scores that each token was drawn from.
        logits: the base's ``(R, n, V)``.
        failed: whether a token is -1.
    """

    tokens: Tensor
    step: Step
    target: Tensor
    logits: Tensor
    failed: bool


class Speculator:
    """The rounds of one ``generate`` call.

    Args:
        base, sources: each reads the columns of a draft in one forward.
    """

    def __init__(
        self,
        plan: Plan,
        speculation: Speculation,
        drafter: Drafter,
        base: BatchedBase,
        sources: SourceRunner,
        selection: Selection,
        stopping: Stopping,
    ):
        self._plan, self._speculation, self._drafter = plan, speculation, drafter
        self._base, self._sources = base, sources
        self._selection, self._stopping = selection, stopping

    def round(self, ids: Tensor, mask: Tensor) -> Round | None:
        """The next tokens of ``ids`` ``(R, T)``; None where a plain step must follow: for the first
        token, for the last, and where nothing was drafted.

        Args:
            mask: ``(R, T')``, with columns for the draft too.
        """
        count = min(self._speculation.tokens, self._stopping.remaining(ids) - 1)
        if not self._base.length or count < 1:
            return None
        with Running(f"a draft at {self._sources.where(ids)}"):
            draft = self._drafter.draft(ids, mask, count)
        if draft is None:
            return None
        prefix = prefix_of(torch.cat([ids, draft.tokens], 1), mask)
        step, logits = self._read(draft, prefix)
        target = self._selection.target(prefix, step.mixture(), self._plan.truncation)
        accepted, following = self.verified(ids, draft, target)
        kept, failed = self.counted(draft, accepted, following)
        self._rewind(ids.shape[1] + kept)
        last = following
        if kept < count:
            last = torch.where(accepted > kept, draft.tokens[:, kept], following)
        tokens = torch.cat([draft.tokens[:, :kept], last[:, None]], 1)
        logits = logits.view(len(ids), count + 1, -1)[:, : kept + 1]
        return Round(tokens, step, target[:, : kept + 1], logits, failed)

    def verified(self, ids: Tensor, draft: Draft, target: Tensor) -> tuple[Tensor, Tensor]:
        """The number of drafted tokens accepted behind ``ids`` ``(R, T)``, and the token after
        them, int64 ``(R,)`` each.

        Args:
            target: ``(R, G + 1, V)``.
        """
        selection, noise = self._selection, self._selection.noise
        return spec_verify(
            target,
            draft.scores if selection.temperature > 0 else None,
            draft.tokens,
            seed=noise.seed,
            prompt=noise.prompt,
            sample=noise.sample,
            step=ids.shape[1] - noise.start,
            lengths=draft.lengths,
            temperature=selection.temperature,
            draft_temperature=selection.temperature or 1.0,
        )

    def counted(self, draft: Draft, accepted: Tensor, following: Tensor) -> tuple[int, bool]:
        """The number of drafted tokens that all unfinished rows accept, and whether a row has no
        token behind them. All numbers of a round come to the host here, at once.

        Raises:
            FloatingPointError: if the drafting model gave NaN or infinite logits.
        """
        live = self._stopping.live
        kept = torch.where(live, accepted, draft.tokens.shape[1]).amin()
        failed = ((accepted <= kept) & (following < 0)).any()
        counts = [kept, failed, (draft.lengths * live).sum(), (accepted * live).sum(), live.sum()]
        if draft.failed is not None:
            counts.append(draft.failed)
        numbers = torch.stack([x.long() for x in counts]).tolist()
        count, is_missing, drafted, total, rows, *draft_failed = numbers
        if any(draft_failed):
            self._drafter.check()
        speculation = self._speculation
        speculation.rounds += 1
        speculation.drafted += drafted
        speculation.accepted += total
        speculation.emitted += rows * (count + 1)
        return count, bool(is_missing)

    def forget(self) -> None:
        """Frees the drafter's keys and values."""
        self._drafter.forget()

    def _read(self, draft: Draft, prefix: Prefix) -> tuple[Step, Tensor]:
        """The step at the last token and each drafted one, and the base's logits
        ``(R * (G + 1), V)`` there."""
        output = draft.base
        if output is None:
            name = self._plan.forward_name(self._base.batched_keys)
            with Running(f"{name} at {self._sources.where(prefix.ids)}"):
                output = self._base.read(prefix)
        base, change = self._selection.base_and_change(prefix, output.base)
        step = Step(self._plan, self._sources, prefix, base, output, change=change)
        return step, output.base

    def _rewind(self, length: int) -> None:
        """Forgets what was read behind ``length`` columns."""
        columns = self._base.length - length
        self._base.rewind(columns)
        self._sources.rewind(columns)
        self._drafter.rewind(length)


def check_verifiable(
    plan: Plan,
    speculation: Speculation,
    split: bool,
    cache: Any,
    selection: Selection,
    stopping: Stopping,
) -> None:
    """Refuses a call whose drafts cannot be verified in one forward, before any model runs.

    Args:
        split: whether the base's body and head run apart.
        cache: the base's.

    Raises:
        ValueError: naming the reason.
    """
    why = (
        _why_not_rewound(plan, speculation, cache)
        or _why_hidden(plan, split)
        or _why_stateful(selection)
        or _why_too_long(speculation, stopping.max_length)
        or plan.why_stepwise
    )
    if why is not None:
        raise ValueError(f"no draft can be verified here: {why}")


def _why_not_rewound(plan: Plan, speculation: Speculation, cache: Any) -> str | None:
    """The cache that cannot forget rejected tokens, or None."""
    if not is_growing(cache):
        return f"the base keeps a cache that forgets no columns: {_kept(cache)}"
    models = [m for s in plan.sources.values() for m, _ in s.models if m is not None]
    if not isinstance(speculation.draft, str):
        models.append(speculation.draft)
    for model in models:
        if not is_growing(own := DynamicCache(config=text_config(model))):
            return f"'{model_name(model)}' keeps a cache that forgets no columns: {_kept(own)}"
    return None


def _kept(cache: Any) -> str:
    """What in a cache forgets no columns."""
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers):
        return "states that have taken in all tokens"
    if any(cache.is_sliding):
        return "sliding windows"
    return f"a {type(cache).__name__}; leave cache_implementation at its default"


def _why_hidden(plan: Plan, split: bool) -> str | None:
    if plan.needs_hidden and not split:
        return "a controller reads hidden states, and the model's head is no plain linear layer"
    return None


def _why_stateful(selection: Selection) -> str | None:
    for processor in selection.processors:
        if isinstance(processor, STATEFUL):
            return f"{type(processor).__name__} remembers what it was asked before"
    return None


def _why_too_long(speculation: Speculation, max_length: int | None) -> str | None:
    if isinstance(speculation.draft, str) or max_length is None:
        return None
    length = context_length_of(speculation.draft)
    if length is None or max_length <= length:
        return None
    return f"the draft model reads {length} tokens, and a text may have {max_length}"
