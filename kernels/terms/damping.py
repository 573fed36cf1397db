"""Tokens that a biased prompt makes more probable lose probability: self-debiasing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
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
class Damping(Term):
    """``w log max(exp(-decay d(t)), floor)`` with ``d(t) = max(0, max_k p_k(t) - p(t))``: p is the
    base and p_k the base behind a biased prompt (Schick et al. 2021, equations 3 to 5, where
    several attributes take the largest difference).

    Attributes:
        biased: logits ``(B, V)`` behind each biased prompt.
        decay: strength lambda, not negative.
        floor: no token loses more than this factor, in (0, 1].
        weight: a number, or float32 ``(B,)``.
    """

    biased: tuple[Logits, ...]
    decay: float
    floor: float
    weight: Weight = 1.0
    heavy: ClassVar[bool] = True

    def inputs(self) -> Iterator[tuple[str, Logits]]:
        for k, logits in enumerate(self.biased):
            yield f"biased[{k}]", logits

    def check(self, base: Tensor) -> None:
        if not self.biased:
            raise ValueError("Damping needs the logits of at least one biased prompt, got none")
        super().check(base)
        if not 0 <= self.decay < math.inf:
            raise ValueError(f"Damping's decay must be finite and not negative, got {self.decay}")
        if not 0 < self.floor <= 1:
            raise ValueError(f"Damping's floor must lie above 0 and not above 1, got {self.floor}")
        check_weight("Damping's weight", self.weight, base)

    def delta(self, base: Tensor) -> Tensor:
        biased = (full(x).float().softmax(-1) for x in self.biased)
        return times(self._of(base.float().softmax(-1), biased), by_row(self.weight))

    def delta_at(self, base: Tensor, row: Tensor, token: Tensor) -> Tensor:
        own, *biased = (log_probs_at(x, row, token).exp_() for x in (base, *self.biased))
        return times(self._of(own, biased), by_entry(self.weight, row))

    def _of(self, own: Tensor, biased: Iterable[Tensor]) -> Tensor:
        """The shift before it is weighted, from the probabilities of the base and behind the
        biased prompts."""
        worst = torch.zeros_like(own)
        for p in biased:
            torch.maximum(worst, p, out=worst)
        excess = worst.sub_(own).clamp_min_(0.0)
        return excess.mul_(-self.decay).clamp_min_(math.log(self.floor))

    def fused(self, base: Tensor) -> Fused | None:
        from plugalign.kernels.terms.damping_triton import fused

        return fused(self, base)
