# mypy: disable-error-code="untyped-decorator, no-untyped-def, assignment"
"""Where a truncation of a model's logits ends, exactly, in a fixed number of sweeps.

The last kept (value, token) of a row: all that come before it in the total order stay. The value is
found by halving the range of all floats eight ways at once: a round sums the mass (or the number)
of the tokens above eight pivots, and the next round starts from the two pivots between which the
truncation ends. Rounds are as many as the dtype has digits, whatever the logits are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.launch import MOST_PARTS, Launch, aligned, prepared, split, tiling
from plugalign.kernels.row_lse_triton import LOG2E
from plugalign.kernels.row_lse_triton import plan as lse_plan
from plugalign.kernels.rows_triton import NEVER, logits_at
from plugalign.kernels.truncation import Truncation

TILE = 2048
WARPS = 8
PIVOTS = 8
# Values in float32's order: an integer of 32 bits, of which narrower dtypes set the first alone.
LOWEST_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
ALL_TIES = tl.constexpr(0x7FFFFFF0)


@triton.jit
def float_of(key, SHIFT: tl.constexpr):
    """The float32 of an ordered integer whose lowest bits are those of a narrower dtype."""
    ordered = tl.where(key < 0, (key << SHIFT) | ((1 << SHIFT) - 1), key << SHIFT).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def ordered_of(value, SHIFT: tl.constexpr):
    """The ordered integer (int64) of a float32, without its lowest bits."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) >> SHIFT


@triton.jit
def pivot_between(low, high, i, PIVOTS: tl.constexpr):
    """The i-th of the pivots that divide what lies above ``low`` up to ``high``."""
    return low + ((high - low) * (i + 1) + PIVOTS) // (PIVOTS + 1)


