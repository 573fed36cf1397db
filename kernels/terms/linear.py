"""A weighted sum of logits: DExperts, proxy tuning, contrastive decoding, interpolation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plugalign.kernels.head import Logits, entries, full
from plugalign.kernels.terms.term import (
    Fused,
    Term,
    Weight,
    by_entry,
    by_row,
    check_finite,
    times,
)


@dataclass(frozen=True, eq=False)
class Linear(Term):
    """``sum_k w_k x_k(t)``. A normaliser of x_k adds the same to every token of a row, so it never
    matters and none is computed.

    Attributes:
        logits: K of them, ``(B, V)`` each.
        weights: one number for each, or float32 ``(B, K)`` or ``(K,)``.
    """

    logits: tuple[Logits, ...]
    weights: Sequence[float] | Tensor

    def inputs(self) -> Iterator[tuple[str, Logits]]:
        for k, logits in enumerate(self.logits):
            yield f"logits[{k}]", logits

    def check(self, base: Tensor) -> None:
        super().check(base)
        count, weights = len(self.logits), self.weights
        if isinstance(weights, Tensor):
            shapes = ((count,), (len(base), count))
            fits = tuple(weights.shape) in shapes and weights.dtype == torch.float32
            if not fits or weights.device != base.device:
                raise ValueError(
                    f"Linear's weights must be float32 {shapes[0]} or {shapes[1]} on "
                    f"{base.device}, got {weights.dtype} {tuple(weights.shape)} on "
                    f"{weights.device}"
                )
        elif len(weights) != count:
            raise ValueError(f"Linear's weights must be {count}, one for each, got {weights}")
        if not isinstance(weights, Tensor) or weights.is_cpu:
            known = weights.flatten().tolist() if isinstance(weights, Tensor) else weights
            for weight in known:
                check_finite("Linear's weights", weight)

    def delta(self, base: Tensor) -> Tensor:
        z = torch.zeros(base.shape, device=base.device)
        self.add_to(z, base)
        return z

    def add_to(self, z: Tensor, base: Tensor) -> None:
        for k, logits in enumerate(self.logits):
            z += times(full(logits).float(), by_row(self._weight(k, base)))

    def add_at(self, z: Tensor, base: Tensor, row: Tensor, token: Tensor) -> None:
        for k, logits in enumerate(self.logits):
            z += times(entries(logits, row, token), by_entry(self._weight(k, base), row))

    def _weight(self, k: int, base: Tensor) -> Weight:
        if isinstance(self.weights, Tensor):
            return self.weights.expand(len(base), -1)[:, k]
        return self.weights[k]

    def fused(self, base: Tensor) -> Fused | None:
        from plugalign.kernels.terms.linear_triton import fused

        return fused(self, base)
