# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""`plugalign.kernels.low_rank` in Triton: the rows' coefficients, then a sweep that subtracts.

A tile of rows shares what is read of ``left`` and ``right``. The sweep is a matrix product with a
short inner side: tensor cores take float32 as three products of TF32, which keeps its digits
("tf32x3"); elsewhere the product is float32's own ("ieee"). A hidden state that fits one program
is projected in one launch when the rank is small.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.launch import Launch, load_bound

ROWS, TALL = 16, 32  # rows of a tile of the sweep: the fewest a matrix product takes, and for more
COLUMNS = 64
RANKS = 16  # directions that one step of the sweep adds
READ_ROWS, READ_RANKS, READ_DEPTH = 4, 8, 256
READ_PARTS = 4  # programs that share one sum over the hidden state
HELD, HELD_RANK = 4096, 4  # the widest hidden state and highest rank of a projection in one launch


@triton.jit
def subtract(old, delta, inside, PADDED: tl.constexpr):
    """``old - delta`` in the type of ``old``; padding stays as it was read."""
    new = (old.to(tl.float32) - delta).to(old.dtype)
    if PADDED:
        new = tl.where(inside, new, old)
    return new


@triton.jit(do_not_specialize=["rows"])
def read(
    hidden,
    stride,
    right,
    right_d,
    right_r,
    center,
    share,
    number,
    coefficients,
    rows,
    width,
    rank,
    B: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    STEPS: tl.constexpr,
    RANK: tl.constexpr,
):
    """One part of some rows' ``share * right^T (h - center)``.

    Grid: (tiles of rows, tiles of directions, parts of the hidden state).
    """
    row = tl.program_id(0) * B + tl.arange(0, B)
    direction = tl.program_id(1) * R + tl.arange(0, R)
    total = tl.zeros((B, K, R), tl.float32)
    for step in tl.range(0, STEPS, num_stages=3):
        d = (tl.program_id(2) * STEPS + step) * K + tl.arange(0, K)
        h = tl.load(
            hidden + row.to(tl.int64)[:, None] * stride + d[None, :],
            mask=(row < rows)[:, None] & (d < width)[None, :],
            other=0.0,
        ).to(tl.float32)
        if center is not None:
            # What is left in rows and places outside counts nothing: `u` is zero there.
            h -= tl.load(center + d, mask=d < width, other=0.0).to(tl.float32)[None, :]
        u = tl.load(
            right + d.to(tl.int64)[:, None] * right_d + direction[None, :] * right_r,
            mask=(d < width)[:, None] & (direction < rank)[None, :],
            other=0.0,
        ).to(tl.float32)
        total += h[:, :, None] * u[None, :, :]
    found = tl.sum(total, 1) * number
    if share is not None:
        found *= tl.load(share + row, mask=row < rows, other=0.0)[:, None]
    # Infinity times a direction that is not there would be a NaN.
    found = tl.where((direction < rank)[None, :], found, 0.0)
    slot = (tl.program_id(2) * rows + row)[:, None] * RANK + direction[None, :]
    tl.store(coefficients + slot, found, mask=(row < rows)[:, None])


@triton.jit(do_not_specialize=["rows"])
def sweep(
    x,
    stride,
    left,
    left_v,
    left_r,
    coefficients,
    rows,
    width,
    bound,
    rank,
    PADDED: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    DOT: tl.constexpr,
):
    """Subtracts from one tile. Grid: (tiles of rows, tiles of columns)."""
    row = tl.program_id(0) * B + tl.arange(0, B)[:, None]
    column = tl.program_id(1) * C + tl.arange(0, C)[None, :]
    at = x + row.to(tl.int64) * stride + column
    mask = (row < rows) & (column < bound)
    origin = left + column.to(tl.int64) * left_v
    old = tl.load(at, mask=mask, other=0.0)
    delta = tl.zeros((B, C), tl.float32)
    for first in tl.range(0, RANK, K, num_stages=2):
        slot = coefficients + row * RANK + first + tl.arange(0, K)[None, :]
        found = tl.zeros((B, K), tl.float32)
        for part in tl.static_range(PARTS):
            found += tl.load(slot + part * rows * RANK, mask=row < rows, other=0.0)
        direction = first + tl.arange(0, K)[:, None]
        u = tl.load(
            origin + direction * left_r, mask=(column < width) & (direction < rank), other=0.0
        ).to(tl.float32)
        delta = tl.dot(found, u, delta, input_precision=DOT)
    tl.store(at, subtract(old, delta, column < width, PADDED), mask=mask)


