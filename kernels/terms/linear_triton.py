# mypy: disable-error-code="untyped-decorator, no-untyped-def, assignment"
"""`plugalign.kernels.terms.linear` in Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.head import full
from plugalign.kernels.rows_triton import values_at
from plugalign.kernels.terms.term import Fused

if TYPE_CHECKING:
    from plugalign.kernels.terms.linear import Linear


class Data(NamedTuple):
    """Logits ``(B, V)`` with their row strides, and their weights: numbers, so that nothing is
    copied to the device, or one float32 ``(B, K)`` in ``by_row``, contiguous."""

    logits: tuple[Tensor, ...]
    strides: tuple[int, ...]
    numbers: tuple[float, ...]
    by_row: tuple[Tensor, ...]


@triton.jit
def constants(data, row):
    weights = ()
    for k in tl.static_range(len(data.logits)):
        if len(data.by_row) == 0:
            weights = weights + (data.numbers[k],)
        else:
            weights = weights + (tl.load(data.by_row[0] + row * len(data.logits) + k),)
    return weights


@triton.jit
def value(data, weights, z, x, row, token, bound, ROWS: tl.constexpr, FAST: tl.constexpr):
    for k in tl.static_range(len(data.logits)):
        y = values_at(data.logits[k] + row * data.strides[k], token, bound, None, ROWS)
        if len(data.by_row) == 0:
            z += y * weights[k]
        else:  # a row's weight of 0 adds nothing, whatever y is
            z += tl.where(weights[k] == 0.0, 0.0, y * weights[k])
    return z


def fused(term: Linear, base: Tensor) -> Fused:
    """The term as kernels take it."""
    inputs = tuple(full(x) for x in term.logits)
    numbers, by_row = tuple[float, ...](), tuple[Tensor, ...]()
    if isinstance(term.weights, Tensor):
        by_row = (term.weights.expand(len(base), len(inputs)).contiguous(),)
    else:
        numbers = tuple(float(weight) for weight in term.weights)
    data = Data(inputs, tuple(x.stride(0) for x in inputs), numbers, by_row)
    return Fused(inputs, constants, value, data, [])
