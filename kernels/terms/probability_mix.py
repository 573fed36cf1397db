"""A mixture of probabilities, not of logits: SafeDecoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plugalign.kernels.head import Logits, full, log_probs_at
from plugalign.kernels.terms.term import (
    Fused,
    Term,
    Weight,
    by_entry,
    by_row,
    check_weight,
    times,
)


@dataclass(frozen=True, eq=False)
class ProbabilityMix(Term):
    """``w (log max(p(t) + alpha (q(t) - p(t)), floor) - log p(t))``, p the base and q an expert:
    what makes the base's distribution the mixture (Xu et al. 2024, "SafeDecoding", equation 4).

    Attributes:
        expert: logits ``(B, V)`` of q.
        alpha: above 1 it extrapolates from the base beyond the expert.
        floor: the least probability that a token is left with, above 0.
        weight: a number, or float32 ``(B,)``.
    """

    expert: Logits
    alpha: float
    floor: float = 1e-8
    weight: Weight = 1.0
    heavy: ClassVar[bool] = True

    def inputs(self) -> Iterator[tuple[str, Logits]]:
        yield "expert", self.expert

    def check(self, base: Tensor) -> None:
        super().check(base)
        check_weight("ProbabilityMix's alpha", self.alpha, base)
        if not 2.0**-126 <= self.floor <= 1:
            raise ValueError(f"ProbabilityMix's floor must lie in [2**-126, 1], got {self.floor}")
        check_weight("ProbabilityMix's weight", self.weight, base)

    def delta(self, base: Tensor) -> Tensor:
        own = torch.log_softmax(base.float(), -1)
        q = full(self.expert).float().softmax(-1)
        return times(self._of(own, q), by_row(self.weight))

    def delta_at(self, base: Tensor, row: Tensor, token: Tensor) -> Tensor:
        own = log_probs_at(base, row, token)
        q = log_probs_at(self.expert, row, token).exp_()
        return times(self._of(own, q), by_entry(self.weight, row))

    def _of(self, log_p: Tensor, q: Tensor) -> Tensor:
        p = log_p.exp()
        mixed = (p + (q - p) * self.alpha).clamp_min_(self.floor)
        return mixed.log_().sub_(log_p)

    def fused(self, base: Tensor) -> Fused | None:
        from plugalign.kernels.terms.probability_mix_triton import fused

        return fused(self, base)
