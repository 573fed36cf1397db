# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""How the Triton backend of `plugalign.kernels.spec_verify` judges drafted tokens.

`weigh` sweeps the drafted places of target and draft, `accept` puts the parts together and counts
what stays. Probabilities are powers of 2 relative to the best score of their row, so that no large
numbers cancel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from plugalign.kernels.calls import ACCEPTANCE, TINY
from plugalign.kernels.row_lse_triton import LOG2E, add_online, pivot_of
from plugalign.kernels.rows_triton import NEVER, logits_at

PLACES = tl.constexpr(8)  # looked at together

ACCEPTANCE_OFFSET = tl.constexpr(ACCEPTANCE)
INF = tl.constexpr(float("inf"))
SMALLEST = tl.constexpr(TINY)  # below, some versions of Triton take a literal for a float64


@triton.jit
def scale_of(temperature):
    """What turns a score into an exponent of 2; finite at any temperature, also at 0."""
    return LOG2E / tl.maximum(temperature, SMALLEST)


@triton.jit
def mass(
    scores,
    bound,
    vocab,
    scale,
    first,
    tiles,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    W: tl.constexpr,
):
    """The best score of some tiles, and their sum of powers relative to it."""
    T: tl.constexpr = TILE // W
    lane = tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]  # [T, W]
    top = tl.full((T,), NEVER, tl.float32)
    total = tl.zeros((T,), tl.float32)
    for tile in range(first, first + tiles):
        token = tile * TILE + lane
        x = logits_at(scores, token, vocab, bound, ROWS)
        top, total = add_online(x, top, total, scale)
    highest = tl.max(top)
    return highest, tl.sum(total * tl.exp2((top - pivot_of(highest)) * scale))


@triton.jit
def rivals(
    scores,
    bound,
    vocab,
    own,
    drafted,
    first,
    tiles,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    W: tl.constexpr,
):
    """How many entries of some tiles, NaNs among them, come before the drafted token."""
    T: tl.constexpr = TILE // W
    lane = tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]  # [T, W]
    count = tl.zeros((T,), tl.float32)
    for tile in range(first, first + tiles):
        token = tile * TILE + lane
        x = logits_at(scores, token, vocab, bound, ROWS)
        behind = (x < own) | ((x == own) & (token >= drafted))
        count += tl.sum(tl.where(behind, 0.0, 1.0), 1)
    return tl.sum(count)


@triton.jit(do_not_specialize=["vocab", "places", "tiles"])
def weigh(
    target,
    stride,
    bound,
    draft,
    draft_stride,
    draft_bound,
    tokens,
    lengths,
    temperature,
    draft_temperature,
    part_top,
    part_sum,
    vocab,
    places,
    tiles,
    ROWS: tl.constexpr,
    W: tl.constexpr,
    DRAFT_ROWS: tl.constexpr,
    DRAFT_W: tl.constexpr,
    TILE: tl.constexpr,
):
    """One part of a drafted place's normaliser, in the target and then in the draft; in a greedy
    row the drafted token's rivals. Grid: (B, 2 G, parts)."""
    row = tl.program_id(0).to(tl.int64)
    source = tl.program_id(1) // places
    place = tl.program_id(1) % places
    part = tl.program_id(2)
    slot = ((row * 2 + source) * places + place) * tl.num_programs(2) + part
    row_temperature = tl.load(temperature + row)
    first = part * tiles
    if place < tl.load(lengths + row):
        if source == 1:
            if row_temperature > 0:
                scale = scale_of(tl.load(draft_temperature + row))
                scores = draft + (row * places + place) * draft_stride
                top, total = mass(
                    scores, draft_bound, vocab, scale, first, tiles, DRAFT_ROWS, TILE, DRAFT_W
                )
                tl.store(part_top + slot, top)
                tl.store(part_sum + slot, total)
        else:
            scores = target + (row * (places + 1) + place) * stride
            if row_temperature > 0:
                scale = scale_of(row_temperature)
                top, total = mass(scores, bound, vocab, scale, first, tiles, ROWS, TILE, W)
                tl.store(part_top + slot, top)
                tl.store(part_sum + slot, total)
            else:
                drafted = tl.load(tokens + row * places + place)
                known = (drafted >= 0) & (drafted < vocab)
                own = tl.load(scores + drafted, mask=known, other=NEVER).to(tl.float32)
                count = rivals(scores, bound, vocab, own, drafted, first, tiles, ROWS, TILE, W)
                tl.store(part_top + slot, 0.0)
                tl.store(part_sum + slot, count)


