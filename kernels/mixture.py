"""What one step makes of the base's logits: terms that are added, and a mask, as data.

    z(t) = w x_0(t) + sum_i term_i(t) where the mask allows t, else -inf

x_0 is the base model; `plugalign.kernels.terms` holds the terms. A normaliser adds the same to
every token of a row, so it never matters to z and none is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plugalign.kernels.backend import check_logits
from plugalign.kernels.head import Logits
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.term import Term, Weight, by_entry, by_row, check_weight

NEVER = -math.inf


@dataclass(frozen=True, eq=False)
class Mixture:
    """The scores z ``(B, V)`` of a step.

    Attributes:
        base: logits ``(B, V)`` in float32, float16 or bfloat16, each row contiguous, any row
            stride. A token at -inf in the base stays at -inf. It is a tensor and no head, since a
            truncation reads all of it.
        terms: what is added.
        mask: bool ``(B, V)``, which tokens stay possible; None for all.
        weight: of the base, a number or float32 ``(B,)``.

    Raises:
        ValueError: for tensors that do not fit each other, or a number out of its range.
        TypeError: for a term that is none.
    """

    base: Tensor
    terms: tuple[Term, ...] = ()
    mask: Tensor | None = None
    weight: Weight = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.base, Tensor):
            raise ValueError("the base must be a tensor: its truncation reads all of it")
        check_logits(self.base, "the base")
        check_weight("the base's weight", self.weight, self.base)
        for term in self.terms:
            if not isinstance(term, Term):
                raise TypeError(f"a mixture is made of terms, got {type(term).__name__}")
            term.check(self.base)
        mask = self.mask
        if mask is not None and (
            mask.dtype != torch.bool
            or mask.shape != self.base.shape
            or mask.device != self.base.device
        ):
            raise ValueError(
                f"the mask must be bool {tuple(self.base.shape)} on {self.base.device} like the "
                f"base, got {mask.dtype} {tuple(mask.shape)} on {mask.device}"
            )

    @property
    def is_base(self) -> bool:
        """Whether z is known to be the base's logits."""
        is_one = not isinstance(self.weight, Tensor) and self.weight == 1
        return is_one and not self.terms and self.mask is None

    def inputs(self) -> Iterator[tuple[str, Logits]]:
        """Every ``(B, V)`` input with its name."""
        yield "base", self.base
        for i, term in enumerate(self.terms):
            for name, logits in term.inputs():
                yield f"terms[{i}].{name}", logits


def weighted(logits: Sequence[Logits], weights: Sequence[float] | Tensor) -> Mixture:
    """The mixture ``sum_k w_k x_k(t)``, of which the first is the base.

    Args:
        logits: K of them, ``(B, V)`` each.
        weights: one number for each, or float32 ``(B, K)`` or ``(K,)``.

    Raises:
        ValueError: without logits, or where they or the weights do not fit.
    """
    if not logits:
        raise ValueError("a mixture needs the base's logits at least, got none")
    base, *others = logits
    if not isinstance(base, Tensor):
        raise ValueError("the base must be a tensor: its truncation reads all of it")
    if len(weights) == 0 or (not isinstance(weights, Tensor) and len(weights) != len(logits)):
        raise ValueError(f"weights must be {len(logits)}, one for each, got {list(weights)}")
    if not isinstance(weights, Tensor):
        terms = (Linear(tuple(others), tuple(weights[1:])),) if others else ()
        return Mixture(base, terms, weight=weights[0])
    if tuple(weights.shape) not in ((len(logits),), (len(base), len(logits))):
        raise ValueError(
            f"weights must be float32 ({len(logits)},) or ({len(base)}, {len(logits)}), got "
            f"{tuple(weights.shape)}"
        )
    each = weights.expand(len(base), len(logits))
    terms = (Linear(tuple(others), each[:, 1:]),) if others else ()
    return Mixture(base, terms, weight=each[:, 0])


def mix(mixture: Mixture) -> Tensor:
    """The scores z, float32 ``(B, V)``; the base itself where nothing is added to it."""
    if mixture.is_base:
        return mixture.base.float()
    z = mixture.base.float() * by_row(mixture.weight)
    for term in mixture.terms:
        term.add_to(z, mixture.base)
    # Zero times -inf is no number, so what is forbidden is set and not computed.
    z.masked_fill_(mixture.base == NEVER, NEVER)
    return z if mixture.mask is None else z.masked_fill_(~mixture.mask, NEVER)


def mix_at(mixture: Mixture, row: Tensor, token: Tensor) -> Tensor:
    """z at some entries, float32 ``(N,)`` for int64 ``row`` and ``token`` ``(N,)``.

    ``mix(mixture)[row, token]``, bit for bit where no head and no probability is evaluated; whole
    rows are read of those inputs alone whose probabilities enter.
    """
    base = mixture.base[row, token].float()
    z = base * by_entry(mixture.weight, row)
    for term in mixture.terms:
        term.add_at(z, mixture.base, row, token)
    z.masked_fill_(base == NEVER, NEVER)
    return z if mixture.mask is None else z.masked_fill_(~mixture.mask[row, token], NEVER)
