"""One ``generate`` call's state, and the step that every decoding mode shares.

A `Plan` is what the controllers declare for a model, made once. A `Run` is made for each call and
dies with it. A `SteeringProcessor` is the run seen by transformers: a pure function of the prefix
and the base's scores, so beams, rewinds and several return sequences are safe.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from plugalign.algebra.sources import Context
from plugalign.engine.acceleration.compiled import StaticDecoding
from plugalign.engine.batching.batched_base import takes_rows
from plugalign.engine.batching.grouped import GroupedModels
from plugalign.engine.plan import Plan
from plugalign.engine.readers.carrying import Carrying
from plugalign.engine.readers.heads import SplitModel, SplitModels
from plugalign.engine.readers.hidden import HiddenWatch
from plugalign.engine.readers.incremental import IncrementalModel
from plugalign.engine.readers.prefix_cache import CachedModel
from plugalign.engine.sources import ModelReader, ReaderKind, SourceRunner
from plugalign.engine.step import Step
from plugalign.kernels import steer
from plugalign.trace import Trace


class Run:
    """Evaluates a plan for one ``generate`` call.

    Args:
        prompt_mask: the prompts' mask ``(B, T)``; None infers left padding from the pad token.
        pad_token_id: used to fill, and to infer the mask where none is given.
        infer_mask: whether leading pad tokens mean padding when there is no mask; None: nobody can
            tell.
        extra_positions: cache positions that attachments put in front of the prompt.
        split_models: which models can be run as body and head; remembered from call to call.
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
        self.pad, self._prompt_mask = pad_token_id, prompt_mask
        self._infer, self._unclear = bool(infer_mask), infer_mask is None
        self._watch = HiddenWatch(model)
        self._watch.extra_positions = extra_positions
        self._model, self._length = model, 0 if prompt_mask is None else prompt_mask.shape[1]
        self.split_models = split_models or SplitModels(plan.needs_float32_logits)
        # Found out here, since a watched model cannot be split.
        rounds = plan.needs_float32_logits and model.dtype in (torch.float16, torch.bfloat16)
        self._rounded = self.split_models.get(model) if rounds else None
        self.extra_positions = extra_positions
        self._sources = self.sources(self._cached)
        if trace is not None:
            trace.names = tuple(name for name, _ in plan.steerings)

    @contextmanager
    def watching(self, base_is_whole: bool = True) -> Iterator[None]:
        """Reads hidden states off the base's forwards for the length of the block, if they are
        needed and the base's body does not run by itself."""
        if not (self.needs_hidden and base_is_whole):
            yield
            return
        with self._watch.watching():
            yield

    @torch.no_grad()
    def step(self, ids: Tensor, scores: Tensor) -> Tensor:
        """The steered log-probabilities ``(R, V)`` after the prefixes ``ids`` ``(R, T)``.

        Raises:
            FloatingPointError: if a model gives NaN or infinite logits; names source and step.
        """
        mask = self.mask_for(ids)
        scores = self._unrounded(ids, mask, scores)
        step = Step(self.plan, self._sources, ids, mask, scores)
        try:
            steered = steer.scores(step.mixture(), before=self.plan.truncation)
            self._refuse_nonsense(step, steered)
        except BaseException:
            self._sources.forget()  # the error's traceback would keep all caches
            raise
        if self.trace is not None:
            self.trace.chosen(ids)
            self.record(step, steered)
        return steered

    @torch.no_grad()
    def check(self, ids: Tensor, scores: Tensor) -> None:
        """Only looks at the base's scores ``(R, V)``, where nothing steers.

        Raises:
            FloatingPointError: as `step` does.
        """
        self._refuse_nonsense(
            Step(self.plan, self._sources, ids, self.mask_for(ids), scores), scores
        )

    @property
    def needs_hidden(self) -> bool:
        """Whether a step reads what the base's head reads."""
        return self.plan.needs_hidden or self._rounded is not None

    def _cached(self, model: Any, keys_values: Tensor | None) -> CachedModel:
        return CachedModel(model, keys_values, self._split_of(model))

    def _split_of(self, model: Any) -> SplitModel | None:
        own = model is self._model and self._rounded is not None
        return self._rounded if own else self.split_models.get(model)

    def _unrounded(self, ids: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
        """The base's scores ``(R, V)`` without the rounding of its logits to half precision, where
        probabilities are compared; whatever processors did to the scores stays."""
        if self._rounded is None:
            return scores
        hidden = self._sources.hidden(ids, mask)
        head = self._rounded.head(hidden.to(self._rounded.linear.weight.dtype))
        return scores + (head.full() - replace(head, float32=False).full(exact=True).float())

    def _refuse_nonsense(self, step: Step, scores: Tensor) -> None:
        if not torch.isfinite(scores.amax(-1)).all():
            step.check()
            raise FloatingPointError(f"no token is possible at {self._sources.where(step.ids)}")

    def sources(self, reader: ReaderKind) -> SourceRunner:
        """The plan's sources, with empty caches, read by readers of one kind."""
        return SourceRunner(self.plan, self._model, self._watch, self.pad, self._length, reader)

    def incremental_sources(
        self, copies: int = 1, every: bool = False, static: StaticDecoding | None = None
    ) -> SourceRunner:
        """The plan's sources, read incrementally; for the arguments see `IncrementalModel`. A model
        that keeps no columns is asked for whole prefixes."""

        def reader(model: Any, keys_values: Tensor | None) -> ModelReader:
            if not Carrying.of(model).columns:
                return self._cached(model, keys_values)
            return self.incremental_model(model, keys_values, static, copies=copies, every=every)

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
        self, cache: Any, captured: bool = False
    ) -> tuple[dict[Hashable, Context], GroupedModels | None]:
        """What is read in one forward with the base, whose cache is given: contexts and experts.
        Nothing is where an attachment has a say in how the base reads."""
        if self.extra_positions or not takes_rows(cache, captured):
            return {}, None
        plan = self.plan
        contexts = {key: source.context for key, source in plan.contexts.items()}
        blocks = 1 + len(contexts)
        return contexts, plan.groups.group(self._model, plan.experts, self.split_models, blocks)

    def hidden(self) -> Tensor | None:
        """What the base's head has just read, ``(R, D)``, if it was watched."""
        return self._watch.last()

    def record(self, step: Step, steered: Tensor) -> None:
        """Notes in the trace what each controller alone would have done, and all together."""
        assert self.trace is not None
        alone = [steer.scores(step.alone(s.shifts)) for _, s in self.plan.steerings]
        base = torch.log_softmax(step.base.float(), -1)
        self.trace.record(step.ids.shape[1], base, alone, steered)

    def mask_for(self, ids: Tensor) -> Tensor:
        """The mask ``(R, T)``: the prompt's, repeated over beams or samples, then ones.

        Raises:
            ValueError: if the prompts' mask is of other texts, or there is none and a row begins
                with a token that may be padding or text.
        """
        given, (rows, length) = self._prompt_mask, ids.shape
        if given is not None:
            if rows % len(given) or length < given.shape[1]:
                raise ValueError(
                    f"the attention_mask of shape {tuple(given.shape)} is of other prompts than "
                    f"texts of shape {tuple(ids.shape)}; make a processor for each call"
                )
            front = given.to(ids.device).repeat_interleave(rows // len(given), 0)
            tail = front.new_ones(rows, length - front.shape[1])
            return torch.cat([front, tail], 1)
        begins = ids[:, 0] == self.pad
        if self._infer:
            return (ids != self.pad).long().cumsum(-1).clamp_max(1)
        if self._unclear and bool(begins.any()):
            raise ValueError(
                f"row {int(begins.long().argmax())} begins with token {self.pad}, which both pads "
                "and ends texts; pass attention_mask= to tell padding from text"
            )
        return torch.ones_like(ids)


class SteeringProcessor(LogitsProcessor):  # type: ignore[misc]
    """A run as a transformers ``LogitsProcessor``; returns normalised log-probabilities."""

    def __init__(self, run: Run):
        self.run = run

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Steers ``scores`` ``(R, V)`` after the prefixes ``input_ids`` ``(R, T)``."""
        return self.run.step(input_ids, scores)


class CheckingProcessor(LogitsProcessor):  # type: ignore[misc]
    """Leaves scores as they are, and refuses such as are NaN or infinite."""

    def __init__(self, run: Run):
        self.run = run

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Looks at ``scores`` ``(R, V)`` after the prefixes ``input_ids`` ``(R, T)``."""
        self.run.check(input_ids, scores)
        return scores
