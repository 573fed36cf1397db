"""Adds up the linear terms of a step: equal logits once, heads that share weights as one head."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from plugalign.kernels.head import Head, Logits, can_add, is_same, weighted_sum
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.term import Weight

Weights = frozenset[tuple[Hashable, float]]


class LinearSum:
    """A weighted sum of logits ``(R, V)``, in which the base has the weight 1 from the start.

    Args:
        base: the base's scores.
        sums: logits of weighted sums of sources that are computed already, by their keys and
            weights.
    """

    def __init__(self, base: Tensor, sums: Mapping[Weights, Logits]):
        self._base, self._sums = base, sums
        self._base_weight: Weight = 1.0
        self._logits: dict[Hashable, Logits] = {}
        self._weights: dict[Hashable, Weight] = {}

    def add(self, term: Linear, keys: Mapping[int, Hashable]) -> None:
        """Adds a term.

        Args:
            keys: of the sources, by the identity of their logits.
        """
        for k, logits in enumerate(term.logits):
            weight = _weight_of(term, k)
            if logits is self._base:
                self._base_weight = self._base_weight + weight
                continue
            key = keys.get(id(logits), id(logits))
            self._logits[key] = logits
            self._weights[key] = self._weights.get(key, 0.0) + weight

    def terms(self) -> tuple[Weight, tuple[Linear, ...]]:
        """The base's weight, and all other logits as one term; no term where nothing is added."""
        self._drop_zeros()
        self._merge_heads()
        if not self._logits:
            return self._base_weight, ()
        logits, weights = tuple(self._logits.values()), tuple(self._weights.values())
        if any(isinstance(weight, Tensor) for weight in weights):
            return self._base_weight, (Linear(logits, _by_row(weights, len(self._base))),)
        return self._base_weight, (Linear(logits, weights),)  # type: ignore[arg-type]

    def _drop_zeros(self) -> None:
        """Drops logits whose weights cancel out: 0 times -inf would be NaN."""
        for key, weight in list(self._weights.items()):
            if not isinstance(weight, Tensor) and weight == 0:
                del self._weights[key], self._logits[key]

    def _merge_heads(self) -> None:
        """Replaces heads that share their weights by one head.

        Logits that are no head (of a model that caps them, say), and those whose weight differs
        from row to row, stay as they are.
        """
        heads = {
            key: x
            for key, x in self._logits.items()
            if isinstance(x, Head) and can_add(x) and not isinstance(self._weights[key], Tensor)
        }
        while heads:
            first = next(iter(heads.values()))
            keys = [key for key, head in heads.items() if is_same(first, head)]
            merged = [heads.pop(key) for key in keys]
            if len(keys) > 1:
                weights = [float(self._weights.pop(key)) for key in keys]
                for key in keys:
                    del self._logits[key]
                total = frozenset(zip(keys, weights, strict=True))
                known = self._sums.get(total)
                self._logits[total] = weighted_sum(merged, weights) if known is None else known
                self._weights[total] = 1.0


def _weight_of(term: Linear, k: int) -> Weight:
    """The weight of a term's k-th logits: a number, or float32 ``(R,)``."""
    weights = term.weights
    if not isinstance(weights, Tensor):
        return weights[k]
    return weights[:, k] if weights.ndim == 2 else float(weights[k])


def _by_row(weights: tuple[Weight, ...], rows: int) -> Tensor:
    """Numbers and ``(R,)`` side by side, float32 ``(R, K)``."""
    like = next(weight for weight in weights if isinstance(weight, Tensor))
    columns = [w if isinstance(w, Tensor) else like.new_full((rows,), w) for w in weights]
    return torch.stack(columns, 1)
