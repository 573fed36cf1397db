"""Which tokens stay possible: top-k, top-p (nucleus) and min-p, exact and without a full sort.

One total order decides everything, (value, then smaller token id), so ties fall the same way in
every backend. The work is that of one pass of exponentials: with p as the wanted mass, tokens that
are less probable than (1 - p) / V add up to less than 1 - p, so none of them is in the nucleus, and
only the few others are sorted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HEAD = 256  # how many of the best tokens a nucleus is looked for in on a GPU, before a full sort
Row = NDArray[np.float32]
ROUNDING = 1e-3  # more than what rounding does to a sum of float32 exponentials


@dataclass(frozen=True)
class Truncation:
    """A set of most probable tokens.

    Attributes:
        top_p: the smallest set of best tokens whose mass reaches it; 0 keeps one token.
        top_k: so many best tokens; 0 keeps all.
        min_p: probability relative to the best token; 0 keeps all.
        joint: whether the mass of top-p is that of all tokens, as when several sets intersect, or
            that of the top-k tokens, as where the filters run one after the other.

    Raises:
        ValueError: for a value outside its range.
    """

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    joint: bool = False

    def __post_init__(self) -> None:
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise ValueError(f"top_k must be an int, 0 (keep all) or more, got {self.top_k!r}")

    @property
    def chained(self) -> bool:
        """Whether top-p is that of the top-k tokens, so that neither can be tested by itself."""
        return self.top_k > 0 and self.top_p < 1 and not self.joint

    def keeps_all(self, vocab: int) -> bool:
        """Whether nothing is cut off from ``vocab`` tokens but those at -inf."""
        return self.top_p == 1.0 and self.min_p == 0.0 and not 0 < self.top_k < vocab


EVERYTHING = Truncation()


def kept_mask(scores: Tensor, cut: Truncation, temperature: Tensor | None = None) -> Tensor:
    """The tokens of ``scores`` ``(B, V)``, any row stride, that ``cut`` keeps, as a bool mask.

    Masses are those of softmax(scores / temperature), with temperatures ``(B,)`` above 0, or 1.
    Never a token at -inf. A row with a NaN, with +inf or with nothing but -inf keeps none.
    """
    if cut.keeps_all(scores.shape[1]):
        return (scores > -math.inf) & scores.amax(-1, keepdim=True).isfinite()
    if scores.is_cpu:
        row, token = kept_entries(scores, cut, temperature)
        mask = torch.zeros(scores.shape, dtype=torch.bool)
        mask.view(-1)[row * scores.shape[1] + token] = True
        return mask
    return _mask_by_topk(scores.float(), cut, temperature)


def kept_entries(
    scores: Tensor, cut: Truncation, temperature: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rows and token ids (int64, in ascending order) that `kept_mask` sets."""
    if not scores.is_cpu:
        return kept_mask(scores, cut, temperature).nonzero(as_tuple=True)  # type: ignore[return-value]
    temperatures = [1.0] * len(scores) if temperature is None else temperature.tolist()
    rows = scores.detach().float().numpy()
    kept = [kept_tokens(row, cut, each) for row, each in zip(rows, temperatures, strict=True)]
    row = np.repeat(np.arange(len(kept)), [len(tokens) for tokens in kept])
    token = np.concatenate(kept) if kept else row
    return torch.from_numpy(row), torch.from_numpy(token)


def kept_tokens(x: Row, cut: Truncation, temperature: float = 1.0) -> NDArray[np.int64]:
    """The places, ascending, that ``cut`` keeps of one row ``(V,)`` at a temperature."""
    top = x.max(initial=-math.inf)
    if not np.isfinite(top):
        return np.empty(0, np.int64)
    if cut.keeps_all(len(x)):
        return np.flatnonzero(x > -math.inf)
    lowest = temperature * math.log(cut.min_p) if cut.min_p > 0 else -math.inf
    floor = top + np.float32(lowest)
    limit, total = floor, math.inf
    if cut.chained:
        limit = np.float32(-math.inf)  # what min-p cuts off still has mass in the top-k
    elif cut.top_p < 1:
        total = float(_masses(x, top, temperature).sum(dtype=np.float64))
        least = (1 - cut.top_p) * total / len(x) * (1 - ROUNDING)
        limit = max(limit, top + np.float32(temperature * (math.log(least) - ROUNDING)))
    places = np.flatnonzero(x >= limit if limit > -math.inf else x > -math.inf)
    kept: NDArray[np.int64] = places[_best(x[places], top, total, cut, temperature)]
    return kept[x[kept] >= floor] if cut.min_p > 0 else kept


def _best(
    x: Row, top: np.float32, total: float, cut: Truncation, temperature: float
) -> NDArray[np.bool_]:
    """Which of ``x`` are in the top-k and the top-p; ``total`` is the mass of all tokens."""
    count = min(cut.top_k or len(x), len(x))
    if count < len(x):
        descending = np.sort(np.partition(x, len(x) - count)[len(x) - count :])[::-1]
    else:
        descending = np.sort(x)[::-1]
    if cut.top_p < 1:
        mass = _masses(descending, top, temperature).cumsum(dtype=np.float64)
        goal = cut.top_p * (total if math.isfinite(total) else mass[-1])
        count = min(int(np.searchsorted(mass, goal)) + 1, count)
    least = descending[count - 1]
    kept: NDArray[np.bool_] = x >= least
    if (surplus := np.count_nonzero(kept) - count) > 0:  # of those tied for the last place
        kept[np.flatnonzero(x == least)[-surplus:]] = False
    return kept


def _masses(x: Row, top: np.float32, temperature: float) -> Row:
    """exp((x - top) / temperature) in float32."""
    apart = x - top
    if temperature != 1:
        apart *= np.float32(1 / temperature)
    masses: Row = np.exp(apart)
    return masses


def _mask_by_topk(x: Tensor, cut: Truncation, temperature: Tensor | None = None) -> Tensor:
    """`kept_mask` in operations that a GPU has, for float32 ``(B, V)``.

    It waits for the device, to sort only rows whose nucleus is wide; no fused kernel needs it.
    """
    scale = 1.0 if temperature is None else temperature[:, None]
    top, vocab = x.amax(-1, keepdim=True), x.shape[1]
    mask = (x > -math.inf) & top.isfinite()
    k = cut.top_k if 0 < cut.top_k < vocab else vocab
    if k < vocab:
        mask &= _first(x, x.topk(k, dim=-1).values, torch.full_like(top, k, dtype=torch.int64))
    if cut.top_p < 1:
        left = x.masked_fill(~mask, -math.inf) if cut.chained else x
        total = ((left - top) / scale).exp().sum(-1, keepdim=True)
        best = left.topk(min(HEAD, vocab), dim=-1).values
        if bool((((best - top) / scale).exp().sum(-1, keepdim=True) < cut.top_p * total).any()):
            best = left.sort(dim=-1, descending=True).values
        mass = ((best - top) / scale).exp()
        count = (mass.cumsum(-1) - mass < cut.top_p * total).sum(-1, keepdim=True).clamp_min(1)
        mask &= _first(left, best, count)
    if cut.min_p > 0:
        mask &= x >= top + math.log(cut.min_p) * scale
    return mask


def _first(x: Tensor, best: Tensor, count: Tensor) -> Tensor:
    """The ``count`` ``(B, 1)`` best entries of ``x``; ``best`` are its best values, descending."""
    least = best.gather(-1, count - 1)
    above, tied = x > least, x == least
    remaining = count - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1) <= remaining))
