"""The log-probability of an attribute, from logits: FUDGE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from plugalign.kernels.head import Logits, entries, full
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
class LogSigmoid(Term):
    """``w log sigmoid(a(t))``, ``a`` the logit of P(attribute | x, t) (Yang and Klein 2021,
    equation 2); +inf is certainty, which adds nothing.

    Attributes:
        logits: a, ``(B, V)``.
        weight: a number, or float32 ``(B,)``.
    """

    logits: Logits
    weight: Weight = 1.0

    def inputs(self) -> Iterator[tuple[str, Logits]]:
        yield "logits", self.logits

    def check(self, base: Tensor) -> None:
        super().check(base)
        check_weight("LogSigmoid's weight", self.weight, base)

    def delta(self, base: Tensor) -> Tensor:
        return times(logsigmoid(full(self.logits).float()), by_row(self.weight))

    def delta_at(self, base: Tensor, row: Tensor, token: Tensor) -> Tensor:
        return times(logsigmoid(entries(self.logits, row, token)), by_entry(self.weight, row))

    def fused(self, base: Tensor) -> Fused | None:
        from plugalign.kernels.terms.log_sigmoid_triton import fused

        return fused(self)
