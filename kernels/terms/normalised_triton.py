# mypy: disable-error-code="untyped-decorator, no-untyped-def, assignment"
"""Normalisers of several logits, for terms that go by probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.launch import Launch
from plugalign.kernels.row_lse_triton import plan


@triton.jit
def lse_at(lse, row, COUNT: tl.constexpr):
    """The normalisers of a row, of ``lse`` ``(COUNT, B)``. Rows are axis 0 of every grid."""
    found = ()
    for k in tl.static_range(COUNT):
        found = found + (tl.load(lse + k * tl.num_programs(0) + row),)
    return found


def normalisers(logits: Sequence[Tensor]) -> tuple[Tensor, list[Launch]]:
    """Float32 ``(K, B)`` for K logits ``(B, V)``, and the launches that write them."""
    lse = torch.empty(len(logits), len(logits[0]), device=logits[0].device)
    return lse, plan(tuple(logits), lse)
