"""Shifts: formulas over sources that are added to the base's log-probabilities.

A shift says what it reads (`Shift.sources`) and which terms of a mixture it makes of that
(`Shift.terms`). The engine reads, adds up and runs the kernels; it knows no formula by name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from plugalign.algebra.gates import Gate
from plugalign.algebra.sources import (
    Candidates,
    CandidateValues,
    LastHidden,
    Logits,
    Source,
    Step,
    TextCandidateValues,
)
from plugalign.kernels import reweighting
from plugalign.kernels.head import Head
from plugalign.kernels.terms.damping import Damping
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.log_sigmoid import LogSigmoid
from plugalign.kernels.terms.term import Term, Weight


@dataclass(frozen=True, eq=False)
class Shift:
    """A formula for ``delta(t)``, added to the base's log-probabilities with a weight.

    Attributes:
        weight: a finite number.
        gates: it acts on rows where all of them are open, times their weights.
        compares_probabilities: whether the formula compares probabilities, for which logits in half
            precision are too coarse; models' heads then leave theirs in float32.
    """

    compares_probabilities: ClassVar[bool] = False
    weight: float = field(default=1.0, kw_only=True)
    gates: tuple[Gate, ...] = field(default=(), kw_only=True)

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that the formula reads; `Step.read` refuses others."""
        return ()

    @abstractmethod
    def terms(self, step: Step, weight: Weight) -> Iterable[Term]:
        """The formula's terms at a step, where ``step.read`` gives the sources' values.

        Args:
            weight: to multiply the terms with: a number, or float32 ``(R,)`` behind gates. It is
                the shift's own weight times those of the gates.

        A formula that depends on the text itself (``step.ids``) reads it by a source with a reader
        of its own. A formula without any source is evaluated at one position at a time.
        """

    def certificate(self, step: Step, weight: Weight) -> Mapping[str, Tensor]:
        """What the formula can prove of a step, by name one number a row, ``(R,)``; for a `Trace`,
        and asked for when there is one.

        The arguments are those of `terms`. Names are free; reports understand these: "active", how
        many bounds hold with a multiplier above 0; "repair", the share in [0, 1] of the reference
        that was mixed in so that all bounds hold; "excess", the largest ``E_q[g] - b``, which is at
        most 0 where all of them hold; "kl", nats from the reference.
        """
        return {}

    @property
    def linear(self) -> tuple[tuple[float, Logits], ...] | None:
        """The coefficients of its sources, where the formula is a sum of logits; else None."""
        return None


@dataclass(frozen=True, eq=False)
class LogLinear(Shift):
    """``delta = sum_k c_k z_k`` over sources (DExperts, proxy tuning, contrastive decoding)."""

    coefficients: tuple[tuple[float, Logits], ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(source for _, source in self.coefficients)

    def terms(self, step: Step, weight: Weight) -> Iterable[Term]:
        logits = tuple(step.read(source) for _, source in self.coefficients)
        numbers = tuple(coefficient for coefficient, _ in self.coefficients)
        if isinstance(weight, Tensor):
            yield Linear(logits, weight[:, None] * weight.new_tensor(numbers))
        else:
            yield Linear(logits, tuple(weight * number for number in numbers))

    @property
    def linear(self) -> tuple[tuple[float, Logits], ...] | None:
        return self.coefficients


@dataclass(frozen=True, eq=False)
class BiasDecay(Shift):
    """``delta = log max(exp(-decay * max(0, max_k p_k - p)), floor)`` (self-debiasing)."""

    biased: tuple[Logits, ...]
    decay: float
    floor: float
    compares_probabilities: ClassVar[bool] = True

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.biased

    def terms(self, step: Step, weight: Weight) -> Iterable[Term]:
        logits = tuple(step.read(source) for source in self.biased)
        yield Damping(logits, self.decay, self.floor, weight)


@dataclass(frozen=True)
class Adaptive:
    """A-INLP's strength per step, from the sensitivity of the base's top tokens (Liang et al. 2021,
    section 4.2).

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
    def sources(self) -> tuple[Source, ...]:
        return (LastHidden(),)

    def terms(self, step: Step, weight: Weight) -> Iterable[Term]:
        hidden = step.read(LastHidden())
        offset = hidden if self.center is None else hidden - self.center
        coordinates = (offset @ self.right) * (self._kept(step) - 1)
        weights = weight[:, None] if isinstance(weight, Tensor) else (weight,)
        yield Linear((Head(coordinates, self.left),), weights)

    def _kept(self, step: Step) -> float | Tensor:
        """alpha: a number, or ``(R, 1)``."""
        rule = self.alpha
        if not isinstance(rule, Adaptive):
            return rule
        return reweighting.adaptive_alpha(
            step.base,
            rule.sensitivity,
            top_p=rule.top_p,
            low=rule.low,
            high=rule.high,
            floor=rule.floor,
        )


Link = Literal["identity", "logsigmoid", "clamp"]
LINKS: dict[Link, Callable[[Tensor], Tensor]] = {
    "identity": lambda values: values,
    "logsigmoid": logsigmoid,
    "clamp": lambda values: values.clamp(0, 1),
}


@dataclass(frozen=True, eq=False)
class CandidateShift(Shift):
    """``delta(t) = link(value(x, t))`` of the base's k best tokens: FUDGE, RAD, ARGS, controlled
    decoding.

    Other tokens are not shifted, so the declaration comes with ``TopK(k)`` or smaller.

    Args:
        scores: the candidates' values.
        link: "logsigmoid" for the logit of a probability, "clamp" to [0, 1], "identity".
    """

    scores: CandidateValues | TextCandidateValues
    link: Link = "identity"

    def __post_init__(self) -> None:
        if self.link not in LINKS:
            raise ValueError(f"a link is one of {', '.join(LINKS)}, got {self.link!r}")

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.scores,)

    def terms(self, step: Step, weight: Weight) -> Iterable[Term]:
        found: Candidates = step.read(self.scores)
        values = LINKS[self.link](found.values)
        everywhere = torch.zeros(step.base.shape, device=values.device)
        everywhere.scatter_(-1, found.ids, values)
        weights = weight[:, None] if isinstance(weight, Tensor) else (weight,)
        yield Linear((everywhere,), weights)


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
    def sources(self) -> tuple[Source, ...]:
        return (LastHidden(),)

    def terms(self, step: Step, weight: Weight) -> Iterable[Term]:
        hidden = step.read(LastHidden())
        shared = (hidden @ self.state)[:, None] + self.offset
        coordinates = torch.cat([hidden @ self.right, shared], dim=1)
        yield LogSigmoid(Head(coordinates, self._weight, self.token_bias), weight)

    @cached_property
    def _weight(self) -> Tensor:
        """``(V, r + 1)``: ``left`` and a column of ones, which carries what all tokens share."""
        return torch.cat([self.left, self.left.new_ones(len(self.left), 1)], dim=1)
