"""The state of one ``generate`` call, and the step that every decoding mode shares.

A `Plan` holds what the controllers declare for a model and is made once; a `Run` is made for each
call. A step is a pure function of the prefix and the base's scores, so beams, rewinds and several
return sequences are safe.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.sources import Context
from plugalign.engine.acceleration.compiled import StaticDecoding
from plugalign.engine.batching.batched_base import takes_contexts, takes_experts
from plugalign.engine.batching.contexts import context_layout
from plugalign.engine.batching.grouped import GroupedModels
from plugalign.engine.changes import forbidding, taken_apart
from plugalign.engine.plan import Plan
from plugalign.engine.prefix import Prefix, prefix_of
from plugalign.engine.prompt_mask import PromptMask
from plugalign.engine.readers.cache_spec import cache_spec_of
from plugalign.engine.readers.heads import SplitModel, SplitModels
from plugalign.engine.readers.hidden import HiddenWatch
from plugalign.engine.readers.incremental import IncrementalModel
from plugalign.engine.readers.prefix_cache import CachedModel
from plugalign.engine.sources import ModelReader, ReaderKind, SourceRunner
from plugalign.engine.step import Step
from plugalign.engine.stopping import LiveRows
from plugalign.kernels import steer
from plugalign.trace import StepRecord, Trace, distinct_names


class Run:
    """Evaluates a plan for one ``generate`` call.

    Args:
        prompt_mask, pad_token_id, infer_mask: see `PromptMask`.
        extra_positions: cache positions that attachments put in front of the prompt.
        split_models: the models that can be run as body and head, kept from call to call.
    """

    def __init__(
        self,
        plan: Plan,
        model: Any,
        *,
        prompt_mask: Tensor | None = None,
        pad_token_id: int = 0,
        infer_mask: bool | None = False,
        extra_positions: int = 0,
        trace: Trace | None = None,
        split_models: SplitModels | None = None,
    ):
        self.plan, self.trace = plan, trace
        self.live_rows = LiveRows()
        self.pad, self._mask = pad_token_id, PromptMask(prompt_mask, pad_token_id, infer_mask)
        self._watch = HiddenWatch(model)
        self._watch.extra_positions = extra_positions
        self._model, self._length = model, 0 if prompt_mask is None else prompt_mask.shape[1]
        self.split_models = split_models or SplitModels(plan.needs_float32_logits)
        # SplitModel here: a model that is watched later has hooks, and is then run as it is.
        rounds = plan.needs_float32_logits and model.dtype in (torch.float16, torch.bfloat16)
        self._rounded = self.split_models.get(model) if rounds else None
        self.extra_positions = extra_positions
        self._normalised: bool | None = None  # whether the scores are log-probabilities, if watched
        self._sources = self.sources(self._cached)
        if trace is not None:
            trace.names = distinct_names([name for name, _ in plan.steerings])

    @contextmanager
    def watching(
        self, base_is_whole: bool = True, changed: bool = False, normalised: bool = False
    ) -> Iterator[None]:
        """Watches the hidden states of the base's forwards in the block, if they are needed.

        Args:
            base_is_whole: whether the base runs with its head, and not as a body by itself, and its
                last forward before a step is that of the text.
            changed: whether processors change its logits before they come to `step`, so that these
                are watched too. normalised: whether it is the logarithms of probabilities that they
                change, as in a beam search.
        """
        hidden = self.needs_hidden and base_is_whole
        self._normalised = normalised if changed else None
        if not (hidden or changed):
            yield
            return
        with self._watch.watching(hidden, changed):
            yield

    @torch.no_grad()
    def step(self, ids: Tensor, scores: Tensor) -> Tensor:
        """The steered log-probabilities ``(R, V)`` after the prefixes ``ids`` ``(R, T)``.

        Raises:
            FloatingPointError: if a model gives NaN or infinite logits; names source and step.
        """
        prefix = prefix_of(ids, self._mask.of(ids))
        base, change = self._base_and_change(ids, scores)
        step = Step(self.plan, self._sources, prefix, self._unrounded(prefix, base), change=change)
        try:
            steered = steer.scores(step.mixture(), before=self.plan.truncation)
            self._check_finite(step, steered)
        except BaseException:
            self._sources.forget()  # the error's traceback would keep all caches
            raise
        if self.trace is not None:
            self.trace.chosen(ids)
            self.record(step, steered, self.live_rows.of(ids))
        return steered

    @torch.no_grad()
    def check(self, ids: Tensor, scores: Tensor) -> None:
        """Checks the base's scores ``(R, V)`` after ``ids`` ``(R, T)``, where nothing steers.

        Raises:
            FloatingPointError: as `step` does.
        """
        step = Step(self.plan, self._sources, prefix_of(ids, self._mask.of(ids)), scores)
        self._check_finite(step, scores)
        if self.trace is not None:
            self.trace.chosen(ids)
            self.record(step, torch.log_softmax(scores.float(), -1), self.live_rows.of(ids))

    @property
    def needs_hidden(self) -> bool:
        """Whether steps read the base's last hidden state."""
        return self.plan.needs_hidden or self._rounded is not None

    def _cached(self, model: Any, keys_values: Tensor | None) -> CachedModel:
        return CachedModel(model, keys_values, self._split_of(model))

    def _split_of(self, model: Any) -> SplitModel | None:
        is_base = model is self._model and self._rounded is not None
        return self._rounded if is_base else self.split_models.get(model)

    def _base_and_change(self, ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """The base's scores ``(R, V)`` for the controllers, and what processors have added to them,
        where its logits were watched."""
        logits = None if self._normalised is None else self._watch.find_logits(ids)
        if logits is None:
            return forbidding(scores), None
        return taken_apart(torch.log_softmax(logits, -1) if self._normalised else logits, scores)

    def _unrounded(self, prefix: Prefix, scores: Tensor) -> Tensor:
        """The base's scores ``(R, V)`` without the rounding of its logits to half precision, where
        probabilities are compared. What processors have changed in the scores is kept."""
        if self._rounded is None:
            return scores
        hidden = self._sources.hidden(prefix.ids, prefix.mask)
        head = self._rounded.head(hidden.to(self._rounded.linear.weight.dtype))
        return scores + (head.full() - replace(head, float32=False).full().float())

    def _check_finite(self, step: Step, scores: Tensor) -> None:
        """Raises FloatingPointError where a row of scores ``(R, V)`` has no finite maximum."""
        if not torch.isfinite(scores.amax(-1)).all():
            step.check()
            raise FloatingPointError(f"no token is possible at {self._sources.where(step.ids)}")

    def sources(self, reader: ReaderKind) -> SourceRunner:
        """The plan's sources with empty caches, read by readers that ``reader`` makes."""
        return SourceRunner(self.plan, self._model, self._watch, self.pad, self._length, reader)

    def incremental_sources(
        self,
        repeats: Tensor | None = None,
        all_positions: bool = False,
        static: StaticDecoding | None = None,
    ) -> SourceRunner:
        """The plan's sources, read incrementally; for the arguments see `IncrementalModel`. A model
        that keeps no columns is asked for whole prefixes."""

        def reader(model: Any, keys_values: Tensor | None) -> ModelReader:
            if not cache_spec_of(model).columns:
                return self._cached(model, keys_values)
            return self.incremental_model(
                model, keys_values, static, repeats=repeats, all_positions=all_positions
            )

        return self.sources(reader)

    def incremental_model(
        self,
        model: Any,
        keys_values: Tensor | None = None,
        static: StaticDecoding | None = None,
        **options: Any,
    ) -> IncrementalModel:
        """A model that reads a growing batch column by column; see `IncrementalModel`."""
        split = self.split_models.get(model, static)
        max_columns = static.max_columns if static and split is not None else None
        return IncrementalModel(model, keys_values, split=split, max_columns=max_columns, **options)

    def batched_with_base(
        self, cache: Any, columns: int | None, captured: bool = False
    ) -> tuple[dict[Hashable, Context], GroupedModels | None]:
        """What is batched with the base: contexts by source key, and the experts' models.

        Nothing is where an attachment puts positions in front of the base's prompts.

        Args:
            cache: the base's.
            columns: of a text at the end of the call; None where there is no end.
            captured: whether the whole step is captured in a CUDA graph.
        """
        if self.extra_positions or not takes_experts(cache, captured):
            return {}, None
        plan, contexts = self.plan, dict[Hashable, Context]()
        if takes_contexts(self._model, cache, self.columns_with_contexts(columns)):
            contexts = {key: source.context for key, source in plan.contexts.items()}
        blocks = 1 + len(contexts)
        return contexts, plan.groups.group(self._model, plan.experts, self.split_models, blocks)

    def columns_with_contexts(self, columns: int | None) -> int | None:
        """The columns of a text with those of the contexts in which every step reads it."""
        contexts = (source.context for source in self.plan.contexts.values())
        return columns and columns + context_layout(contexts, self.pad).columns

    def hidden(self) -> Tensor | None:
        """The base's last hidden state ``(R, D)``, as watched in its last forward; else None."""
        return self._watch.last()

    def record(self, step: Step, steered: Tensor, alive: Tensor) -> None:
        """Records in the trace what each controller alone would have done, and all together.

        Args:
            steered: log-probabilities ``(R, V)`` under all shifts and supports.
            alive: the rows that have not ended, bool ``(R,)``; it is kept.
        """
        assert self.trace is not None
        plan, together = self.plan, steered
        alone = [steer.scores(step.alone(s.shifts)) for _, s in plan.steerings]
        if plan.supports:
            together = steer.scores(step.alone(plan.shifts))
        steerings = zip(self.trace.names, plan.steerings, strict=True)
        certificates = {name: step.certificate(s.shifts) for name, (_, s) in steerings}
        self.trace.record(
            step.ids.shape[1],
            StepRecord(
                steer.scores(step.alone(())),
                alone,
                together,
                steered,
                alive,
                {name: found for name, found in certificates.items() if found},
            ),
        )
