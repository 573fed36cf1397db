"""Adds up the linear terms of a step: equal logits once, heads that share weights as one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from plugalign.kernels.head import Head, Logits, can_add, is_same, weighted_sum
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.term import Weight

Weights = frozenset[tuple[Hashable, float]]


class Sum:
    """A weighted sum of logits ``(R, V)``, of which the base's weight starts at 1.

    Args:
        base: the base's scores.
        known: logits of weighted sums of sources, by their keys and weights.
    """

    def __init__(self, base: Tensor, known: Mapping[Weights, Logits]):
        self._base, self._known = base, known
        self._weight: Weight = 1.0
        self._logits: dict[Hashable, Logits] = {}
        self._weights: dict[Hashable, Weight] = {}

    def add(self, term: Linear, keys: Mapping[int, Hashable]) -> None:
        """Takes a term in.

        Args:
            keys: of sources, by the identity of their logits.
        """
        for k, logits in enumerate(term.logits):
            weight = _weight_of(term, k)
            if logits is self._base:
                self._weight = self._weight + weight
                continue
            key = keys.get(id(logits), id(logits))
            self._logits[key] = logits
            self._weights[key] = self._weights.get(key, 0.0) + weight

    def terms(self) -> tuple[Weight, tuple[Linear, ...]]:
        """The base's weight, and what is added to it as one term, if anything is."""
        self._add_heads()
        if not self._logits:
            return self._weight, ()
        logits, weights = tuple(self._logits.values()), tuple(self._weights.values())
        if any(isinstance(weight, Tensor) for weight in weights):
            return self._weight, (Linear(logits, _by_row(weights, len(self._base))),)
        return self._weight, (Linear(logits, weights),)  # type: ignore[arg-type]

    def _add_heads(self) -> None:
        """Puts one head in the place of all that share their weights. Others stay as they are, and
        so do logits that are no head's (of a model that caps them, say), and those whose weight
        differs from row to row."""
        heads = {
            key: x
            for key, x in self._logits.items()
            if isinstance(x, Head) and can_add(x) and not isinstance(self._weights[key], Tensor)
        }
        while heads:
            first = next(iter(heads.values()))
            keys = [key for key, head in heads.items() if is_same(first, head)]
            parts = [heads.pop(key) for key in keys]
            if len(keys) > 1:
                added = [float(self._weights.pop(key)) for key in keys]
                what = frozenset(zip(keys, added, strict=True))
                for key in keys:
                    del self._logits[key]
                known = self._known.get(what)
                self._logits[what] = weighted_sum(parts, added) if known is None else known
                self._weights[what] = 1.0


def _weight_of(term: Linear, k: int) -> Weight:
    weights = term.weights
    if not isinstance(weights, Tensor):
        return weights[k]
    return weights[:, k] if weights.ndim == 2 else float(weights[k])


def _by_row(weights: tuple[Weight, ...], rows: int) -> Tensor:
    """Numbers and ``(R,)`` side by side, float32 ``(R, K)``."""
    like = next(weight for weight in weights if isinstance(weight, Tensor))
    columns = [w if isinstance(w, Tensor) else like.new_full((rows,), w) for w in weights]
    return torch.stack(columns, 1)
