# mypy: disable-error-code="untyped-decorator, no-untyped-def, assignment"
"""A mixture inside a Triton kernel: its arguments, its value at some tokens, its total order.

`plugalign.kernels.mixture` is the specification. The kernels that sample, truncate and write
scores all evaluate the mixture by `mixed`, so what is fused into one is fused into all.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.gumbel_triton import log2_of
from plugalign.kernels.launch import Launch, tiling
from plugalign.kernels.mixture import Mixture, full
from plugalign.kernels.row_lse_triton import plan
from plugalign.kernels.rows_triton import NEVER, logits_at, values_at

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NO_KEY = tl.constexpr(-(2**63))
LOW_WORD = tl.constexpr(0x7FFFFFFF)


class Terms(NamedTuple):
    """A mixture as a kernel takes it. How many tensors a tuple holds is part of the kernel.

    Attributes:
        sources, strides: logits ``(B, V)`` and their row strides; the base comes first.
        weights: float32 ``(B, K)``, contiguous, or None where they are numbers.
        numbers: the sources' weights, arguments of the kernel, so that nothing is copied.
        biased, biased_strides: logits behind biased prompts.
        lse: float32 ``(1 + K', B)``, normalisers of the base and of the biased logits, or None.
        decay: lambda, the log of the floor, and the weight.
        attributes, attribute_strides, attribute_weights: logits of P(a | x, t).
    """

    sources: tuple[Tensor, ...]
    strides: tuple[int, ...]
    weights: Tensor | None
    numbers: tuple[float, ...]
    biased: tuple[Tensor, ...]
    biased_strides: tuple[int, ...]
    lse: Tensor | None
    decay: tuple[float, float, float]
    attributes: tuple[Tensor, ...]
    attribute_strides: tuple[int, ...]
    attribute_weights: tuple[float, ...]


@triton.jit
def scales_of(terms, row):
    """What is the same for all of a row: the sources' weights, and the normalisers (or nothing).

    Rows are axis 0 of every grid. A kernel loads these once, before its loop over tiles.
    """
    K: tl.constexpr = len(terms.sources)
    weights = ()
    for k in tl.static_range(K):
        if terms.weights is None:
            weights = weights + (terms.numbers[k],)
        else:
            weights = weights + (tl.load(terms.weights + row * K + k),)
    normalisers = ()
    if len(terms.biased) > 0:
        for k in tl.static_range(1 + len(terms.biased)):
            normalisers = normalisers + (tl.load(terms.lse + k * tl.num_programs(0) + row),)
    return weights, normalisers


@triton.jit
def mixed(terms, scales, row, token, vocab, bound, ROWS: tl.constexpr, FAST: tl.constexpr):
    """The base's logits and z at tokens of a row, in float32; a NaN in z becomes +inf."""
    x = logits_at(terms.sources[0] + row * terms.strides[0], token, vocab, bound, ROWS)
    z = x * scales[0][0]
    for k in tl.static_range(1, len(terms.sources)):
        y = values_at(terms.sources[k] + row * terms.strides[k], token, bound, None, ROWS)
        z += y * scales[0][k]
    if len(terms.biased) > 0:
        z += decayed(terms, scales[1], x, row, token, bound, ROWS)
    for k in tl.static_range(len(terms.attributes)):
        start = terms.attributes[k] + row * terms.attribute_strides[k]
        y = values_at(start, token, bound, None, ROWS)
        z += terms.attribute_weights[k] * log_sigmoid(y, FAST)
    z = tl.where(z != z, float("inf"), z)
    return x, tl.where(x == NEVER, NEVER, z)


@triton.jit
def decayed(terms, normalisers, x, row, token, bound, ROWS: tl.constexpr):
    """The weighted shift of self-debiasing, from the base's logits ``x``."""
    worst = tl.zeros_like(x)
    for k in tl.static_range(len(terms.biased)):
        start = terms.biased[k] + row * terms.biased_strides[k]
        y = values_at(start, token, bound, None, ROWS)
        p = tl.exp2((y - normalisers[k + 1]) * LOG2E)
        worst = tl.maximum(worst, p, propagate_nan=tl.PropagateNan.ALL)
    own = tl.exp2((x - normalisers[0]) * LOG2E)
    excess = tl.maximum(worst - own, 0.0, propagate_nan=tl.PropagateNan.ALL)
    floor = terms.decay[1]
    damped = tl.maximum(-terms.decay[0] * excess, floor, propagate_nan=tl.PropagateNan.ALL)
    return damped * terms.decay[2]


@triton.jit
def log_sigmoid(y, FAST: tl.constexpr):
    """min(y, 0) - log(1 + exp(-|y|)); a NaN stays one."""
    one_more = 1.0 + tl.exp2(-tl.abs(y) * LOG2E)
    return tl.minimum(y, 0.0, propagate_nan=tl.PropagateNan.ALL) - log2_of(one_more, FAST) * LN2


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


def terms_of(mixture: Mixture) -> tuple[Terms, list[Launch]]:
    """The mixture as kernels take it, and the launches that must come first."""
    sources = tuple(full(x) for x in mixture.sources)
    attributes = tuple(full(a.logits) for a in mixture.attributes)
    biased: tuple[Tensor, ...] = ()
    decay, lse, launches = (0.0, 0.0, 0.0), None, []
    if mixture.decays:
        (one,) = mixture.decays
        biased = tuple(full(x) for x in one.biased)
        decay = (float(one.decay), math.log(one.floor), float(one.weight))
        lse = torch.empty(1 + len(biased), len(sources[0]), device=sources[0].device)
        launches = plan((sources[0], *biased), lse)
    strides = [tuple(x.stride(0) for x in group) for group in (sources, biased, attributes)]
    weights, numbers = None, tuple[float, ...]()
    if isinstance(mixture.weights, Tensor):
        weights = mixture.row_weights().contiguous()
    else:
        numbers = tuple(float(weight) for weight in mixture.weights)
    terms = Terms(
        sources, strides[0], weights, numbers, biased, strides[1], lse, decay,
        attributes, strides[2], tuple(float(a.weight) for a in mixture.attributes),
    )  # fmt: skip
    return terms, launches


def shape_of(terms: Terms, tile: int) -> dict[str, Any]:
    """What every kernel that evaluates ``terms`` wants to know of their shape."""
    tensors = (*terms.sources, *terms.biased, *terms.attributes)
    return {"terms": terms, "vocab": tensors[0].shape[1]} | tiling(tensors, tile)
