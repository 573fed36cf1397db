"""Speculative decoding under the controlled target: a draft, read by all models in one forward.

`plugalign.kernels.spec_verify` decides what stays; the mixture, the processors around it and the
filters of sampling are those of a plain step, at all places of a draft at once.
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
from plugalign.engine.batching.batched_base import BatchedBase, takes_rows
from plugalign.engine.context_length import context_length_of
from plugalign.engine.plan import Plan
from plugalign.engine.readers.incremental import text_config
from plugalign.engine.selection import Selection
from plugalign.engine.sources import SourceRunner
from plugalign.engine.speculative.drafts import Draft, Drafter, Speculation
from plugalign.engine.step import Step
from plugalign.engine.stopping import Stopping
from plugalign.errors import Running
from plugalign.kernels.spec_verify import spec_verify

# Processors with a memory of the text that they have seen: a draft would be part of it.
STATEFUL = (SynthIDTextWatermarkLogitsProcessor, UnbatchedClassifierFreeGuidanceLogitsProcessor)


@dataclass(frozen=True, eq=False)
class Round:
    """What a round has found.

    Attributes:
        tokens: ``(R, n)``; -1 where none is possible.
        step: all places of the draft at once.
        target: ``(R, n, V)``, what each token was drawn from.
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
        base, sources: read a draft's columns in one forward each.
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
        """The next tokens of ``ids`` ``(R, T)``, or None where a plain step is due: for the first,
        for the last, and where nothing was drafted. The mask is as wide as need be."""
        count = min(self._speculation.tokens, self._stopping.remaining(ids) - 1)
        if not self._base.length or count < 1:
            return None
        with Running(f"a draft at {self._sources.where(ids)}"):
            draft = self._drafter.draft(ids, mask, count)
        if draft is None:
            return None
        whole = torch.cat([ids, draft.tokens], 1)
        step, logits = self._read(draft, whole, mask[:, : whole.shape[1]])
        target = self._selection.target(whole, step.mixture(), self._plan.truncation)
        accepted, following = self.verified(ids, draft, target)
        kept, failed = self._looked_at(draft, accepted, following)
        self._rewind(ids.shape[1] + kept)
        tokens = draft.tokens[:, : kept + 1]
        last = following
        if kept < count:
            last = torch.where(accepted > kept, draft.tokens[:, kept], following)
        tokens = torch.cat([tokens[:, :kept], last[:, None]], 1)
        logits = logits.view(len(ids), count + 1, -1)[:, : kept + 1]
        return Round(tokens, step, target[:, : kept + 1], logits, failed)

    def verified(self, ids: Tensor, draft: Draft, target: Tensor) -> tuple[Tensor, Tensor]:
        """How many drafted tokens stay ``(R,)`` behind ``ids`` ``(R, T)``, and what follows."""
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

    def forget(self) -> None:
        """Frees the drafter's keys and values."""
        self._drafter.forget()

    def _read(self, draft: Draft, ids: Tensor, mask: Tensor) -> tuple[Step, Tensor]:
        """The step behind the last token and each drafted one, and the base's logits there."""
        known = draft.base
        if known is None:
            who = self._plan.forward_name(self._base.batched_keys)
            with Running(f"{who} at {self._sources.where(ids)}"):
                known = self._base.read(ids, mask)
        base = self._selection.base(ids, known.base)
        return Step(self._plan, self._sources, ids, mask, base, known), known.base

    def _looked_at(self, draft: Draft, accepted: Tensor, following: Tensor) -> tuple[int, bool]:
        """How many drafted tokens stay in all rows that have not ended, and whether a row has no
        token behind them. The host looks at the device here, and for all that it wants to know.

        Raises:
            FloatingPointError: if what drafted gave NaN or infinite logits.
        """
        live = self._stopping.live
        kept = torch.where(live, accepted, draft.tokens.shape[1]).amin()
        failed = ((accepted <= kept) & (following < 0)).any()
        counts = [kept, failed, (draft.lengths * live).sum(), (accepted * live).sum(), live.sum()]
        if draft.failed is not None:
            counts.append(draft.failed)
        stay, none, drafted, stayed, rows, *blamed = torch.stack(
            [x.long() for x in counts]
        ).tolist()
        if any(blamed):
            self._drafter.blame()
        told = self._speculation
        told.rounds += 1
        told.drafted += drafted
        told.accepted += stayed
        told.emitted += rows * (stay + 1)
        return stay, bool(none)

    def _rewind(self, length: int) -> None:
        """Leaves so many columns of what was read."""
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
    """Refuses what cannot verify a draft in one forward, before any model runs.

    Args:
        split: whether the base's body and head run apart. cache: the base's.

    Raises:
        ValueError: naming what stands in the way.
    """
    readers = [m for s in plan.sources.values() for m, _ in s.models if m is not None]
    why = plan.why_stepwise or ""
    if not isinstance(speculation.draft, str):
        readers.append(speculation.draft)
        room, longest = context_length_of(speculation.draft), stopping.max_length
        if room is not None and longest is not None and longest > room:
            why = f"the draft model reads {room} tokens, and a text may have {longest}"
    for processor in selection.processors:
        if isinstance(processor, STATEFUL):
            why = f"{type(processor).__name__} remembers what it was asked before"
    if plan.needs_hidden and not split:
        why = "a controller reads hidden states, and the model's head is no plain linear layer"
    for model in readers:
        if not takes_rows(own := DynamicCache(config=text_config(model))):
            why = f"'{model_name(model)}' keeps a cache that forgets no columns: {_kept(own)}"
    if not takes_rows(cache):
        why = f"the base keeps a cache that forgets no columns: {_kept(cache)}"
    if why:
        raise ValueError(f"no draft can be verified here: {why}")


def _kept(cache: Any) -> str:
    """What in a cache forgets no columns, in words."""
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers):
        return "states that have taken in all tokens"
    if any(cache.is_sliding):
        return "sliding windows"
    return f"a {type(cache).__name__}; leave cache_implementation at its default"
