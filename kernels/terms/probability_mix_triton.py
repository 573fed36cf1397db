# mypy: disable-error-code="untyped-decorator, no-untyped-def, assignment"
"""`plugalign.kernels.terms.probability_mix` in Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.gumbel_triton import log2_of
from plugalign.kernels.head import full
from plugalign.kernels.row_lse_triton import LN2, LOG2E
from plugalign.kernels.rows_triton import values_at
from plugalign.kernels.terms.normalised_triton import lse_at, normalisers
from plugalign.kernels.terms.term import Fused
from plugalign.kernels.terms.weights_triton import Scale, scale_at, scale_of, times

if TYPE_CHECKING:
    from plugalign.kernels.terms.probability_mix import ProbabilityMix


class Data(NamedTuple):
    """The expert's logits ``(B, V)``, their row stride, normalisers of the base and of them
    ``(2, B)``, alpha, the floor, and the term's weight."""

    expert: Tensor
    stride: int
    lse: Tensor
    alpha: float
    floor: float
    weight: Scale


@triton.jit
def constants(data, row):
    return lse_at(data.lse, row, 2), scale_at(data.weight, row)


@triton.jit
def value(data, fixed, z, x, row, token, bound, ROWS: tl.constexpr, FAST: tl.constexpr):
    y = values_at(data.expert + row * data.stride, token, bound, None, ROWS)
    log_p = x - fixed[0][0]
    p = tl.exp2(log_p * LOG2E)
    q = tl.exp2((y - fixed[0][1]) * LOG2E)
    mixed = tl.maximum(p + (q - p) * data.alpha, data.floor, propagate_nan=tl.PropagateNan.ALL)
    return z + times(log2_of(mixed, FAST) * LN2 - log_p, fixed[1], data.weight)


def fused(term: ProbabilityMix, base: Tensor) -> Fused:
    """The term as kernels take it."""
    expert = full(term.expert)
    lse, launches = normalisers((base, expert))
    weight = scale_of(term.weight)
    data = Data(expert, expert.stride(0), lse, float(term.alpha), float(term.floor), weight)
    return Fused((expert,), constants, value, data, launches)
