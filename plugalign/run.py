"""One ``generate`` call's state, and the step that every decoding mode shares.

A `Plan` is what the controllers declare for a model, made once. A `Run` is made for each call and
dies with it. A `SteeringProcessor` is the run seen by transformers: a pure function of the prefix
and the base's scores, so beams, rewinds and several return sequences are safe.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from plugalign.hidden import HiddenWatch
from plugalign.kernels import reweighting, steer
from plugalign.kernels.mixture import AttributeLogits, Decay, Mixture
from plugalign.plan import Plan
from plugalign.sources import SourceRunner
from plugalign.steering import (
    BASE,
    Adaptive,
    Attribute,
    BiasDecay,
    HeadAttribute,
    LogLinear,
    LowRank,
    Shift,
)
from plugalign.trace import Trace


class Run:
    """Evaluates a plan for one ``generate`` call.

    Args:
        prompt_mask: the prompts' mask ``(B, T)``; None infers left padding from the pad token.
        pad_token_id: used to fill, and to infer the mask where none is given.
        infer_mask: whether leading pad tokens mean padding when there is no mask.
        extra_positions: cache positions that attachments put in front of the prompt.
    """

    def __init__(
        self,
        plan: Plan,
        model: Any,
        *,
        prompt_mask: Tensor | None = None,
        pad_token_id: int = 0,
        infer_mask: bool = False,
        extra_positions: int = 0,
        trace: Trace | None = None,
    ):
        self.plan, self.trace = plan, trace
        self._prompt_mask, self._pad, self._infer = prompt_mask, pad_token_id, infer_mask
        self._watch = HiddenWatch(model)
        self._watch.extra_positions = extra_positions
        length = 0 if prompt_mask is None else prompt_mask.shape[1]
        self._sources = SourceRunner(plan, model, self._watch, pad_token_id, length)
        if trace is not None:
            trace.names = tuple(name for name, _ in plan.steerings)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Reads hidden states off the base's forwards for the length of the block, if needed."""
        if not self.plan.needs_hidden:
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
        self._sources.check_base(scores, ids)
        step = Step(ids, self._mask_for(ids), scores, self._sources)
        steered = steer.scores(step.mixture(self.plan.shifts), before=self.plan.truncation)
        if self.trace is not None:
            self.trace.chosen(ids)
            alone = [steer.scores(step.mixture(s.shifts)) for _, s in self.plan.steerings]
            self.trace.record(ids.shape[1], torch.log_softmax(scores.float(), -1), alone, steered)
        return steered

    def _mask_for(self, ids: Tensor) -> Tensor:
        """The mask ``(R, T)``: the prompt's, repeated over beams or samples, then ones."""
        given, (rows, length) = self._prompt_mask, ids.shape
        if given is not None and rows % given.shape[0] == 0 and length >= given.shape[1]:
            front = given.to(ids.device).repeat_interleave(rows // given.shape[0], 0)
            tail = front.new_ones(rows, length - front.shape[1])
            return torch.cat([front, tail], 1)
        if self._infer:
            return (ids != self._pad).long().cumsum(-1).clamp_max(1)
        return torch.ones_like(ids)


class Step:
    """One step's inputs, and the terms that the shifts' formulas make of them."""

    def __init__(self, ids: Tensor, mask: Tensor, base: Tensor, sources: SourceRunner):
        self.ids, self.mask, self.base = ids, mask, base
        self._sources = sources
        self._logits = sources.logits(ids, mask, base)
        self._hidden: Tensor | None = None

    def mixture(self, shifts: Iterable[Shift]) -> Mixture:
        """The base's scores plus some shifts, equal sources added up."""
        weights: dict[Hashable, float] = {BASE: 1.0}
        tensors: dict[Hashable, Tensor] = {BASE: self.base}
        decays, attributes = [], []
        for shift in shifts:
            match shift:
                case LogLinear():
                    for coefficient, source in shift.terms:
                        tensors[source.key] = self._logits[source.key]
                        weights[source.key] = (
                            weights.get(source.key, 0.0) + shift.weight * coefficient
                        )
                case BiasDecay():
                    biased = tuple(self._logits[source.key] for source in shift.biased)
                    decays.append(Decay(biased, shift.decay, shift.floor, shift.weight))
                case LowRank():
                    tensors[id(shift)] = self._low_rank(shift)
                    weights[id(shift)] = shift.weight
                case Attribute() | HeadAttribute():
                    logits = self._attribute_logits(shift)
                    attributes.append(AttributeLogits(logits, shift.weight))
                case _:
                    kind = type(shift).__name__
                    raise TypeError(f"no engine knows how to evaluate the shift {kind}")
        sources = tuple(tensors.values())
        return Mixture(sources, tuple(weights.values()), tuple(decays), tuple(attributes))

    @property
    def hidden(self) -> Tensor:
        """The base's last hidden state ``(R, D)``."""
        if self._hidden is None:
            self._hidden = self._sources.hidden(self.ids, self.mask)
        return self._hidden

    def _low_rank(self, shift: LowRank) -> Tensor:
        change = reweighting.low_rank(self.hidden, shift.left, shift.right, shift.center)
        rule = shift.alpha
        if not isinstance(rule, Adaptive):
            return change * (1 - rule)
        kept = reweighting.adaptive_alpha(
            self.base, rule.sensitivity, top_p=rule.top_p, low=rule.low, high=rule.high,
            floor=rule.floor,
        )  # fmt: skip
        return change * (1 - kept)

    def _attribute_logits(self, shift: Attribute | HeadAttribute) -> Tensor:
        if isinstance(shift, HeadAttribute):
            return reweighting.head_attribute(
                self.hidden, shift.left, shift.right, shift.token_bias, shift.state, shift.offset
            )
        ids = reweighting.top_k_ids(self.base, shift.k)
        scores = self._sources.scores(shift.scores, self.ids, self.mask, ids)
        return reweighting.scatter_candidates(ids, scores, self.base.shape[-1])


class SteeringProcessor(LogitsProcessor):  # type: ignore[misc]
    """A run as a transformers ``LogitsProcessor``; returns normalised log-probabilities."""

    def __init__(self, run: Run):
        self.run = run

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Steers ``scores`` ``(R, V)`` after the prefixes ``input_ids`` ``(R, T)``."""
        return self.run.step(input_ids, scores)
