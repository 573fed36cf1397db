# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""The end of sampling from a truncated mixture: the best noised token that the truncation keeps."""

from __future__ import annotations

import triton
import triton.language as tl

from plugalign.kernels.noised_triton import (
    ON_BASE,
    answer_of,
    constants_of,
    entry_of,
    inverse_temperature,
    noised,
    value_of,
)
from plugalign.kernels.row_lse_triton import LOG2E, pivot_of
from plugalign.kernels.rows_triton import NEVER
from plugalign.kernels.terms_triton import (
    LOW_WORD,
    NO_KEY,
    above,
    key_of,
    score_of,
    token_of,
)

LOWEST = tl.constexpr(-0x7F800001 << 32)  # the key of -inf: below are NaNs


@triton.jit
def passes(mass, goal, count, top_k, value, top, scale, log_min_p):
    """Whether the truncation keeps a token with so much above it. The best token always stays."""
    enough = (mass < goal) | (mass == 0.0)
    unlikely = value < pivot_of(top) + log_min_p * (LOG2E / scale)
    return enough & (count < top_k) & ((unlikely == 0) | (value == top))


@triton.jit(do_not_specialize=["vocab", "all_tiles", "parts", "seed", "top_k"])
def finish(
    terms,
    cut,
    address,
    seed: tl.int64,
    vocab,
    bound,
    all_tiles,
    part_above,
    part_count,
    parts,
    keys,
    rest,
    tops,
    goals,
    top_k,
    log_min_p,
    tokens,
    ON: tl.constexpr,
    GREEDY: tl.constexpr,
    MASS: tl.constexpr,
    COUNT: tl.constexpr,
    TESTED: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    FAST: tl.constexpr,
):
    """The best tested token that is kept; where there is none, the search goes on. Grid: (B,)."""
    row = tl.program_id(0).to(tl.int64)
    scale = inverse_temperature(address, row, ON, GREEDY) * LOG2E
    fixed = constants_of(terms, cut, address, row, GREEDY)
    top = tl.load(tops + row)
    goal = tl.load(goals + row) if MASS else 1.0
    part = tl.arange(0, PARTS)
    unknown = tl.load(rest + row)
    answer = tl.full((), NO_KEY, tl.int64)
    low = tl.full((), LOWEST, tl.int64)  # the best entry known to be truncated
    for c in tl.static_range(TESTED):
        key = tl.load(keys + row * TESTED + c)
        value, token = entry_of(terms, fixed, row, key, vocab, bound, ON, ROWS, FAST)
        at = (row * parts + part) * TESTED + c
        mass, count = 0.0, 0.0
        if MASS:
            mass = tl.sum(tl.load(part_above + at, mask=part < parts, other=0.0))
        if COUNT:
            count = tl.sum(tl.load(part_count + at, mask=part < parts, other=0.0))
        kept = passes(mass, goal, count, top_k, value, top, scale, log_min_p)
        known = (key != NO_KEY) & (score_of(key) > unknown)
        answer = tl.where(kept & known & (answer == NO_KEY), key, answer)
        failed = (key != NO_KEY) & (kept == 0) & (value == value)
        low = tl.where(failed, tl.maximum(low, key_of(value, token)), low)
    # A row with a NaN or +inf, or without a possible token, has no answer to search for.
    sound = (tl.abs(top) != float("inf")) & (top == top) & (tl.abs(goal) < float("inf"))
    searching = sound & (answer == NO_KEY)
    high = key_of(top, tl.full((), 0, tl.int32))
    while searching:
        # The best noised token above all that is known to be truncated, and, so that the search is
        # short whatever the sources are, the entry halfway from there to the top.
        answer = best_above(
            terms, fixed, seed, row, vocab, bound, all_tiles, low, ON, ROWS, T, W, FAST
        )
        value, token = entry_of(terms, fixed, row, answer, vocab, bound, ON, ROWS, FAST)
        here = key_of(value, token)
        one, other = place_of(here), place_of(high)
        middle = key_at((one >> 1) + (other >> 1) + (one & other & 1))
        mass, count, middle_mass, middle_count = all_above(
            terms,
            fixed,
            row,
            vocab,
            bound,
            all_tiles,
            here,
            middle,
            top,
            scale,
            ON,
            MASS,
            COUNT,
            ROWS,
            T,
            W,
            FAST,
        )
        kept = passes(mass, goal, count, top_k, value, top, scale, log_min_p)
        middle_kept = passes(
            middle_mass, goal, middle_count, top_k, score_of(middle), top, scale, log_min_p
        )
        searching = (kept == 0) & (answer != NO_KEY)
        low = tl.where(middle_kept, here, middle)
        high = tl.where(middle_kept, middle, high)
    tl.store(tokens + row, tl.where(sound, answer_of(answer), -1))


@triton.jit
def place_of(key):
    """A key's place among all entries, without the gaps between keys: a token has 31 bits, and the
    integer between the two zeros belongs to none."""
    ordered = key >> 32
    return ((ordered + (ordered < 0).to(tl.int64)) << 31) | (key & LOW_WORD)


@triton.jit
def key_at(place):
    """The key of a place."""
    ordered = place >> 31
    return ((ordered - (ordered < 0).to(tl.int64)) << 32) | (place & LOW_WORD)


@triton.jit
def best_above(
    terms,
    fixed,
    seed,
    row,
    vocab,
    bound,
    all_tiles,
    low,
    ON: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    FAST: tl.constexpr,
):
    """The key of the best noised score among a row's tokens above the entry ``low``."""
    best = tl.full((T, W), NO_KEY, tl.int64)
    for tile in range(0, all_tiles):
        token, x, z, score = noised(terms, fixed, seed, row, tile, vocab, bound, ROWS, T, W, FAST)
        value = x if ON == ON_BASE else z
        higher = above(value, token, score_of(low), token_of(low))
        best = tl.maximum(best, key_of(tl.where(higher, score, NEVER), token))
    return tl.max(best)


@triton.jit
def all_above(
    terms,
    fixed,
    row,
    vocab,
    bound,
    all_tiles,
    one,
    other,
    top,
    scale,
    ON: tl.constexpr,
    MASS: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    FAST: tl.constexpr,
):
    """Mass and number, or zero where not asked for, of a row's tokens above two entries."""
    mass = tl.zeros((T,), tl.float32)
    count = tl.zeros((T,), tl.float32)
    other_mass = tl.zeros((T,), tl.float32)
    other_count = tl.zeros((T,), tl.float32)
    lane = tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]
    for tile in range(0, all_tiles):
        token = tile * (T * W) + lane
        value = value_of(terms, fixed, row, token, vocab, bound, ON, ROWS, FAST)
        higher = above(value, token, score_of(one), token_of(one))
        higher_still = above(value, token, score_of(other), token_of(other))
        if MASS:
            weight = tl.exp2((value - pivot_of(top)) * scale)
            mass += tl.sum(tl.where(higher, weight, 0.0), 1)
            other_mass += tl.sum(tl.where(higher_still, weight, 0.0), 1)
        if COUNT:
            count += tl.sum(tl.where(higher, 1.0, 0.0), 1)
            other_count += tl.sum(tl.where(higher_still, 1.0, 0.0), 1)
    return tl.sum(mass), tl.sum(count), tl.sum(other_mass), tl.sum(other_count)
