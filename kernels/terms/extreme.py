"""The largest or smallest of several log-probabilities: union and intersection of models."""

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
class Extreme(Term):
    """``w max_k log p_k(t)``, or the least of them (Dekoninck et al. 2024, "Controlled text
    generation via language model arithmetic", union and intersection in section 3.3).

    Attributes:
        logits: K of them, ``(B, V)`` each, which are normalised here.
        least: whether the smallest counts (intersection) in place of the largest (union).
        weight: a number, or float32 ``(B,)``.
    """

    logits: tuple[Logits, ...]
    least: bool = False
    weight: Weight = 1.0
    heavy: ClassVar[bool] = True

    def inputs(self) -> Iterator[tuple[str, Logits]]:
        for k, logits in enumerate(self.logits):
            yield f"logits[{k}]", logits

    def check(self, base: Tensor) -> None:
        if not self.logits:
            raise ValueError("Extreme needs the logits of at least one model, got none")
        super().check(base)
        check_weight("Extreme's weight", self.weight, base)

    def delta(self, base: Tensor) -> Tensor:
        each = [torch.log_softmax(full(x).float(), -1) for x in self.logits]
        return times(self._of(each), by_row(self.weight))

    def delta_at(self, base: Tensor, row: Tensor, token: Tensor) -> Tensor:
        each = [log_probs_at(x, row, token) for x in self.logits]
        return times(self._of(each), by_entry(self.weight, row))

    def _of(self, each: list[Tensor]) -> Tensor:
        return torch.stack(each).amin(0) if self.least else torch.stack(each).amax(0)

    def fused(self, base: Tensor) -> Fused | None:
        from plugalign.kernels.terms.extreme_triton import fused

        return fused(self)
