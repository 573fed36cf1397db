"""One ``generate`` call's state: caches, the captured hidden state, the prompt's mask.

A `Plan` is what the controllers declare for a model, made once. A `Run` is made for each call and
dies with it. A `SteeringProcessor` is the run seen by transformers: a pure function of the prefix
and the base's scores, so beams, rewinds and several return sequences are safe.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from plugalign.auxiliary import CachedModel, CachedScorer
from plugalign.controller import (
    Adaptive,
    Attribute,
    BaseLogits,
    BiasDecay,
    CandidateScores,
    Controller,
    HeadAttribute,
    LogLinear,
    LowRank,
    MinP,
    ModelLogits,
    PrefixedLogits,
    PromptedLogits,
    Shift,
    Source,
    Steering,
    Support,
    TopK,
    TopP,
)
from plugalign.identity import model_name
from plugalign.kernels import reweighting
from plugalign.trace import Trace


@dataclass(frozen=True)
class Plan:
    """What all controllers together ask of a step, bound to one model.

    Attributes:
        steerings: per steering controller its name and its weighted declaration.
    """

    steerings: tuple[tuple[str, Steering], ...]

    @classmethod
    def of(cls, controller: Controller, model: Any, tokenizer: Any) -> Plan:
        declared = []
        for weight, part in controller.parts():
            if part.overrides("steer") and weight != 0:
                steering = part.steer(model, tokenizer).scaled(weight)
                declared.append((type(part).__name__, steering))
        return cls(tuple(declared))

    @property
    def shifts(self) -> tuple[Shift, ...]:
        return tuple(chain.from_iterable(s.shifts for _, s in self.steerings))

    @property
    def supports(self) -> tuple[Support, ...]:
        """Without repetition: an intersection does not count."""
        return tuple(dict.fromkeys(chain.from_iterable(s.supports for _, s in self.steerings)))

    @property
    def sources(self) -> dict[Hashable, Source]:
        """Every source once, however many controllers ask for it."""
        return {source.key: source for shift in self.shifts for source in shift.sources}

    @property
    def needs_hidden(self) -> bool:
        return any(shift.needs_hidden for shift in self.shifts)

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        return tuple(s.prefix for s in self.sources.values() if isinstance(s, PromptedLogits))


class Run:
    """Evaluates a plan for one ``generate`` call.

    Args:
        prompt_mask: the prompts' mask ``(B, T)``; None infers left padding from the pad token.
        pad_token_id: used to fill, and to infer the mask where none is given.
        infer_mask: whether leading pad tokens mean padding when there is no mask.
    """

    def __init__(
        self,
        plan: Plan,
        model: Any,
        *,
        prompt_mask: Tensor | None = None,
        pad_token_id: int = 0,
        infer_mask: bool = False,
        trace: Trace | None = None,
    ):
        self.plan, self.model, self.trace = plan, model, trace
        self._prompt_mask, self._pad, self._infer = prompt_mask, pad_token_id, infer_mask
        self._models: dict[Hashable, CachedModel | CachedScorer] = {}
        self._hidden: Tensor | None = None  # what the head read in the base's last forward
        self._window = (0, torch.empty(0, 0, dtype=torch.long))  # where it began, and its ids
        self._thread = threading.get_ident()
        self._aside = False  # inside a forward of our own on the base
        self.extra_positions = 0
        if trace is not None:
            trace.names = tuple(name for name, _ in plan.steerings)

    # ------------------------------------------------------------------ the step

    @torch.no_grad()
    def step(self, ids: Tensor, scores: Tensor) -> Tensor:
        """The steered log-probabilities ``(R, V)`` after the prefixes ``ids`` ``(R, T)``.

        Raises:
            FloatingPointError: if a model gives NaN or infinite logits; names source and step.
        """
        mask = self._mask_for(ids)
        self._check("the base model", model_name(self.model), scores, ids)
        log_p = reweighting.log_probs(scores)
        logits = self._run_sources(ids, mask, log_p)
        hidden = self._hidden_for(ids, mask) if self.plan.needs_hidden else None
        parts = [
            [s.weight * self._evaluate(s, ids, mask, log_p, logits, hidden) for s in steer.shifts]
            for _, steer in self.plan.steerings
        ]
        support = support_of(log_p, self.plan.supports) if self.plan.supports else None
        steered, empty = reweighting.combine(log_p, [d for part in parts for d in part], support)
        if self.trace is not None:
            self.trace.chosen(ids)
            totals = [torch.stack(part).sum(0) for part in parts if part]
            self.trace.record(ids.shape[1], log_p, totals, steered, empty)
        return steered

    def _evaluate(
        self,
        shift: Shift,
        ids: Tensor,
        mask: Tensor,
        log_p: Tensor,
        logits: dict[Hashable, Tensor],
        hidden: Tensor | None,
    ) -> Tensor:
        """The unweighted ``delta`` ``(R, V)`` of one shift."""
        match shift:
            case LogLinear():
                terms = [logits[source.key] for _, source in shift.terms]
                return reweighting.log_linear(terms, [c for c, _ in shift.terms])
            case BiasDecay():
                biased = [logits[source.key] for source in shift.biased]
                return reweighting.bias_decay(log_p, biased, shift.decay, shift.floor)
            case LowRank() if hidden is not None:
                delta = reweighting.low_rank(hidden, shift.left, shift.right, shift.center)
                return delta * (1 - _kept_share(shift.alpha, log_p))
            case Attribute():
                candidates = reweighting.top_k_ids(log_p, shift.k)
                scores = self._score(shift.scores, ids, mask, candidates)
                return reweighting.scatter_candidates(candidates, scores, log_p.shape[-1])
            case HeadAttribute() if hidden is not None:
                return reweighting.head_attribute(
                    hidden, shift.left, shift.right, shift.token_bias, shift.state, shift.offset
                )
        raise TypeError(f"no engine knows how to evaluate the shift {type(shift).__name__}")

    # ------------------------------------------------------------------ sources

    def _run_sources(self, ids: Tensor, mask: Tensor, log_p: Tensor) -> dict[Hashable, Tensor]:
        """Logits ``(R, V)`` by source key; all prompts of the base ride in one batch."""
        answers: dict[Hashable, Tensor] = {}
        for key, source in self.plan.sources.items():
            match source:
                case BaseLogits():
                    answers[key] = log_p.clamp_min(torch.finfo(log_p.dtype).min)
                case ModelLogits():
                    answers[key] = self._ask(key, source.model, source.name, ids, mask)
                case PrefixedLogits():
                    answers[key] = self._ask(
                        key, self.model, source.name, ids, mask, source.keys_values
                    )
        if self.plan.prompts:
            answers |= self._prompted(ids, mask)
        return {key: fit_width(x, log_p.shape[-1]) for key, x in answers.items()}

    def _prompted(self, ids: Tensor, mask: Tensor) -> dict[Hashable, Tensor]:
        """The base behind K prefixes: K * R rows of one forward. The row's own padding stands
        between prefix and text, masked, so positions run on without a gap."""
        prompts, rows = self.plan.prompts, ids.shape[0]
        width = max(len(prefix) for prefix in prompts)
        front = torch.full((len(prompts), width), self._pad, device=ids.device)
        front_mask = torch.zeros_like(front)
        for i, prefix in enumerate(prompts):
            front[i, width - len(prefix) :] = torch.tensor(prefix, device=ids.device)
            front_mask[i, width - len(prefix) :] = 1
        many = torch.cat([front.repeat_interleave(rows, 0), ids.repeat(len(prompts), 1)], 1)
        many_mask = torch.cat(
            [front_mask.repeat_interleave(rows, 0), mask.repeat(len(prompts), 1)], 1
        )
        logits = self._ask("prompts", self.model, "the base under bias prompts", many, many_mask)
        keys = (s.key for s in self.plan.sources.values() if isinstance(s, PromptedLogits))
        return dict(zip(keys, logits.view(len(prompts), rows, -1), strict=True))

    def _ask(
        self,
        key: Hashable,
        model: Any,
        name: str,
        ids: Tensor,
        mask: Tensor,
        keys_values: Tensor | None = None,
    ) -> Tensor:
        cached = self._models.get(key)
        if cached is None:
            cached = self._models[key] = CachedModel(model, keys_values)
        assert isinstance(cached, CachedModel)
        with self._blamed(name, ids):
            logits = cached.logits(ids, mask)
        self._check("the source", name, logits, ids)
        return logits

    def _score(
        self, source: CandidateScores, ids: Tensor, mask: Tensor, candidates: Tensor
    ) -> Tensor:
        cached = self._models.get(source.key)
        if cached is None:
            cached = self._models[source.key] = CachedScorer(source.model)
        assert isinstance(cached, CachedScorer)
        with self._blamed(source.name, ids):
            scores = cached.scores(ids, mask, candidates)
        self._check("the source", source.name, scores, ids)
        return scores

    @contextmanager
    def _blamed(self, name: str, ids: Tensor) -> Iterator[None]:
        """Runs a forward of ours; an error inside says which source and which step it was."""
        self._aside = True
        try:
            yield
        except (RuntimeError, IndexError, ValueError) as error:
            error.add_note(f"while running the source '{name}' at {self._where(ids)}")
            raise
        finally:
            self._aside = False

    def _check(self, role: str, name: str, logits: Tensor, ids: Tensor) -> None:
        bad = ~torch.isfinite(logits.logsumexp(-1))
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            kind = "NaN" if logits[row].isnan().any() else "infinite"
            raise FloatingPointError(
                f"{role} '{name}' gave {kind} logits at {self._where(ids)} (row {row}); "
                "try float32, or look at its weights"
            )

    def _where(self, ids: Tensor) -> str:
        start = 0 if self._prompt_mask is None else self._prompt_mask.shape[1]
        return f"step {ids.shape[1] - start}" if start else f"prefix length {ids.shape[1]}"

    # ------------------------------------------------------------------ mask and hidden state

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

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Captures what the LM head reads at every forward of ``generate``, for this thread."""
        if not self.plan.needs_hidden:
            yield
            return
        body = self.model.register_forward_pre_hook(
            self._note_window, with_kwargs=True, prepend=True
        )
        head = self.model.get_output_embeddings().register_forward_pre_hook(self._note_hidden)
        try:
            yield
        finally:
            head.remove()
            body.remove()

    def _ours(self) -> bool:
        return not self._aside and threading.get_ident() == self._thread

    def _note_window(self, _: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        if self._ours():
            cache = inputs.get("past_key_values")
            past = 0 if cache is None else int(cache.get_seq_length())
            ids = inputs["input_ids"] if "input_ids" in inputs else args[0]
            self._window = (max(0, past - self.extra_positions), ids)

    def _note_hidden(self, _: Any, args: tuple[Any, ...]) -> None:
        if self._ours():
            self._hidden = args[0].detach()

    def _hidden_for(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The base's last hidden state ``(R, D)`` for these prefixes: the captured one where the
        last forward read just these tokens, else by a cached forward of our own."""
        seen, (start, window) = self._hidden, self._window
        new = ids.shape[1] - start  # columns of the window that belong to these prefixes
        if seen is not None and 0 < new <= window.shape[1]:
            column = seen.shape[1] - window.shape[1] + new - 1
            if column >= 0 and torch.equal(window[:, :new], ids[:, start:]):
                return seen[:, column].float()
        cached = self._models.get("hidden")
        if cached is None:
            cached = self._models["hidden"] = CachedModel(self.model)
        assert isinstance(cached, CachedModel)
        with self._blamed("the base's hidden state", ids):
            return cached.hidden(ids, mask)


class SteeringProcessor(LogitsProcessor):
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


def fit_width(logits: Tensor, width: int) -> Tensor:
    """Cuts or fills ``(R, V')`` to the base's ``V`` columns. Columns beyond the shorter head are
    padding that no tokenizer emits, so what fills them never decides anything."""
    have = logits.shape[-1]
    if have >= width:
        return logits[:, :width]
    floor = logits.amin(-1, keepdim=True).expand(-1, width - have)
    return torch.cat([logits, floor], dim=-1)


def _kept_share(alpha: float | Adaptive, log_p: Tensor) -> float | Tensor:
    if not isinstance(alpha, Adaptive):
        return alpha
    return reweighting.adaptive_alpha(
        log_p, alpha.sensitivity, top_p=alpha.top_p, low=alpha.low, high=alpha.high,
        floor=alpha.floor,
    )  # fmt: skip
