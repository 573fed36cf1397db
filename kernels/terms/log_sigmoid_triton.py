# mypy: disable-error-code="untyped-decorator, no-untyped-def, assignment"
"""`plugalign.kernels.terms.log_sigmoid` in Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.gumbel_triton import log2_of
from plugalign.kernels.head import full
from plugalign.kernels.row_lse_triton import LN2, LOG2E
from plugalign.kernels.rows_triton import values_at
from plugalign.kernels.terms.term import Fused
from plugalign.kernels.terms.weights_triton import Scale, scale_at, scale_of, times

if TYPE_CHECKING:
    from plugalign.kernels.terms.log_sigmoid import LogSigmoid


class Data(NamedTuple):
    """Logits ``(B, V)``, their row stride, and the term's weight."""

    logits: Tensor
    stride: int
    weight: Scale


@triton.jit
def constants(data, row):
    return scale_at(data.weight, row)


@triton.jit
def value(data, weight, z, x, row, token, bound, ROWS: tl.constexpr, FAST: tl.constexpr):
    y = values_at(data.logits + row * data.stride, token, bound, None, ROWS)
    return z + times(log_sigmoid(y, FAST), weight, data.weight)


@triton.jit
def log_sigmoid(y, FAST: tl.constexpr):
    """min(y, 0) - log(1 + exp(-|y|)); a NaN stays one."""
    one_more = 1.0 + tl.exp2(-tl.abs(y) * LOG2E)
    return tl.minimum(y, 0.0, propagate_nan=tl.PropagateNan.ALL) - log2_of(one_more, FAST) * LN2


def fused(term: LogSigmoid) -> Fused:
    """The term as kernels take it."""
    logits = full(term.logits)
    data = Data(logits, logits.stride(0), scale_of(term.weight))
    return Fused((logits,), constants, value, data, [])
