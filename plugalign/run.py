"""One ``generate`` call's state, and the step that every decoding mode shares.

A `Plan` is what the controllers declare for a model, made once. A `Run` is made for each call and
dies with it. A `SteeringProcessor` is the run seen by transformers: a pure function of the prefix
and the base's scores, so beams, rewinds and several return sequences are safe.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from plugalign.hidden import HiddenWatch
from plugalign.kernels import reweighting
from plugalign.plan import Plan
from plugalign.sources import SourceRunner
from plugalign.steering import (
    Adaptive,
    Attribute,
    BiasDecay,
    HeadAttribute,
    LogLinear,
    LowRank,
    MinP,
    Shift,
    Support,
    TopK,
    TopP,
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
        step = Step(ids, self._mask_for(ids), reweighting.log_probs(scores), self._sources)
        deltas = [
            [shift.weight * step.delta(shift) for shift in steering.shifts]
            for _, steering in self.plan.steerings
        ]
        support = support_of(step.log_p, self.plan.supports) if self.plan.supports else None
        flat = [delta for part in deltas for delta in part]
        steered, empty = reweighting.combine(step.log_p, flat, support)
        if self.trace is not None:
            zero = torch.zeros_like(step.log_p)
            self.trace.chosen(ids)
            totals = [sum(part, zero) for part in deltas]
            self.trace.record(ids.shape[1], step.log_p, totals, steered, empty)
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
    """One step's inputs, and the evaluation of each kind of formula on them."""

    def __init__(self, ids: Tensor, mask: Tensor, log_p: Tensor, sources: SourceRunner):
        self.ids, self.mask, self.log_p = ids, mask, log_p
        self._sources = sources
        self._logits: dict[Hashable, Tensor] = sources.logits(ids, mask, log_p)
        self._hidden: Tensor | None = None

    def delta(self, shift: Shift) -> Tensor:
        """The unweighted ``delta`` ``(R, V)`` of a shift."""
        match shift:
            case LogLinear():
                terms = [self._logits[source.key] for _, source in shift.terms]
                return reweighting.log_linear(terms, [c for c, _ in shift.terms])
            case BiasDecay():
                biased = [self._logits[source.key] for source in shift.biased]
                return reweighting.bias_decay(self.log_p, biased, shift.decay, shift.floor)
            case LowRank():
                change = reweighting.low_rank(self.hidden, shift.left, shift.right, shift.center)
                return change * (1 - self._kept_share(shift.alpha))
            case Attribute():
                ids = reweighting.top_k_ids(self.log_p, shift.k)
                scores = self._sources.scores(shift.scores, self.ids, self.mask, ids)
                return reweighting.scatter_candidates(ids, scores, self.log_p.shape[-1])
            case HeadAttribute():
                return reweighting.head_attribute(
                    self.hidden, shift.left, shift.right, shift.token_bias, shift.state,
                    shift.offset,
                )  # fmt: skip
        raise TypeError(f"no engine knows how to evaluate the shift {type(shift).__name__}")

    @property
    def hidden(self) -> Tensor:
        """The base's last hidden state ``(R, D)``."""
        if self._hidden is None:
            self._hidden = self._sources.hidden(self.ids, self.mask)
        return self._hidden

    def _kept_share(self, alpha: float | Adaptive) -> float | Tensor:
        if not isinstance(alpha, Adaptive):
            return alpha
        return reweighting.adaptive_alpha(
            self.log_p, alpha.sensitivity, top_p=alpha.top_p, low=alpha.low, high=alpha.high,
            floor=alpha.floor,
        )  # fmt: skip


class SteeringProcessor(LogitsProcessor):  # type: ignore[misc]
    """A run as a transformers ``LogitsProcessor``; returns normalised log-probabilities."""

    def __init__(self, run: Run):
        self.run = run

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Steers ``scores`` ``(R, V)`` after the prefixes ``input_ids`` ``(R, T)``."""
        return self.run.step(input_ids, scores)


def support_of(log_p: Tensor, supports: tuple[Support, ...]) -> Tensor:
    """The intersection ``(R, V)`` of declared supports, each taken on the base."""
    masks = []
    for support in supports:
        match support:
            case TopP(p):
                masks.append(reweighting.support_mask(log_p, top_p=p))
            case TopK(k):
                masks.append(reweighting.support_mask(log_p, top_k=k))
            case MinP(p):
                masks.append(reweighting.support_mask(log_p, min_p=p))
            case _:
                raise TypeError(f"no engine knows the support {support!r}")
    return torch.stack(masks).all(0)