@triton.jit
def merged(part_top, part_sum, slot, mask, scale):
    """Best scores [PLACES] and sums relative to them, from the parts at ``slot``."""
    top = tl.load(part_top + slot, mask=mask, other=NEVER)  # [PLACES, PARTS]
    total = tl.load(part_sum + slot, mask=mask, other=0.0)
    highest = tl.max(top, 1)
    return highest, tl.sum(total * tl.exp2((top - pivot_of(highest)[:, None]) * scale), 1)


@triton.jit
def inverse_of(total):
    """1 / total, or NaN where a row had a NaN or +inf, or nothing but -inf."""
    some = (total > 0) & (total < INF)
    return tl.where(some, tl.div_rn(1.0, tl.where(some, total, 1.0)), float("nan"))


@triton.jit
def uniforms(seed, step, prompt, sample):
    """The uniforms [PLACES] of steps."""
    first = tl.zeros_like(step)
    word, _, _, _ = tl.philox(seed, first, step, prompt, sample)
    return tl.minimum(word.to(tl.float32) * 2.0**-32 + 2.0**-33, 1 - 2.0**-24)


@triton.jit(do_not_specialize=["vocab", "seed", "places", "parts"])
def accept(
    target,
    stride,
    draft,
    draft_stride,
    tokens,
    lengths,
    temperature,
    draft_temperature,
    seed: tl.int64,
    prompt,
    sample,
    step,
    part_top,
    part_sum,
    norm_top,
    norm_inverse,
    accepted,
    vocab,
    places,
    parts,
    PARTS: tl.constexpr,
):
    """How many drafted tokens stay, and the merged normalisers of their places. Grid: (B,)."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.minimum(tl.load(lengths + row), places)
    row_temperature = tl.load(temperature + row)
    scale = scale_of(row_temperature)
    draft_scale = scale_of(tl.load(draft_temperature + row))
    which = tl.load(prompt + row).to(tl.uint32)
    copy = tl.load(sample + row).to(tl.uint32)
    part = tl.arange(0, PARTS)[None, :]
    stayed = tl.full((), 0, tl.int32)
    for begin in range(0, places, PLACES):
        place = begin + tl.arange(0, PLACES)  # [PLACES]
        judged = place < length
        slot = row * 2 * places + place
        mask = judged[:, None] & (part < parts)
        drafted = tl.load(tokens + row * places + place, mask=judged, other=-1)
        known = (drafted >= 0) & (drafted < vocab)
        at = target + (row * (places + 1) + place) * stride + drafted
        own = tl.load(at, mask=known, other=NEVER).to(tl.float32)
        top, total = merged(part_top, part_sum, slot[:, None] * parts + part, mask, scale)
        if row_temperature > 0:
            at = draft + (row * places + place) * draft_stride + drafted
            mine = tl.load(at, mask=known, other=NEVER).to(tl.float32)
            slot += places
            draft_top, draft_total = merged(
                part_top, part_sum, slot[:, None] * parts + part, mask, draft_scale
            )
            inverse, draft_inverse = inverse_of(total), inverse_of(draft_total)
            power = (own - top) * scale - (mine - draft_top) * draft_scale
            ratio = tl.exp2(power) * tl.div_rn(inverse, draft_inverse)
            now = (tl.load(step + row) + place + ACCEPTANCE_OFFSET).to(tl.uint32)
            stays = uniforms(seed, now, which, copy) < ratio
            tl.store(norm_top + slot, draft_top, mask=judged)
            tl.store(norm_inverse + slot, draft_inverse, mask=judged)
            # A NaN makes `draw` find no answer, and without the draft's normaliser there is none.
            top = tl.where(draft_inverse > 0, top, float("nan"))
            tl.store(norm_top + slot - places, top, mask=judged)
            tl.store(norm_inverse + slot - places, inverse, mask=judged)
        else:
            stays = (total == 0) & (tl.abs(own) < INF)
        failed = tl.min(tl.where(judged & stays, begin + PLACES, place))
        stayed = tl.where(stayed == begin, failed, stayed)
    tl.store(accepted + row, stayed.to(tl.int64))
