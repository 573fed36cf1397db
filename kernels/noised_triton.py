# mypy: disable-error-code="untyped-decorator, no-untyped-def, assignment"
"""A mixture's scores inside a sampling kernel: cut off, with noise, and as they are truncated."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.gumbel_triton import tile_noise
from plugalign.kernels.row_lse_triton import add_online
from plugalign.kernels.rows_triton import NEVER
from plugalign.kernels.terms_triton import (
    NO_KEY,
    above,
    mixed,
    scales_of,
    score_of,
    token_of,
)

MIN_TEMPERATURE, MAX_TEMPERATURE = tl.constexpr(1e-30), tl.constexpr(1e30)
ON_NOTHING = tl.constexpr(0)
ON_BASE = tl.constexpr(1)
ON_RESULT = tl.constexpr(2)


class Address(NamedTuple):
    """Where a row's noise stands and its temperature: int64, int64, int64 and float32 ``(B,)``."""

    step: Tensor
    prompt: Tensor
    sample: Tensor
    temperature: Tensor


@triton.jit
def constants_of(terms, cut, address, row, GREEDY: tl.constexpr):
    """What is the same for all tokens of a row, loaded once: scales, cut, temperature, address."""
    limit = ()
    if len(cut) > 0:
        limit = (tl.load(cut[0] + row), tl.load(cut[1] + row) + 1)
    counter = ()
    if not GREEDY:
        counter = (
            tl.minimum(tl.load(address.temperature + row), MAX_TEMPERATURE),
            tl.load(address.step + row).to(tl.uint32),
            tl.load(address.prompt + row).to(tl.uint32),
            tl.load(address.sample + row).to(tl.uint32),
        )
    return scales_of(terms, row), limit, counter


@triton.jit
def kept_score(terms, fixed, row, token, vocab, bound, ROWS: tl.constexpr, FAST: tl.constexpr):
    """The base's logits and z of some tokens; z is -inf from the first (value, token) cut off."""
    x, z = mixed(terms, fixed[0], row, token, vocab, bound, ROWS, FAST)
    if len(fixed[1]) > 0:
        z = tl.where(above(x, token, fixed[1][0], fixed[1][1]), z, NEVER)
    return x, z


@triton.jit
def noised(
    terms,
    fixed,
    seed,
    row,
    tile,
    vocab,
    bound,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    FAST: tl.constexpr,
):
    """Tokens of a tile [T, W], the base's logits, z, and z with noise."""
    token = tile * (T * W) + tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]
    x, z = kept_score(terms, fixed, row, token, vocab, bound, ROWS, FAST)
    score = z
    if len(fixed[2]) > 0:
        temperature, step, prompt, sample = fixed[2]
        if temperature > 0:  # a greedy row among others pays for no noise
            score += temperature * tile_noise(tile, seed, step, prompt, sample, T, W, FAST)
    return token, x, z, score


@triton.jit
def taken(
    state,
    terms,
    fixed,
    seed,
    row,
    tile,
    vocab,
    bound,
    scale,
    ON: tl.constexpr,
    MASS: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    FAST: tl.constexpr,
):
    """What a sweep knows after one more tile, which lies inside the row if there is no ``bound``:
    the best scores, the best of all others, tiles of the best, and maximum and mass of lines."""
    best, second, best_tile, top, mass = state
    _token, x, z, score = noised(terms, fixed, seed, row, tile, vocab, bound, ROWS, T, W, FAST)
    best_tile = tl.where(score > best, tile, best_tile)
    if ON != ON_NOTHING:
        second = tl.maximum(second, tl.max(tl.minimum(best, score), 1))
        value = x if ON == ON_BASE else z
        if MASS:
            top, mass = add_online(value, top, mass, scale)
        else:
            top = tl.maximum(top, tl.max(tl.where(value == value, value, float("inf")), 1))
    return tl.maximum(best, score), second, best_tile, top, mass


@triton.jit
def inverse_temperature(address, row, ON: tl.constexpr, GREEDY: tl.constexpr):
    """What differences of the truncated values are multiplied by: 1 / T for the mixture's.

    Never infinite, because the best value's difference is zero; T = 0 leaves the best value alone.
    """
    scale = 1.0
    if ON == ON_RESULT:
        temperature = 0.0 if GREEDY else tl.load(address.temperature + row)
        scale = 1.0 / tl.maximum(temperature, MIN_TEMPERATURE)
    return scale


@triton.jit
def value_of(
    terms,
    fixed,
    row,
    token,
    vocab,
    bound,
    ON: tl.constexpr,
    ROWS: tl.constexpr,
    FAST: tl.constexpr,
):
    """The values of some tokens in the distribution that is truncated."""
    x, z = kept_score(terms, fixed, row, token, vocab, bound, ROWS, FAST)
    return x if ON == ON_BASE else z


@triton.jit
def entry_of(
    terms,
    fixed,
    row,
    key,
    vocab,
    bound,
    ON: tl.constexpr,
    ROWS: tl.constexpr,
    FAST: tl.constexpr,
):
    """Value and token of a key; for `NO_KEY` a value that every token is above."""
    token = tl.where(key == NO_KEY, 0, token_of(key)) + tl.zeros((1,), tl.int32)
    value = tl.max(value_of(terms, fixed, row, token, vocab, bound, ON, ROWS, FAST))
    return tl.where(key == NO_KEY, NEVER, value), tl.max(token)


@triton.jit
def answer_of(key):
    """The token to return: -1 for no token, and for a score that is no number."""
    score = score_of(key)
    lost = (score == NEVER) | (score == float("inf"))
    return tl.where(lost, -1, token_of(key)).to(tl.int64)
