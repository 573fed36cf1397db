# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""`plugalign.kernels.topk_select` in Triton: selection among groups, then inside the best groups.

A row is cut into groups of consecutive entries. Order groups by their maximum, then by place: the
k best entries lie in the k best groups, because each of these holds an entry that comes before all
entries of any other group. So one sweep over the logits leaves k groups, whatever the values are:
there is no buffer that ties could overflow. Both selections bisect on ordered integers and keep
exactly k, so nothing depends on the order in which threads run. Only the k that remain are sorted.

Results pass from launch to launch: a barrier inside a program orders its global memory on some
GPUs and not on others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.launch import Launch, prepared, split, tiling
from plugalign.kernels.rows_triton import NEVER, logits_at

TILE = 2048
WARPS = 8
SIZES = (8, 16, 32, 64)  # entries of a group
SHIFTS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}  # bits that carry nothing

LAST = tl.constexpr(0x7FFFFFFF)
NO_ENTRY = tl.constexpr(-(2**62))
NOTHING = tl.constexpr(-0x80000000)  # ranks below all numbers


@triton.jit
def rank_of(x):
    """The integer that orders a value; a NaN's is the largest, and 0 and -0 share one."""
    bits = x.to(tl.int32, bitcast=True)
    rank = tl.where(x == 0, 0, bits ^ ((bits >> 31) & LAST))
    return tl.where(x != x, LAST, rank)


@triton.jit
def halve(x):
    """The larger of each two neighbours in a row of x [N, M], or a NaN: [N, M / 2]."""
    left, right = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))
    return tl.maximum(left, right, propagate_nan=tl.PropagateNan.ALL)


