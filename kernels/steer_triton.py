# mypy: disable-error-code="untyped-decorator, no-untyped-def, assignment"
"""Sampling from a mixture in Triton: noise first, truncation afterwards, no sort and no search.

The token is the best noised score among the tokens that a truncation keeps, and a token is kept
when the mass (or number) of the tokens above it is small. So one sweep over all sources finds the
few best noised scores wherever they are, a second sweep over the truncated distribution alone finds
the mass above each of them, and the first that is kept is the answer. If none is, which a row sees
rarely, its program repeats this on the tokens above the best that failed: exact in every case.
`plugalign.kernels.steer` is the specification.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels import candidate_sample_triton, scores_triton, topk_select_triton
from plugalign.kernels.calls import CandidateDraw, Draw
from plugalign.kernels.finish_triton import finish
from plugalign.kernels.launch import MOST_PARTS, Launch, aligned, prepared, split
from plugalign.kernels.mixture import Mixture
from plugalign.kernels.noised_triton import (
    ON_NOTHING,
    Address,
    answer_of,
    constants_of,
    entry_of,
    inverse_temperature,
    taken,
    value_of,
)
from plugalign.kernels.row_lse_triton import LOG2E, pivot_of
from plugalign.kernels.rows_triton import NEVER
from plugalign.kernels.terms_triton import (
    NO_KEY,
    above,
    key_of,
    score_of,
    shape_of,
    terms_of,
)
from plugalign.kernels.threshold_triton import threshold_plan
from plugalign.kernels.truncation import Truncation

TILE = 2048
WARPS = 8
FROM_PART = 4  # noised scores that leave each part of a row
TESTED = 4  # of them all, so many are tested at once
HEAVY_REGISTERS = 128  # of a thread, which leaves room for two programs


# Sizes and seeds come in all values: specialising on 1 or on multiples of 16 would only recompile.
@triton.jit(do_not_specialize=["vocab", "seed", "tiles"])
def sweep(
    terms,
    cut,
    address,
    seed: tl.int64,
    vocab,
    bound,
    tiles,
    part_key,
    part_rest,
    part_top,
    part_mass,
    ON: tl.constexpr,
    GREEDY: tl.constexpr,
    MASS: tl.constexpr,
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    FAST: tl.constexpr,
):
    """The best noised scores of one part of a row, a bound on all others, and the maximum and mass
    of the values that are truncated. Grid: (B, parts)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    slot = row * tl.num_programs(1) + part
    scale = inverse_temperature(address, row, ON, GREEDY) * LOG2E
    fixed = constants_of(terms, cut, address, row, GREEDY)
    best = tl.full((T, W), NEVER, tl.float32)
    best_tile = tl.zeros((T, W), tl.int32)
    highest = tl.full((T,), NEVER, tl.float32)
    mass = tl.zeros((T,), tl.float32)
    state = (best, highest, best_tile, highest, mass)
    # Masks cost much where entries are loaded one by one, and all but a row's last tile need none.
    whole = vocab // (T * W)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, whole)):
        state = taken(
            state, terms, fixed, seed, row, tile, vocab, None, scale, ON, MASS, ROWS, T, W, FAST
        )
    if part == whole // tiles:
        state = taken(
            state, terms, fixed, seed, row, whole, vocab, bound, scale, ON, MASS, ROWS, T, W, FAST
        )
    best, second, best_tile, top, mass = state
    lane = tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]
    key = key_of(best, best_tile * (T * W) + lane)
    for i in tl.static_range(KEYS):
        first = tl.max(key)
        tl.store(part_key + slot * KEYS + i, first)
        key = tl.where(key == first, NO_KEY, key)
    if ON != ON_NOTHING:
        tl.store(part_rest + slot, tl.maximum(tl.max(second), score_of(tl.max(key))))
        highest = tl.max(top)
        tl.store(part_top + slot, highest)
        if MASS:
            pivot = pivot_of(highest)
            tl.store(part_mass + slot, tl.sum(mass * tl.exp2((top - pivot) * scale)))


