# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""A term's weight inside a kernel: a number, or one for each row."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.terms.term import Weight


class Scale(NamedTuple):
    """A number, or one float32 ``(B,)`` in ``by_row``. (An empty tuple stands for nothing: Triton
    3.6 takes no None inside nested tuples.)"""

    number: float
    by_row: tuple[Tensor, ...]


@triton.jit
def scale_at(scale, row):
    """The weight of a row."""
    if len(scale.by_row) == 0:
        return scale.number
    else:
        return tl.load(scale.by_row[0] + row)


@triton.jit
def times(delta, weight, scale):
    """``delta`` times the ``weight`` that `scale_at` gave for ``scale``, 0 where a row's is 0."""
    if len(scale.by_row) == 0:
        return delta * weight
    else:
        return tl.where(weight == 0.0, 0.0, delta * weight)


def scale_of(weight: Weight) -> Scale:
    """A weight as kernels take it."""
    if isinstance(weight, Tensor):
        return Scale(0.0, (weight.contiguous(),))
    return Scale(float(weight), ())
