# mypy: disable-error-code="untyped-decorator, no-untyped-def, assignment"
"""A mixture inside a Triton kernel: its arguments, its value at some tokens, its total order.

`plugalign.kernels.mixture` is the specification. The kernels that sample, truncate and write
scores all evaluate the mixture by `mixed`, so what is fused into one is fused into all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.launch import Launch, tiling
from plugalign.kernels.mixture import Mixture
from plugalign.kernels.rows_triton import NEVER, logits_at
from plugalign.kernels.terms.linear import Linear
from plugalign.kernels.terms.linear_triton import fused as linear
from plugalign.kernels.terms.weights_triton import Scale, scale_at, scale_of

NO_KEY = tl.constexpr(-(2**63))
LOW_WORD = tl.constexpr(0x7FFFFFFF)


class Part(NamedTuple):
    """A term, see `plugalign.kernels.terms.term.Fused`; its functions are compiled in."""

    constants: Any
    value: Any
    data: Any


class Terms(NamedTuple):
    """A mixture as a kernel takes it. How many terms it has, and which, is part of the kernel.

    Attributes:
        base, stride: the base's logits ``(B, V)`` and their row stride.
        weight: of the base.
        parts: what is added.
        mask, mask_stride: ``(B, V)`` bytes and their row stride, or None.
    """

    base: Tensor
    stride: int
    weight: Scale
    parts: tuple[Part, ...]
    mask: Tensor | None
    mask_stride: int


@triton.jit
def scales_of(terms, row):
    """What is the same for all tokens of a row: the base's weight, and the terms' constants.

    Rows are axis 0 of every grid. A kernel loads these once, before its loop over tiles.
    """
    constants = ()
    for i in tl.static_range(len(terms.parts)):
        constants = constants + (terms.parts[i].constants(terms.parts[i].data, row),)
    return scale_at(terms.weight, row), constants


@triton.jit
def mixed(terms, scales, row, token, vocab, bound, ROWS: tl.constexpr, FAST: tl.constexpr):
    """The base's logits and z at tokens of a row, in float32; a NaN in z becomes +inf."""
    x = logits_at(terms.base + row * terms.stride, token, vocab, bound, ROWS)
    z = x * scales[0]
    for i in tl.static_range(len(terms.parts)):
        z = terms.parts[i].value(
            terms.parts[i].data, scales[1][i], z, x, row, token, bound, ROWS, FAST
        )
    z = tl.where(z != z, float("inf"), z)
    if terms.mask is not None:
        allowed = tl.load(terms.mask + row * terms.mask_stride + token, mask=token < vocab, other=0)
        z = tl.where(allowed != 0, z, NEVER)
    return x, tl.where(x == NEVER, NEVER, z)


@triton.jit
def key_of(score, token):
    """An int64 that orders by (score, then smaller token); `NO_KEY` for a score of -inf."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # + 0.0: the two zeros are one
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = (ordered.to(tl.int64) << 32) | (token ^ LOW_WORD).to(tl.int64)
    return tl.where(score == NEVER, NO_KEY, key)


@triton.jit
def score_of(key):
    """The score in a key."""
    ordered = (key >> 32).to(tl.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return tl.where(key == NO_KEY, NEVER, bits.to(tl.float32, bitcast=True))


@triton.jit
def token_of(key):
    """The token in a key that is not `NO_KEY`."""
    return ((key & LOW_WORD) ^ LOW_WORD).to(tl.int32)


@triton.jit
def above(value, token, least, last):
    """Whether (value, token) comes before (least, last) in the order: larger, or the smaller id."""
    return (value > least) | ((value == least) & (token < last))


def terms_of(mixture: Mixture) -> tuple[Terms, list[Tensor], list[Launch]]:
    """The mixture as kernels take it, the logits ``(B, V)`` that they read, and the launches that
    must come first. Terms without a kernel, and a second heavy one, are
    computed here and enter as logits."""
    base, mask = mixture.base, mixture.mask
    parts, inputs, launches, heavy = [], [base], [], False
    for term in mixture.terms:
        fused = None if term.heavy and heavy else term.fused(base)
        heavy = heavy or term.heavy
        if fused is None:
            fused = linear(Linear((term.delta(base).float(),), (1.0,)), base)
        parts.append(Part(fused.constants, fused.value, fused.data))
        inputs += fused.inputs
        launches += fused.launches
    allowed = None if mask is None else mask.contiguous().view(torch.uint8)
    stride = 0 if allowed is None else allowed.stride(0)
    weight = scale_of(mixture.weight)
    terms = Terms(base, base.stride(0), weight, tuple(parts), allowed, stride)
    return terms, inputs, launches


def shape_of(terms: Terms, inputs: list[Tensor], tile: int) -> dict[str, Any]:
    """What every kernel that evaluates ``terms`` wants to know of their shape."""
    return {"terms": terms, "vocab": terms.base.shape[1]} | tiling(inputs, tile)