@triton.jit
def narrowed(
    low,
    high,
    mass,
    count,
    row,
    parts,
    top_p,
    top_k,
    MASS: tl.constexpr,
    COUNT: tl.constexpr,
    PIVOTS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The two neighbours among ``low``, the pivots and ``high`` between which the set ends.

    A value is within if what stands above it is not enough: a tied best value always is.
    """
    part = tl.arange(0, PARTS)
    new_low = low
    new_high = high
    for i in tl.static_range(PIVOTS):
        pivot = pivot_between(low, high, i, PIVOTS)
        at = (row * parts + part) * PIVOTS + i
        within = pivot == pivot
        if MASS:
            over = tl.sum(tl.load(mass + at, mask=part < parts, other=0.0))
            within = within & ((over < top_p) | (over == 0.0))
        if COUNT:
            within = within & (tl.sum(tl.load(count + at, mask=part < parts, other=0.0)) < top_k)
        new_high = tl.where(within, tl.minimum(new_high, pivot), new_high)
        new_low = tl.where(within, new_low, tl.maximum(new_low, pivot))
    return new_low, new_high


@triton.jit
def interval_of(
    state,
    mass,
    count,
    lse,
    row,
    parts,
    top_p,
    top_k,
    FIRST: tl.constexpr,
    MASS: tl.constexpr,
    COUNT: tl.constexpr,
    SHIFT: tl.constexpr,
    PIVOTS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The interval after the last round: at first, all from -inf to the normaliser."""
    if FIRST:
        low = ordered_of(tl.full((), NEVER, tl.float32), SHIFT) - 1
        high = ordered_of(tl.load(lse + row), SHIFT)
    else:
        low, high = narrowed(
            tl.load(state + row * 2),
            tl.load(state + row * 2 + 1),
            mass,
            count,
            row,
            parts,
            top_p,
            top_k,
            MASS,
            COUNT,
            PIVOTS,
            PARTS,
        )
    return low, high


@triton.jit(do_not_specialize=["vocab", "tiles", "parts", "top_k"])
def ladder(
    x,
    stride,
    vocab,
    bound,
    tiles,
    parts,
    lse,
    top_p,
    top_k,
    state,
    mass,
    count,
    new_state,
    new_mass,
    new_count,
    FIRST: tl.constexpr,
    MASS: tl.constexpr,
    COUNT: tl.constexpr,
    SHIFT: tl.constexpr,
    PIVOTS: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
):
    """One round for one part: probability and number of the tokens above each pivot. Every program
    of a row works the interval out for itself. Grid: (B, parts)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    low, high = interval_of(
        state, mass, count, lse, row, parts, top_p, top_k, FIRST, MASS, COUNT, SHIFT, PIVOTS, PARTS
    )
    if part == 0:
        tl.store(new_state + row * 2, low)
        tl.store(new_state + row * 2 + 1, high)
    normaliser = tl.load(lse + row)
    pivots = ()
    over = ()
    number = ()
    for i in tl.static_range(PIVOTS):
        pivots = pivots + (float_of(pivot_between(low, high, i, PIVOTS), SHIFT),)
        over = over + (tl.zeros((T,), tl.float32),)
        number = number + (tl.zeros((T,), tl.float32),)
    lane = tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]
    for tile in range(part * tiles, (part + 1) * tiles):
        value = logits_at(x + row * stride, tile * (T * W) + lane, vocab, bound, ROWS)
        p = tl.exp2((value - normaliser) * LOG2E)
        more_over = ()
        more_number = ()
        for i in tl.static_range(PIVOTS):
            higher = value > pivots[i]
            if MASS:
                more_over = more_over + (over[i] + tl.sum(tl.where(higher, p, 0.0), 1),)
            if COUNT:
                more_number = more_number + (number[i] + tl.sum(tl.where(higher, 1.0, 0.0), 1),)
        if MASS:
            over = more_over
        if COUNT:
            number = more_number
    at = (row * parts + part) * PIVOTS
    for i in tl.static_range(PIVOTS):
        if MASS:
            tl.store(new_mass + at + i, tl.sum(over[i]))
        if COUNT:
            tl.store(new_count + at + i, tl.sum(number[i]))


@triton.jit(do_not_specialize=["vocab", "tiles", "parts", "top_k"])
def edge(
    x,
    stride,
    vocab,
    bound,
    tiles,
    parts,
    lse,
    top_p,
    top_k,
    state,
    mass,
    count,
    least,
    part_over,
    part_number,
    part_ties,
    MASS: tl.constexpr,
    COUNT: tl.constexpr,
    SHIFT: tl.constexpr,
    PIVOTS: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
):
    """The last kept value, and in one part what is above it and how often it occurs.
    Grid: (B, parts)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    _low, high = interval_of(
        state, mass, count, lse, row, parts, top_p, top_k, False, MASS, COUNT, SHIFT, PIVOTS, PARTS
    )
    limit = float_of(high, SHIFT)
    normaliser = tl.load(lse + row)
    over = tl.zeros((T,), tl.float32)
    number = tl.zeros((T,), tl.float32)
    ties = tl.zeros((T,), tl.float32)
    lane = tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]
    for tile in range(part * tiles, (part + 1) * tiles):
        value = logits_at(x + row * stride, tile * (T * W) + lane, vocab, bound, ROWS)
        higher = value > limit
        p = tl.exp2((value - normaliser) * LOG2E)
        over += tl.sum(tl.where(higher, p, 0.0), 1)
        number += tl.sum(tl.where(higher, 1.0, 0.0), 1)
        ties += tl.sum(tl.where(value == limit, 1.0, 0.0), 1)
    slot = row * parts + part
    tl.store(part_over + slot, tl.sum(over))
    tl.store(part_number + slot, tl.sum(number))
    tl.store(part_ties + slot, tl.sum(ties))
    if part == 0:
        tl.store(least + row, limit)


@triton.jit
def nth_tie(
    x,
    stride,
    row,
    vocab,
    bound,
    tiles,
    tied,
    n,
    ties,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
):
    """The token of a row's n-th entry that equals ``tied``; ``ties`` are the parts' numbers."""
    seen = tl.cumsum(ties)
    part = tl.sum(tl.where(seen < n, 1, 0))
    left = n - tl.max(tl.where(seen < n, seen, 0.0))
    found = tl.full((), 0, tl.int32)
    lane = tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]
    for tile in range(part * tiles, (part + 1) * tiles):
        token = tile * (T * W) + lane
        equal = logits_at(x + row * stride, token, vocab, bound, ROWS) == tied
        flat = tl.reshape(equal.to(tl.float32), (T * W,))
        hit = (tl.cumsum(flat) == left) & (flat > 0.0)
        found += tl.sum(tl.where(hit, tl.reshape(token, (T * W,)), 0))
        left -= tl.sum(flat)
    return found


