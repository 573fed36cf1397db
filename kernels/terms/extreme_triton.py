# mypy: disable-error-code="untyped-decorator, no-untyped-def, assignment"
"""`plugalign.kernels.terms.extreme` in Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.head import full
from plugalign.kernels.rows_triton import values_at
from plugalign.kernels.terms.normalised_triton import lse_at, normalisers
from plugalign.kernels.terms.term import Fused
from plugalign.kernels.terms.weights_triton import Scale, scale_at, scale_of, times

if TYPE_CHECKING:
    from plugalign.kernels.terms.extreme import Extreme


class Data(NamedTuple):
    """Logits ``(B, V)``, their row strides and normalisers ``(K, B)``, +1 for the largest and -1
    for the smallest, and the term's weight."""

    logits: tuple[Tensor, ...]
    strides: tuple[int, ...]
    lse: Tensor
    sign: float
    weight: Scale


@triton.jit
def constants(data, row):
    return lse_at(data.lse, row, len(data.logits)), scale_at(data.weight, row)


@triton.jit
def value(data, fixed, z, x, row, token, bound, ROWS: tl.constexpr, FAST: tl.constexpr):
    best = tl.full(x.shape, float("-inf"), tl.float32)
    for k in tl.static_range(len(data.logits)):
        y = values_at(data.logits[k] + row * data.strides[k], token, bound, None, ROWS)
        signed = (y - fixed[0][k]) * data.sign
        best = tl.maximum(best, signed, propagate_nan=tl.PropagateNan.ALL)
    return z + times(best * data.sign, fixed[1], data.weight)


def fused(term: Extreme) -> Fused:
    """The term as kernels take it."""
    logits = tuple(full(x) for x in term.logits)
    lse, launches = normalisers(logits)
    sign = -1.0 if term.least else 1.0
    strides = tuple(x.stride(0) for x in logits)
    return Fused(
        logits, constants, value, Data(logits, strides, lse, sign, scale_of(term.weight)), launches
    )
