"""Declarations: what a step needs, by which formula, on which tokens. Data, nothing that runs.

A `Source` gives logits for a prefix, a `Shift` is a formula over sources that is added to the
base's log-probabilities, a `Support` says which tokens of the base stay possible; a `Steering` is
what one controller asks for. An engine that knows these classes can evaluate any controller, share
its sources with another's and fuse its formula into one kernel.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

# --------------------------------------------------------------------------- sources

BASE = "base"  # the key of the base's own logits


@dataclass(frozen=True, eq=False)
class Source:
    """Gives next-token logits ``(B, V)`` for a prefix. Sources with equal keys share a forward."""

    name: str

    @property
    def key(self) -> Hashable:
        return id(self)


@dataclass(frozen=True, eq=False)
class BaseLogits(Source):
    """The base model's own next-token logits at this step. Costs nothing."""

    name: str = "base"

    @property
    def key(self) -> Hashable:
        return BASE


@dataclass(frozen=True, eq=False)
class ModelLogits(Source):
    """Another causal language model with the same tokenizer, run beside the base.

    Args:
        model: a Hugging Face causal language model.
        identity: equal identities are one model, also when it was loaded twice.
    """

    model: Any = None
    identity: Hashable = None

    @property
    def key(self) -> Hashable:
        return ("model", id(self.model) if self.identity is None else self.identity)


@dataclass(frozen=True, eq=False)
class PromptedLogits(Source):
    """The base model under another prompt: ``prefix`` token ids stand in front of the row's ids.

    Args:
        start_token: the token with which ``prefix`` begins where the model wants every text to
            begin with it; the row's own is then hidden.
    """

    prefix: tuple[int, ...] = ()
    start_token: int | None = None

    @property
    def key(self) -> Hashable:
        return ("prompt", self.prefix, self.start_token)


@dataclass(frozen=True, eq=False)
class PrefixedLogits(Source):
    """The base model behind trained keys and values.

    Args:
        keys_values: per layer keys and values, ``(layers, 2, H_kv, P, D_head)``.
    """

    keys_values: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def key(self) -> Hashable:
        return ("prefix", id(self.keys_values))


@dataclass(frozen=True, eq=False)
class CandidateScores(Source):
    """A causal classifier that scores candidates ``(B, K)``: a logit of P(a | x, t) for each.

    Args:
        model: a module with ``backbone`` (a Hugging Face causal model without a head) and
            ``head`` (hidden to one logit), see `plugalign.controllers.fudge.Predictor`.
    """

    model: Any = None

    @property
    def key(self) -> Hashable:
        return ("candidates", id(self.model))


# --------------------------------------------------------------------------- shifts


@dataclass(frozen=True, eq=False)
class Shift:
    """A formula for ``delta(t)``, added to the base's log-probabilities with a weight."""

    weight: float = field(default=1.0, kw_only=True)

    @property
    def sources(self) -> tuple[Source, ...]:
        """What must run before the formula can be evaluated."""
        return ()

    @property
    def needs_hidden(self) -> bool:
        """Whether the formula reads the base's last hidden state ``(B, D)``."""
        return False


@dataclass(frozen=True, eq=False)
class LogLinear(Shift):
    """``delta = sum_k c_k z_k`` over sources (DExperts, proxy tuning, contrastive decoding)."""

    terms: tuple[tuple[float, Source], ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(source for _, source in self.terms)


@dataclass(frozen=True, eq=False)
class BiasDecay(Shift):
    """``delta = log max(exp(-decay * max(0, max_k p_k - p)), floor)`` (self-debiasing)."""

    biased: tuple[Source, ...]
    decay: float
    floor: float

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.biased


@dataclass(frozen=True)
class Adaptive:
    """A-INLP's strength per step, from the sensitivity of the base's top tokens.

    ``b = sum of p(t) * sensitivity(t) over the base's top-p set``; the kept share ``alpha`` is 1
    where ``low <= b <= high``, else ``max(1 - |b|, floor)``. The shift is scaled by ``1 - alpha``.
    """

    sensitivity: Tensor  # (V,)
    top_p: float = 0.7
    low: float = -0.1
    high: float = 0.15
    floor: float = 0.6


@dataclass(frozen=True, eq=False)
class LowRank(Shift):
    """``delta = -(1 - alpha) * left @ (right^T (h - center))``: a projection of the hidden state
    carried to the logits, never a second pass of the head.

    Args:
        left: ``(V, r)``, the output embedding times the removed directions.
        right: ``(D, r)``.
        center: ``(D,)`` or None.
        alpha: the share of the original hidden state that is kept, or an `Adaptive` rule.
    """

    left: Tensor
    right: Tensor
    center: Tensor | None = None
    alpha: float | Adaptive = 0.0

    @property
    def needs_hidden(self) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class Attribute(Shift):
    """``delta(t) = log P(a | x, t) = logsigmoid(score)`` of the candidates in a top-k support.

    Outside the ``k`` best tokens of the base the shift is not defined, so the declaration must
    come with ``TopK(k)`` or smaller.
    """

    scores: CandidateScores
    k: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.scores,)


@dataclass(frozen=True, eq=False)
class HeadAttribute(Shift):
    """``delta(t) = logsigmoid(left_t . (right^T h) + bias_t + w . h + b)``: a head on the base's
    own hidden state that scores every next token without a forward of its own.

    Args:
        left: ``(V, r)``. right: ``(D, r)``. token_bias: ``(V,)``. state: ``(D,)``.
    """

    left: Tensor
    right: Tensor
    token_bias: Tensor
    state: Tensor
    offset: float

    @property
    def needs_hidden(self) -> bool:
        return True


# --------------------------------------------------------------------------- supports


@dataclass(frozen=True, order=True)
class Support:
    """Which tokens of the base stay possible. Several supports intersect."""


@dataclass(frozen=True, order=True)
class TopP(Support):
    """The smallest set of most probable tokens whose mass reaches ``p``."""

    p: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 1.0:
            raise ValueError(f"top-p must lie in [0, 1], got {self.p}")


@dataclass(frozen=True, order=True)
class TopK(Support):
    """The ``k`` most probable tokens."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"top-k must be at least 1, got {self.k}")


@dataclass(frozen=True, order=True)
class MinP(Support):
    """Tokens at least ``p`` times as probable as the most probable one."""

    p: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 1.0:
            raise ValueError(f"min-p must lie in [0, 1], got {self.p}")


@dataclass(frozen=True)
class Steering:
    """What a controller asks of each step: shifts to add, supports to intersect."""

    shifts: tuple[Shift, ...] = ()
    supports: tuple[Support, ...] = ()

    def scaled(self, weight: float) -> Steering:
        """All shifts times ``weight``. Zero is the identity, so it drops the supports too."""
        if weight == 0:
            return Steering()
        shifts = tuple(replace(s, weight=s.weight * weight) for s in self.shifts)
        return Steering(shifts, self.supports)