@triton.jit(do_not_specialize=["vocab", "tiles", "parts", "top_k"])
def settle(
    x,
    stride,
    vocab,
    bound,
    tiles,
    parts,
    lse,
    top_p,
    top_k,
    log_min_p,
    least,
    last,
    part_over,
    part_number,
    part_ties,
    part_top,
    MASS: tl.constexpr,
    COUNT: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
):
    """How many of the tied last values are kept, and the token of the last one. Grid: (B,)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    at = row * parts + part
    normaliser = tl.load(lse + row)
    value = tl.full((), NEVER, tl.float32)
    token = tl.full((), ALL_TIES, tl.int32)
    if MASS or COUNT:
        value = tl.load(least + row)
        ties = tl.load(part_ties + at, mask=part < parts, other=0.0)
        remaining = tl.full((), 2.0**30, tl.float32)
        if MASS:
            over = tl.sum(tl.load(part_over + at, mask=part < parts, other=0.0))
            p = tl.exp2((value - normaliser) * LOG2E)
            remaining = tl.maximum(tl.ceil((top_p - over) / p), 1.0)
        if COUNT:
            number = tl.sum(tl.load(part_number + at, mask=part < parts, other=0.0))
            remaining = tl.minimum(remaining, top_k - number)
        if (remaining < tl.sum(ties)) & (value > NEVER):
            token = nth_tie(x, stride, row, vocab, bound, tiles, value, remaining, ties, ROWS, T, W)
    top = tl.max(tl.load(part_top + at, mask=part < parts, other=NEVER))
    limit = top + log_min_p
    value_kept = tl.where(limit > value, limit, value)
    token = tl.where(limit > value, ALL_TIES, token)
    sound = tl.abs(normaliser) < float("inf")
    tl.store(least + row, tl.where(sound, value_kept, float("inf")))
    tl.store(last + row, tl.where(sound, token, -1))


def threshold_plan(
    x: Tensor, cut: Truncation, *, tile: int = TILE, parts: int | None = None
) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """Where ``cut`` ends in logits ``(B, V)``: a value and a token for each row, and the launches
    that write them. A token is kept if it comes before (value, token + 1) in the order.

    Top-p and top-k together are taken jointly. A row with a NaN or +inf keeps nothing.
    """
    rows, vocab = x.shape
    device = x.device
    tiles = triton.cdiv(vocab, tile)
    parts, each = split("threshold.ladder", tiles, rows, device, parts)
    lse = torch.empty(1, rows, device=device)
    launches = lse_plan((x,), lse, tile=tile, parts=parts)
    least = torch.full((rows,), -math.inf, device=device)
    last = torch.empty(rows, dtype=torch.int32, device=device)
    part_sums = torch.empty(3, aligned(rows * parts), device=device)
    shared = {
        "x": x,
        "stride": x.stride(0),
        "vocab": vocab,
        "tiles": each,
        "parts": parts,
        "lse": lse,
        "top_p": float(cut.top_p),
        "top_k": cut.top_k or 1,
        "log_min_p": math.log(cut.min_p) if cut.min_p > 0 else -math.inf,
        "least": least,
        "last": last,
        "part_top": launches[0].arguments["part_top"],
        "part_over": part_sums[0],
        "part_number": part_sums[1],
        "part_ties": part_sums[2],
        "MASS": cut.top_p < 1,
        "COUNT": 0 < cut.top_k < vocab,
        "SHIFT": LOWEST_BITS[x.dtype],
        "PIVOTS": PIVOTS,
        "PARTS": MOST_PARTS,
    } | tiling((x,), tile)
    if shared["MASS"] or shared["COUNT"]:
        launches += _rounds(shared, (rows, parts), device)
    launches.append(prepared(settle, (rows,), shared, WARPS))
    return (least, last), launches


def _rounds(shared: dict[str, Any], grid: tuple[int, int], device: torch.device) -> list[Launch]:
    """The rounds of the search; each reads what the last one wrote."""
    rows, parts = grid
    launches, first = [], True
    state, mass, count = (torch.empty(0, device=device) for _ in range(3))
    width = 2 ** (32 - shared["SHIFT"])
    while width > 1:
        old = {"state": state, "mass": mass, "count": count, "FIRST": first}
        state = torch.empty(rows, 2, dtype=torch.int64, device=device)
        mass, count = torch.empty(2, aligned(rows * parts * PIVOTS), device=device)
        new = {"new_state": state, "new_mass": mass, "new_count": count}
        launches.append(prepared(ladder, grid, shared | old | new, WARPS))
        width, first = -(-width // (PIVOTS + 1)), False
    last = {"state": state, "mass": mass, "count": count}
    return [*launches, prepared(edge, grid, shared | last, WARPS)]