@triton.jit
def project(
    hidden,
    stride,
    left,
    left_d,
    left_r,
    right,
    right_d,
    right_r,
    center,
    share,
    number,
    width,
    bound,
    rank,
    PADDED: tl.constexpr,
    D: tl.constexpr,
):
    """Projects one row, all of which one program holds. Grid: (N,)."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D)
    at = hidden + row * stride + d
    old = tl.load(at, mask=d < bound, other=0.0)
    offset = old.to(tl.float32)
    if PADDED:
        offset = tl.where(d < width, offset, 0.0)
    if center is not None:
        offset -= tl.load(center + d, mask=d < width, other=0.0).to(tl.float32)
    if share is not None:
        number *= tl.load(share + row)
    delta = tl.zeros((D,), tl.float32)
    for j in range(rank):
        u = tl.load(right + d * right_d + j * right_r, mask=d < width, other=0.0).to(tl.float32)
        v = tl.load(left + d * left_d + j * left_r, mask=d < width, other=0.0).to(tl.float32)
        delta += v * (tl.sum(offset * u) * number)
    tl.store(at, subtract(old, delta, d < width, PADDED), mask=d < bound)


def low_rank_logits_triton(
    logits: Tensor,
    hidden: Tensor,
    left: Tensor,
    right: Tensor,
    center: Tensor | None,
    number: float,
    share: Tensor | None,
) -> Tensor:
    """`plugalign.kernels.low_rank.low_rank_logits` on checked arguments."""
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        for launch in plan(logits, hidden, left, right, center, number, share):
            launch.run()
    return logits


def low_rank_hidden_triton(
    hidden: Tensor,
    left: Tensor,
    right: Tensor,
    center: Tensor | None,
    number: float,
    share: Tensor | None,
) -> Tensor:
    """`plugalign.kernels.low_rank.low_rank_hidden` on checked arguments."""
    with torch.cuda.device_of(hidden):  # type: ignore[no-untyped-call]
        for launch in plan_hidden(hidden, left, right, center, number, share):
            launch.run()
    return hidden


def plan(
    x: Tensor,
    hidden: Tensor,
    left: Tensor,
    right: Tensor,
    center: Tensor | None,
    number: float,
    share: Tensor | None,
    *,
    columns: int = COLUMNS,
    parts: int = READ_PARTS,
    fast: bool | None = None,
) -> list[Launch]:
    """The launches that shift ``x`` ``(B, W)``, which may be ``hidden`` itself.

    Args:
        columns, parts: of a tile, and programs that share a sum over the hidden state; they change
            the speed and the rounding.
        fast: tensor cores for float32. The default on NVIDIA's GPUs.
    """
    (rows, width), (depth, rank) = x.shape, right.shape
    if fast is None:
        fast = x.device.type == "cuda" and torch.version.hip is None
    tall = rows > ROWS
    # Many rows keep the device busy without parts, and their coefficients are read often.
    steps = triton.cdiv(depth, READ_DEPTH * (1 if tall else parts))
    parts = triton.cdiv(depth, READ_DEPTH * steps)
    padded = triton.cdiv(rank, RANKS) * RANKS
    tile, bound = TALL if tall else ROWS, load_bound(x)
    found = torch.empty(parts, rows, padded, dtype=torch.float32, device=x.device)
    reading = {
        "hidden": hidden,
        "stride": hidden.stride(0),
        **_factor("right", "d", right),
        "center": center,
        "share": share,
        "number": number,
        "coefficients": found,
        "rows": rows,
        "width": depth,
        "rank": rank,
        "B": READ_ROWS,
        "R": READ_RANKS,
        "K": READ_DEPTH,
        "STEPS": steps,
        "RANK": padded,
    }
    swept = {
        "x": x,
        "stride": x.stride(0),
        **_factor("left", "v", left),
        "coefficients": found,
        "rows": rows,
        "width": width,
        "bound": bound,
        "rank": rank,
        "PADDED": bound > width,
        "B": tile,
        "C": columns,
        "K": RANKS,
        "PARTS": parts,
        "RANK": padded,
        "DOT": "tf32x3" if fast else "ieee",
    }
    read_grid = (triton.cdiv(rows, READ_ROWS), padded // READ_RANKS, parts)
    sweep_grid = (triton.cdiv(rows, tile), triton.cdiv(width, columns))
    return [Launch(read, read_grid, reading, 8), Launch(sweep, sweep_grid, swept, 4)]


def plan_hidden(
    hidden: Tensor,
    left: Tensor,
    right: Tensor,
    center: Tensor | None,
    number: float,
    share: Tensor | None,
    fast: bool | None = None,
) -> list[Launch]:
    """The launches that project ``hidden`` ``(N, D)``: one, or with a high rank those of `plan`."""
    (rows, width), rank, bound = hidden.shape, right.shape[1], load_bound(hidden)
    held = triton.next_power_of_2(bound)
    if held > HELD or rank > HELD_RANK:
        return plan(hidden, hidden, left, right, center, number, share, fast=fast)
    arguments = {
        "hidden": hidden,
        "stride": hidden.stride(0),
        **_factor("left", "d", left),
        **_factor("right", "d", right),
        "center": center,
        "share": share,
        "number": number,
        "width": width,
        "bound": bound,
        "rank": rank,
        "PADDED": bound > width,
        "D": held,
    }
    return [Launch(project, (rows,), arguments, max(4, held // 512))]


def _factor(name: str, axis: str, factor: Tensor) -> dict[str, Tensor | int]:
    return {name: factor, f"{name}_{axis}": factor.stride(0), f"{name}_r": factor.stride(1)}
