# mypy: disable-error-code="untyped-decorator, no-untyped-def, assignment"
"""`plugalign.kernels.terms.damping` in Triton."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.head import full
from plugalign.kernels.row_lse_triton import LOG2E
from plugalign.kernels.rows_triton import values_at
from plugalign.kernels.terms.normalised_triton import lse_at, normalisers
from plugalign.kernels.terms.term import Fused
from plugalign.kernels.terms.weights_triton import Scale, scale_at, scale_of, times

if TYPE_CHECKING:
    from plugalign.kernels.terms.damping import Damping


class Data(NamedTuple):
    """Logits ``(B, V)`` behind the biased prompts, their row strides, normalisers of the base and
    of them ``(1 + K, B)``, lambda, the log of the floor, and the term's weight."""

    biased: tuple[Tensor, ...]
    strides: tuple[int, ...]
    lse: Tensor
    decay: float
    floor: float
    weight: Scale


@triton.jit
def constants(data, row):
    return lse_at(data.lse, row, 1 + len(data.biased)), scale_at(data.weight, row)


@triton.jit
def value(data, fixed, z, x, row, token, bound, ROWS: tl.constexpr, FAST: tl.constexpr):
    worst = tl.zeros_like(x)
    for k in tl.static_range(len(data.biased)):
        y = values_at(data.biased[k] + row * data.strides[k], token, bound, None, ROWS)
        p = tl.exp2((y - fixed[0][k + 1]) * LOG2E)
        worst = tl.maximum(worst, p, propagate_nan=tl.PropagateNan.ALL)
    own = tl.exp2((x - fixed[0][0]) * LOG2E)
    excess = tl.maximum(worst - own, 0.0, propagate_nan=tl.PropagateNan.ALL)
    damped = tl.maximum(-data.decay * excess, data.floor, propagate_nan=tl.PropagateNan.ALL)
    return z + times(damped, fixed[1], data.weight)


def fused(term: Damping, base: Tensor) -> Fused:
    """The term as kernels take it."""
    biased = tuple(full(x) for x in term.biased)
    lse, launches = normalisers((base, *biased))
    data = Data(
        biased,
        tuple(x.stride(0) for x in biased),
        lse,
        float(term.decay),
        math.log(term.floor),
        scale_of(term.weight),
    )
    return Fused(biased, constants, value, data, launches)
