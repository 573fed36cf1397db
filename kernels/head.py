"""A model's output head that is evaluated where its logits are wanted, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from plugalign.kernels.product import (
    FEW,
    float32_product,
    one_row,
    packed_float32_product,
    packed_product,
)
from plugalign.kernels.row_lse import row_lse

GATHERED = 12  # the cost of a gathered entry, in those of an entry of a product of one row
CHUNK = 2**17  # gathered weights at a time, few enough to stay in a core's cache


@dataclass(frozen=True, eq=False)
class Head:
    """The logits ``hidden @ weight^T + bias``, not yet computed.

    Where a truncation of the base leaves a few hundred tokens of a vocabulary, so many rows of
    ``weight`` are read, and not all.

    Attributes:
        hidden: last hidden states ``(B, D)``, after the final norm.
        weight: ``(V, D)`` of the same dtype. bias: ``(V,)`` or None.
        float32: whether half precision logits are left in float32, as the product sums them up or
            to about 16 significant bits: where probabilities are compared, rounding is too coarse.
        packed: what `plugalign.kernels.product.pack` made of ``weight``, for products of few rows.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    float32: bool = False
    packed: Tensor | None = None

    def __post_init__(self) -> None:
        hidden, weight = self.hidden, self.weight
        fits = hidden.ndim == weight.ndim == 2 and hidden.shape[1] == weight.shape[1] > 0
        if not fits or hidden.dtype != weight.dtype or hidden.device != weight.device:
            raise ValueError(
                "a head needs hidden (B, D) and weight (V, D) of one dtype and device, got "
                f"{hidden.dtype} {tuple(hidden.shape)} on {hidden.device} and "
                f"{weight.dtype} {tuple(weight.shape)} on {weight.device}"
            )
        if (bias := self.bias) is None:
            return
        like = (weight.dtype, weight.device, weight.shape[:1])
        if (bias.dtype, bias.device, bias.shape) != like:
            raise ValueError(
                f"a head's bias must be {weight.dtype} ({len(weight)},) on {weight.device}, got "
                f"{bias.dtype} {tuple(bias.shape)} on {bias.device}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.hidden), len(self.weight)

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def under(self, weight: Tensor, bias: Tensor | None) -> Head:
        """The same hidden states under another weight and bias."""
        return replace(self, weight=weight, bias=bias, packed=None)

    def full(self) -> Tensor:
        """All logits ``(B, V)``, as the linear layer itself gives them, up to rounding."""
        if self.packed is not None and len(self.hidden) in FEW:
            product = packed_float32_product if self.float32 else packed_product
            return product(self.hidden, self.packed, self.bias)
        if self.float32:
            return float32_product(self.hidden, self.weight, self.bias)
        with one_row(len(self.hidden), self.weight):
            return linear(self.hidden, self.weight, self.bias)

    def at(self, row: Tensor, token: Tensor) -> Tensor:
        """The logits ``(N,)`` of some entries, in float32.

        Many entries are cheaper by all logits: a matrix product reads each weight once for all
        rows and at full speed, and what is gathered is read once for each entry.
        """
        if GATHERED * len(row) > len(self.weight) * (1 + len(self.hidden) / 8):
            return self.full()[row, token].float()
        size = max(1, CHUNK // self.hidden.shape[1])
        found = torch.empty(len(row), dtype=torch.float32, device=self.device)
        for i in range(0, len(row), size):
            here = slice(i, i + size)
            states, rows = self.hidden[row[here]].float(), self.weight[token[here]].float()
            torch.linalg.vecdot(states, rows, out=found[here])
        if self.bias is not None:
            found += self.bias[token]
        return found


Logits = Tensor | Head


def full(logits: Logits) -> Tensor:
    """All logits ``(B, V)``."""
    return logits.full() if isinstance(logits, Head) else logits


def entries(logits: Logits, row: Tensor, token: Tensor) -> Tensor:
    """Some logits, float32 ``(N,)`` for int64 ``row`` and ``token`` ``(N,)``."""
    return logits.at(row, token) if isinstance(logits, Head) else logits[row, token].float()


def log_probs_at(logits: Logits, row: Tensor, token: Tensor) -> Tensor:
    """The log-probabilities of some entries, float32 ``(N,)``, in their rows' distributions."""
    whole = full(logits)
    return whole[row, token].float() - row_lse(whole, backend="torch")[row]


def can_add(head: Head) -> bool:
    """Whether sums of what such heads read stay within their numbers: float16's end at 65504."""
    return head.hidden.dtype != torch.float16


def weighted_sum(heads: Sequence[Head], weights: Sequence[float]) -> Head:
    """The sum of heads that share their weights, each times a number: since a head is linear, one
    head on the sum of what they read, ``sum_k w_k (W h_k + b) = W (sum_k w_k h_k) + b sum_k w_k``.
    """
    first, total = heads[0], sum(weights)
    states = [head.hidden.float() * weight for head, weight in zip(heads, weights, strict=True)]
    hidden = torch.stack(states).sum(0).to(first.hidden.dtype)
    bias = None if first.bias is None or total == 0 else first.bias * total
    return replace(first, hidden=hidden, bias=bias)


def is_same(one: Head, other: Head) -> bool:
    """Whether two heads have the same weights, in one place."""
    pairs = ((one.weight, other.weight), (one.bias, other.bias))
    return all(a is b or _lies_on(a, b) for a, b in pairs)


def _lies_on(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return False
    return (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride())