# Sizes come in all values: specialising on 1 or on multiples of 16 would only recompile.
@triton.jit(do_not_specialize=["vocab", "groups", "tiles"])
def sweep(
    logits,
    stride,
    vocab,
    bound,
    tops,
    groups,
    tiles,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    SIZE: tl.constexpr,
):
    """The best rank of each group, of one part of a row. Grid: (B, parts)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    lane = tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]  # [T, W]
    place = tl.arange(0, T * W // SIZE)
    for tile in range(part * tiles, (part + 1) * tiles):
        token = tile * (T * W) + lane
        x = logits_at(logits + row * stride, token, vocab, bound, ROWS)
        x = halve(halve(x))
        if W == 8:
            x = halve(x)
        # Ranks cost more than maxima, so a thread takes the maximum of its 16 bytes first.
        top = tl.max(tl.reshape(rank_of(x), (T * W // SIZE, SIZE // W)), 1)
        group = tile * (T * W // SIZE) + place
        tl.store(tops + row * groups + group, top, mask=group < groups)


@triton.jit
def choose(rank, k, low, N: tl.constexpr, M: tl.constexpr):
    """Of rank [N, M] the k best, of equal ones the first: whether, their slots, and a bound.

    Slots number the k in the order of their places. At least k ranks reach ``low``, and k the
    bound. All counts are below 2**15, so two of them fit one integer.
    """
    high = tl.max(rank)
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        count = tl.sum((rank >= middle).to(tl.int32))
        low = tl.where(count >= k, middle, low)
        high = tl.where(count > k, high, tl.where(count == k, middle, middle - 1))
    above = (rank > low).to(tl.int32)
    remaining = k - tl.sum(above)
    both = above + ((rank == low).to(tl.int32) << 16)
    in_row = tl.sum(both, 1)
    before = (tl.cumsum(in_row) - in_row)[:, None] + tl.cumsum(both, 1) - both
    tied = before >> 16
    slot = (before & 0xFFFF) + tl.minimum(tied, remaining)
    return tl.where(rank == low, tied < remaining, rank > low), slot, low


@triton.jit(do_not_specialize=["groups", "k"])
def narrow(
    tops,
    groups,
    k,
    chosen,
    low,
    GROUPS: tl.constexpr,
    K: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """The k best groups of each row, and a bound on the k best entries. Grid: (B,)."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, GROUPS // 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    top = tl.load(tops + row * groups + place, mask=place < groups, other=NOTHING) >> SHIFT
    least = tl.min(tl.where(place < groups, top, LAST))
    wins, slot, bound = choose(top, tl.minimum(k, groups), least, GROUPS // 16, 16)
    tl.store(chosen + row * K + slot, place, mask=wins)
    # Fewer than k groups hold more than one of the best each, and then their maxima bound nothing.
    tl.store(low + row, tl.where(groups < k, NOTHING >> SHIFT, bound))


@triton.jit(do_not_specialize=["vocab", "groups", "k"])
def pick(
    logits,
    stride,
    vocab,
    bound,
    groups,
    k,
    chosen,
    low,
    places,
    SIZE: tl.constexpr,
    K: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """The k best entries of each row's chosen groups. Grid: (B,)."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, K)  # [K]
    given = (lane < k) & (lane < groups)
    group = tl.load(chosen + row * K + lane, mask=given, other=0)
    token = group[:, None] * SIZE + tl.arange(0, SIZE)[None, :]  # [K, SIZE]
    loads = given[:, None] & (token < bound)
    x = tl.load(logits + row * stride + token, mask=loads, other=NEVER).to(tl.float32)
    rank = tl.where(given[:, None] & (token < vocab), rank_of(x), NOTHING) >> SHIFT
    wins, slot, _ = choose(rank, k, tl.load(low + row), K, SIZE)
    # Where each stood, not what it was: less to hold in registers.
    place = lane[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(places + row * K + slot, place, mask=wins)


@triton.jit(do_not_specialize=["k"])
def arrange(logits, stride, k, chosen, places, values, ids, SIZE: tl.constexpr, K: tl.constexpr):
    """Sorts the k best entries of each row. Grid: (B,)."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, K)  # [K]
    given = lane < k
    place = tl.load(places + row * K + lane, mask=given, other=0)
    token = tl.load(chosen + row * K + place // SIZE, mask=given, other=0) * SIZE + place % SIZE
    x = tl.load(logits + row * stride + token, mask=given, other=NEVER).to(tl.float32)
    entry = (rank_of(x).to(tl.int64) << 31) | (token ^ LAST)
    entry = tl.sort(tl.where(given, entry, NO_ENTRY), descending=True)
    rank = (entry >> 31).to(tl.int32)
    value = (rank ^ ((rank >> 31) & LAST)).to(tl.float32, bitcast=True)
    tl.store(values + row * k + lane, value, mask=given)
    tl.store(ids + row * k + lane, entry & LAST ^ LAST, mask=given)


def topk_select_triton(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`plugalign.kernels.topk_select.topk_select` on checked logits ``(B, V)`` and k <= V."""
    values = torch.empty(len(logits), k, dtype=torch.float32, device=logits.device)
    ids = torch.empty_like(values, dtype=torch.int64)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        for launch in plan(logits, values, ids):
            launch.run()
    return values, ids


def plan(
    logits: Tensor,
    values: Tensor,
    ids: Tensor,
    *,
    tile: int = TILE,
    parts: int | None = None,
    size: int | None = None,
) -> list[Launch]:
    """The launches that write ``values`` and ``ids`` ``(B, k)``.

    Args:
        tile, parts, size: entries of a tile, programs for a row, entries of a group (a power of
            two, from 8 to the tile); they change the speed alone.
    """
    rows, vocab = logits.shape
    k = values.shape[1]
    most = max(16, triton.next_power_of_2(k))
    size = size or group_size(vocab, most)
    groups = triton.cdiv(vocab, size)
    all_groups = max(16, triton.next_power_of_2(groups))
    parts, each = split("topk.sweep", triton.cdiv(vocab, tile), rows, logits.device, parts)
    chosen, places = ids.new_empty(2, rows, most, dtype=torch.int32)
    shared = tiling((logits,), tile) | {
        "logits": logits,
        "stride": logits.stride(0),
        "vocab": vocab,
        "tops": chosen.new_empty(rows, groups),
        "groups": groups,
        "tiles": each,
        "k": k,
        "chosen": chosen,
        "low": chosen.new_empty(rows),
        "places": places,
        "values": values,
        "ids": ids,
        "SIZE": size,
        "GROUPS": all_groups,
        "K": most,
        "SHIFT": SHIFTS[logits.dtype],
    }
    return [
        prepared(sweep, (rows, parts), shared, WARPS),
        prepared(narrow, (rows,), shared, warps_for(all_groups)),
        prepared(pick, (rows,), shared, warps_for(most * size)),
        prepared(arrange, (rows,), shared, max(1, min(8, most // 32))),
    ]


def group_size(vocab: int, k: int) -> int:
    """Makes the two selections about equally large: among groups, and among k groups' entries."""
    fit = (n for n in SIZES if triton.next_power_of_2(triton.cdiv(vocab, n)) <= k * n)
    return next(fit, SIZES[-1])


def warps_for(entries: int) -> int:
    """Warps of a program that holds so many entries: eight to a thread, if 16 warps do."""
    return max(1, min(16, entries // 256))
