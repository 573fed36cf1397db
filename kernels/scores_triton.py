# mypy: disable-error-code="untyped-decorator, no-untyped-def, assignment, misc"
"""A mixture's scores written out: normalised log-probabilities, or z as it is.

One sweep reads all sources and writes z with a normaliser of each part; a second one subtracts the
row's normaliser in place, which it makes of the parts itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.launch import MOST_PARTS, Launch, aligned, prepared, split
from plugalign.kernels.mixture import Mixture
from plugalign.kernels.row_lse_triton import LN2, LOG2E, add_online, pivot_of
from plugalign.kernels.rows_triton import NEVER
from plugalign.kernels.terms_triton import (
    above,
    mixed,
    scales_of,
    shape_of,
    terms_of,
)
from plugalign.kernels.threshold_triton import threshold_plan
from plugalign.kernels.truncation import Truncation

TILE = 2048
WARPS = 8


@triton.jit(do_not_specialize=["vocab", "tiles"])
def write(
    terms,
    cut,
    vocab,
    bound,
    tiles,
    out,
    part_top,
    part_sum,
    RAW: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    FAST: tl.constexpr,
):
    """z of one part of a row, -inf where it is cut off, and its normaliser. Grid: (B, parts)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    slot = row * tl.num_programs(1) + part
    scales = scales_of(terms, row)
    limit = ()
    if len(cut) > 0:
        limit = (tl.load(cut[0] + row), tl.load(cut[1] + row) + 1)
    lane = tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]
    top = tl.full((T,), NEVER, tl.float32)
    total = tl.zeros((T,), tl.float32)
    for tile in range(part * tiles, (part + 1) * tiles):
        token = tile * (T * W) + lane
        x, z = mixed(terms, scales, row, token, vocab, bound, ROWS, FAST)
        if len(cut) > 0:
            z = tl.where(above(x, token, limit[0], limit[1]), z, NEVER)
        if RAW:
            z = tl.where(z == float("inf"), float("nan"), z)
        else:
            top, total = add_online(z, top, total, LOG2E)
        tl.store(out + row * vocab + token, z, mask=token < vocab)
    if not RAW:
        highest = tl.max(top)
        tl.store(part_top + slot, highest)
        tl.store(part_sum + slot, tl.sum(total * tl.exp2((top - pivot_of(highest)) * LOG2E)))


@triton.jit(do_not_specialize=["vocab", "tiles", "parts"])
def normalise(
    out,
    vocab,
    tiles,
    part_top,
    part_sum,
    parts,
    PARTS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
):
    """Subtracts a row's normaliser from one part of it. Grid: (B, parts)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    top = tl.load(part_top + row * parts + part, mask=part < parts, other=NEVER)
    total = tl.load(part_sum + row * parts + part, mask=part < parts, other=0.0)
    highest = tl.max(top)
    lse = highest + tl.log2(tl.sum(total * tl.exp2((top - pivot_of(highest)) * LOG2E))) * LN2
    # A NaN, which stands as +inf, or no possible token leave a row without an answer.
    lse = tl.where(tl.abs(highest) == float("inf"), float("nan"), lse)
    lane = tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]
    for tile in range(tl.program_id(1) * tiles, (tl.program_id(1) + 1) * tiles):
        at = tile * (T * W) + lane
        z = tl.load(out + row * vocab + at, mask=at < vocab, other=0.0)
        tl.store(out + row * vocab + at, z - lse, mask=at < vocab)


def scores_triton(mixture: Mixture, before: Truncation) -> Tensor:
    """`plugalign.kernels.steer.scores` on checked arguments that can be fused."""
    out = torch.empty(mixture.base.shape, device=mixture.base.device)
    with torch.cuda.device_of(mixture.base):  # type: ignore[no-untyped-call]
        for launch in plan(mixture, before, out):
            launch.run()
    return out


def plan(
    mixture: Mixture,
    before: Truncation,
    out: Tensor,
    *,
    tile: int = TILE,
    parts: int | None = None,
    fast: bool | None = None,
    raw: bool = False,
) -> list[Launch]:
    """The launches that write ``out`` ``(B, V)`` in float32, contiguous.

    Args:
        tile, parts: entries of a tile, programs for a row; they change speed and rounding.
        fast: the GPU's own logarithm and fused operations, the default on NVIDIA's GPUs.
        raw: whether z stays as it is, not normalised; NaN also where it is +inf.
    """
    rows, vocab = mixture.base.shape
    device = mixture.base.device
    if fast is None:
        fast = device.type == "cuda" and torch.version.hip is None
    terms, inputs, launches = terms_of(mixture)
    cut: tuple[Tensor, ...] = ()
    if not before.keeps_all(vocab):
        cut, first = threshold_plan(mixture.base, before, tile=tile, parts=parts)
        launches += first
    parts, each = split("scores.write", triton.cdiv(vocab, tile), rows, device, parts)
    part_top, part_sum = torch.empty(2, aligned(rows * parts), device=device)
    shared = shape_of(terms, inputs, tile) | {
        "cut": cut,
        "tiles": each,
        "parts": parts,
        "out": out,
        "part_top": part_top,
        "part_sum": part_sum,
        "PARTS": MOST_PARTS,
        "RAW": raw,
        "FAST": fast,
    }
    launches.append(prepared(write, (rows, parts), shared, WARPS, fast))
    if not raw:
        # Its entries are float32 whatever the sources are, so it has tiles of its own shape.
        shape = {"T": shared["T"] * shared["W"] // 4, "W": 4}
        launches.append(prepared(normalise, (rows, parts), shared | shape, WARPS, fast))
    return launches