@triton.jit(do_not_specialize=["parts"])
def merge(
    address,
    part_key,
    part_rest,
    part_top,
    part_mass,
    parts,
    top_p,
    tokens,
    keys,
    rest,
    tops,
    goals,
    ON: tl.constexpr,
    GREEDY: tl.constexpr,
    MASS: tl.constexpr,
    KEYS: tl.constexpr,
    TESTED: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The best scores of a row, best first, and how much mass may stand above. Grid: (B,)."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, PARTS * KEYS)
    key = tl.load(part_key + row * parts * KEYS + i, mask=i < parts * KEYS, other=NO_KEY)
    if ON == ON_NOTHING:
        tl.store(tokens + row, answer_of(tl.max(key)))
    else:
        for c in tl.static_range(TESTED):
            first = tl.max(key)
            tl.store(keys + row * TESTED + c, first)
            key = tl.where(key == first, NO_KEY, key)
        part = tl.arange(0, PARTS)
        at = row * parts + part
        unknown = tl.max(tl.load(part_rest + at, mask=part < parts, other=NEVER))
        tl.store(rest + row, tl.maximum(unknown, score_of(tl.max(key))))
        top = tl.load(part_top + at, mask=part < parts, other=NEVER)
        highest = tl.max(top)
        tl.store(tops + row, highest)
        if MASS:
            scale = inverse_temperature(address, row, ON, GREEDY) * LOG2E
            mass = tl.load(part_mass + at, mask=part < parts, other=0.0)
            total = tl.sum(mass * tl.exp2((top - pivot_of(highest)) * scale))
            tl.store(goals + row, total * top_p)


@triton.jit(do_not_specialize=["vocab", "tiles"])
def check(
    terms,
    cut,
    address,
    vocab,
    bound,
    tiles,
    keys,
    tops,
    part_above,
    part_count,
    ON: tl.constexpr,
    GREEDY: tl.constexpr,
    MASS: tl.constexpr,
    COUNT: tl.constexpr,
    TESTED: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    FAST: tl.constexpr,
):
    """Mass and number of the tokens above each tested one, in one part. Grid: (B, parts)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    slot = row * tl.num_programs(1) + part
    scale = inverse_temperature(address, row, ON, GREEDY) * LOG2E
    fixed = constants_of(terms, cut, address, row, GREEDY)
    pivot = pivot_of(tl.load(tops + row))
    entries = ()
    mass = ()
    count = ()
    for c in tl.static_range(TESTED):
        key = tl.load(keys + row * TESTED + c)
        entries = entries + (entry_of(terms, fixed, row, key, vocab, bound, ON, ROWS, FAST),)
        mass = mass + (tl.zeros((T,), tl.float32),)
        count = count + (tl.zeros((T,), tl.float32),)
    lane = tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]
    for tile in range(part * tiles, (part + 1) * tiles):
        token = tile * (T * W) + lane
        value = value_of(terms, fixed, row, token, vocab, bound, ON, ROWS, FAST)
        weight = tl.exp2((value - pivot) * scale)
        more_mass = ()
        more_count = ()
        for c in tl.static_range(TESTED):
            higher = above(value, token, entries[c][0], entries[c][1])
            if MASS:
                more_mass = more_mass + (mass[c] + tl.sum(tl.where(higher, weight, 0.0), 1),)
            if COUNT:
                more_count = more_count + (count[c] + tl.sum(tl.where(higher, 1.0, 0.0), 1),)
        if MASS:
            mass = more_mass
        if COUNT:
            count = more_count
    for c in tl.static_range(TESTED):
        if MASS:
            tl.store(part_above + slot * TESTED + c, tl.sum(mass[c]))
        if COUNT:
            tl.store(part_count + slot * TESTED + c, tl.sum(count[c]))


def sample_triton(mixture: Mixture, draw: Draw, before: Truncation, after: Truncation) -> Tensor:
    """`plugalign.kernels.steer.sample` on checked arguments that can be fused."""
    tokens = draw.prompt.new_empty(len(mixture.base))
    with torch.cuda.device_of(mixture.base):  # type: ignore[no-untyped-call]
        for launch in plan(mixture, draw, before, after, tokens):
            launch.run()
    return tokens


def launches_of(mixture: Mixture, before: Truncation, after: Truncation) -> list[str]:
    """The names of the kernels that `sample_triton` launches, in order."""
    rows = len(mixture.base)
    number = torch.zeros(rows, dtype=torch.int64, device=mixture.base.device)
    draw = Draw(0, number, number, number, number.float())
    launches = plan(mixture, draw, before, after, number)
    return [launch.kernel.fn.__name__ for launch in launches]


def plan(
    mixture: Mixture,
    draw: Draw,
    before: Truncation,
    after: Truncation,
    tokens: Tensor,
    *,
    tile: int = TILE,
    parts: int | None = None,
    fast: bool | None = None,
) -> list[Launch]:
    """The launches that write ``tokens`` ``(B,)``.

    Args:
        tile, parts: entries of a tile, programs for a row; they change the speed, and the rounding
            of the masses that top-p compares.
        fast: the GPU's own logarithm and fused operations, the default on NVIDIA's GPUs; without,
            noise equals the torch reference's bit for bit.
    """
    rows, vocab = mixture.base.shape
    device = mixture.base.device
    if fast is None:
        fast = device.type == "cuda" and torch.version.hip is None
    if after.chained:
        return _plan_candidates(mixture, draw, before, after, tokens, tile, parts, fast)
    terms, inputs, launches = terms_of(mixture)
    cut: tuple[Tensor, ...] = ()
    late, on = (before, 1) if after.keeps_all(vocab) else (after, 2)
    if on == 2 and not before.keeps_all(vocab):
        cut, first = threshold_plan(mixture.base, before, tile=tile, parts=parts)
        launches += first
    if late.keeps_all(vocab):
        on = 0
    tiles = triton.cdiv(vocab, tile)
    heavy = any(term.heavy for term in mixture.terms)
    kernel = "sweep debias" if heavy else "sweep"
    parts, each = split(kernel, tiles, rows, device, parts)
    flags = _flags(on, late, vocab) | {"GREEDY": draw.greedy, "FAST": fast}
    shared = (
        shape_of(terms, inputs, tile)
        | flags
        | {
            "cut": cut,
            "seed": draw.seed - 2**64 if draw.seed >= 2**63 else draw.seed,
            "address": Address(draw.step, draw.prompt, draw.sample, draw.temperature),
            "tiles": each,
            "all_tiles": tiles,
            "parts": parts,
            "tokens": tokens,
            "top_p": float(late.top_p),
            "top_k": late.top_k or 1,
            "log_min_p": math.log(late.min_p) if late.min_p > 0 else -math.inf,
        }
        | _scratch(rows, parts, flags, device)
    )
    return launches + _launches((rows, parts), shared, on > 0, heavy, fast)


def _launches(
    grid: tuple[int, int], shared: dict[str, Any], truncates: bool, heavy: bool, fast: bool
) -> list[Launch]:
    """The sweep and the merge, and the test of what they found where something is truncated.

    Args:
        grid: rows, and programs for a row.
        heavy: whether a term is, see `Term`.
    """
    # A heavy term holds so much that the assembler, left alone, spills some of it.
    registers = HEAVY_REGISTERS if fast and heavy else None
    launches = [
        prepared(sweep, grid, shared, WARPS, fast, registers),
        prepared(merge, grid[:1], shared, 4, fast),
    ]
    if truncates:
        launches.append(prepared(check, grid, shared, WARPS, fast))
        # One program for each row, so nothing is lost by its taking all registers.
        registers = 255 if fast else None
        launches.append(prepared(finish, grid[:1], shared, WARPS, fast, registers))
    return launches


def _flags(on: int, late: Truncation, vocab: int) -> dict[str, Any]:
    """What is compiled into the kernels.

    Args:
        on: what ``late`` truncates: nothing (0), the base (1) or the mixture (2).
        late: the truncation that is tested after the noise.
    """
    return {
        "ON": on,
        "MASS": on > 0 and late.top_p < 1,
        "COUNT": on > 0 and 0 < late.top_k < vocab,
        "KEYS": FROM_PART if on else 1,
        "TESTED": TESTED if on else 1,
        "PARTS": MOST_PARTS,
    }


def _plan_candidates(
    mixture: Mixture,
    draw: Draw,
    before: Truncation,
    after: Truncation,
    tokens: Tensor,
    tile: int,
    parts: int | None,
    fast: bool,
) -> list[Launch]:
    """`plan` where top-p is that of the top-k: z, its best k tokens, and a draw among those."""
    rows, vocab = mixture.base.shape
    z = torch.empty(rows, vocab, device=mixture.base.device)
    launches = scores_triton.plan(mixture, before, z, tile=tile, parts=parts, fast=fast, raw=True)
    k = min(after.top_k, vocab)
    values, ids = z.new_empty(rows, k), tokens.new_empty(rows, k)
    launches += topk_select_triton.plan(z, values, ids)
    one = torch.ones_like(draw.temperature)
    call = CandidateDraw(
        values,
        ids,
        torch.zeros_like(values),
        one,
        draw.temperature,
        one * after.top_p,
        draw.prompt,
        draw.sample,
        draw.step,
        draw.seed,
    )
    return launches + candidate_sample_triton.plan(
        call, tokens, torch.empty_like(values), fast=fast
    )


def _scratch(rows: int, parts: int, flags: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What the launches hand on to each other."""
    keys, tested = flags["KEYS"], flags["TESTED"]
    parts_of_row = torch.empty(3 + 2 * tested, aligned(rows * parts), device=device)
    return {
        "part_key": torch.empty(rows, parts, keys, dtype=torch.int64, device=device),
        "part_rest": parts_of_row[0],
        "part_top": parts_of_row[1],
        "part_mass": parts_of_row[2],
        "part_above": parts_of_row[3 : 3 + tested],
        "part_count": parts_of_row[3 + tested :],
        "keys": torch.empty(rows, tested, dtype=torch.int64, device=device),
        "rest": torch.empty(rows, device=device),
        "tops": torch.empty(rows, device=device),
        "goals": torch.empty(rows, device=device),
    }
