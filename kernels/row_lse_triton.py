# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""`plugalign.kernels.row_lse` in Triton: an online sum per thread, then a merge of the parts.

Each thread keeps a maximum and a sum of its own (Milakov and Gimelshein 2018, "Online normalizer
calculation for softmax", algorithm 3), so nothing crosses threads before the sweep is over.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.launch import MOST_PARTS, Launch, aligned, split, tiling
from plugalign.kernels.rows_triton import NEVER, logits_at

TILE = 2048
WARPS = 8

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def pivot_of(top):
    """What to subtract before exp: the maximum, or 0 where inf - inf would give a NaN."""
    return tl.where(tl.abs(top) == float("inf"), 0.0, top)


@triton.jit
def add_online(x, top, total, scale):
    """Takes entries [T, W] into the maximum [T] and the sum of exp((x - maximum) * scale) [T]."""
    higher = tl.maximum(top, tl.max(x, 1))
    pivot = pivot_of(higher)
    here = tl.sum(tl.exp2((x - pivot[:, None]) * scale), 1)
    return higher, total * tl.exp2((top - pivot) * scale) + here


@triton.jit(do_not_specialize=["vocab", "tiles"])
def sweep(
    sources,
    strides,
    vocab,
    bound,
    part_top,
    part_sum,
    tiles,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
):
    """Maximum of one part of a row, and its sum relative to that, by source. Grid: (R, parts)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    lane = tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]  # [T, W]
    for k in tl.static_range(len(sources)):
        top = tl.full((T,), NEVER, tl.float32)
        total = tl.zeros((T,), tl.float32)
        for tile in range(part * tiles, (part + 1) * tiles):
            token = tile * (T * W) + lane
            x = logits_at(sources[k] + row * strides[k], token, vocab, bound, ROWS)
            top, total = add_online(x, top, total, LOG2E)
        highest = tl.max(top)
        slot = (k * tl.num_programs(0) + row) * parts + part
        tl.store(part_top + slot, highest)
        tl.store(part_sum + slot, tl.sum(total * tl.exp2((top - pivot_of(highest)) * LOG2E)))


@triton.jit(do_not_specialize=["parts"])
def merge(part_top, part_sum, lse, parts, PARTS: tl.constexpr):
    """The rows' results from their parts. Grid: (K * R,)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)  # [PARTS]
    top = tl.load(part_top + row * parts + part, mask=part < parts, other=NEVER)
    total = tl.load(part_sum + row * parts + part, mask=part < parts, other=0.0)
    pivot = pivot_of(tl.max(top))
    total = tl.sum(total * tl.exp2((top - pivot) * LOG2E))
    tl.store(lse + row, pivot + tl.log2(total) * LN2)


def row_lse_triton(logits: Tensor) -> Tensor:
    """`plugalign.kernels.row_lse.row_lse` on checked logits ``(R, V)``."""
    lse = torch.empty(1, len(logits), dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        for launch in plan((logits,), lse):
            launch.run()
    return lse[0]


def plan(
    sources: tuple[Tensor, ...], lse: Tensor, *, tile: int = TILE, parts: int | None = None
) -> list[Launch]:
    """The launches that write ``lse`` ``(K, R)`` of sources ``(R, V)``; tile and parts change the
    speed and rounding."""
    rows, vocab = sources[0].shape
    parts, each = split("row_lse.sweep", triton.cdiv(vocab, tile), rows, lse.device, parts)
    top, total = lse.new_empty(2, aligned(len(sources) * rows * parts))
    swept = tiling(sources, tile) | {
        "sources": sources,
        "strides": tuple(x.stride(0) for x in sources),
        "vocab": vocab,
        "part_top": top,
        "part_sum": total,
        "tiles": each,
    }
    merged = {
        "part_top": top,
        "part_sum": total,
        "lse": lse,
        "parts": parts,
        "PARTS": MOST_PARTS,
    }
    grid = (len(sources) * rows,)
    return [Launch(sweep, (rows, parts), swept, WARPS), Launch(merge, grid, merged, 1)]
