# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""`plugalign.kernels.group_lora` in Triton, one launch: for decoding, where launches are the cost.

A program multiplies a group's rows by all of ``a``, keeps the result, and adds its product with
some columns of ``b``. Every tile of columns reads ``a`` anew, from the cache: cheap as long as the
rank is small. Like the torch reference it rounds the first product to the tensors' own type.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugalign.kernels.launch import Launch, load_bound

ROWS = 16  # the fewest that a matrix product takes
COLUMNS = 64
HIGH_RANK = 128  # above, fewer columns: ``b`` is held whole
DEPTH = 256  # bytes of a row of ``x`` that one step reads
TILE = 8192  # bytes of ``a`` that it reads at most


@triton.jit(do_not_specialize=["rows"])
def add_adapters(
    y,
    y_group,
    y_row,
    x,
    x_group,
    x_row,
    a,
    a_group,
    a_i,
    a_r,
    b,
    b_group,
    b_r,
    b_o,
    scaling,
    number,
    rows,
    depth,
    width,
    bound,
    rank,
    PADDED: tl.constexpr,
    M: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    UPCAST: tl.constexpr,
    DOT: tl.constexpr,
):
    """Adds to some columns of a group. Grid: (tiles of columns, G, tiles of rows)."""
    group = tl.program_id(1).to(tl.int64)
    row = (tl.program_id(2) * M + tl.arange(0, M))[:, None]
    column = tl.program_id(0) * C + tl.arange(0, C)[None, :]
    direction = tl.arange(0, R)
    low = tl.zeros((M, R), tl.float32)
    for first in range(0, depth, K):
        k = first + tl.arange(0, K)
        u = tl.load(
            x + group * x_group + row.to(tl.int64) * x_row + k[None, :],
            mask=(row < rows) & (k < depth)[None, :],
            other=0.0,
        )
        v = tl.load(
            a + group * a_group + k.to(tl.int64)[:, None] * a_i + direction[None, :] * a_r,
            mask=(k < depth)[:, None] & (direction < rank)[None, :],
            other=0.0,
        )
        if UPCAST:
            u = u.to(tl.float32)
            v = v.to(tl.float32)
        low = tl.dot(u, v, low, input_precision=DOT)
    # Infinity times a direction that is not there would be a NaN.
    low = tl.where((direction < rank)[None, :], low, 0.0).to(y.dtype.element_ty)
    w = tl.load(
        b + group * b_group + direction[:, None] * b_r + column.to(tl.int64) * b_o,
        mask=(direction < rank)[:, None] & (column < width),
        other=0.0,
    )
    if UPCAST:
        low = low.to(tl.float32)
        w = w.to(tl.float32)
    if scaling is not None:
        number *= tl.load(scaling + group)
    at = y + group * y_group + row.to(tl.int64) * y_row + column
    mask = (row < rows) & (column < bound)
    old = tl.load(at, mask=mask, other=0.0)
    new = old.to(tl.float32) + tl.dot(low, w, input_precision=DOT) * number
    new = new.to(old.dtype)
    if PADDED:  # padding is written as it was read
        new = tl.where(column < width, new, old)
    tl.store(at, new, mask=mask)


def group_lora_triton(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, number: float, scaling: Tensor | None
) -> None:
    """`plugalign.kernels.group_lora.group_lora` on checked arguments, without the base's rows."""
    with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
        for launch in plan(y, x, a, b, number, scaling):
            launch.run()


def plan(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    number: float,
    scaling: Tensor | None,
    *,
    columns: int | None = None,
    fast: bool | None = None,
    upcast: bool | None = None,
) -> list[Launch]:
    """The launch that adds to ``y`` ``(G, n, o)`` the adapters' output of ``x`` ``(G, n, i)``.

    Args:
        columns: of a tile; it changes the speed alone.
        fast: tensor cores for float32. The default on NVIDIA's GPUs.
        upcast: products of float32 whatever the type. The default off the GPU: Triton's
            interpreter computes wrong products of bfloat16.
    """
    groups, rows, width = y.shape
    depth, rank = a.shape[1:]
    if fast is None:
        fast = y.device.type == "cuda" and torch.version.hip is None
    padded = max(16, triton.next_power_of_2(rank))
    columns = columns or (COLUMNS // 2 if padded > HIGH_RANK else COLUMNS)
    if rows == 0:
        return []
    # Padding must be nobody's row, neither within a group nor from one to the next.
    bound = min(load_bound(y[-1]), load_bound(y[:, 0]))
    arguments = {
        **_with_strides("y", y, "group", "row"),
        **_with_strides("x", x, "group", "row"),
        **_with_strides("a", a, "group", "i", "r"),
        **_with_strides("b", b, "group", "r", "o"),
        "scaling": scaling,
        "number": number,
        "rows": rows,
        "depth": depth,
        "width": width,
        "bound": bound,
        "rank": rank,
        "PADDED": bound > width,
        "M": ROWS,
        "C": columns,
        "K": max(16, min(DEPTH, TILE // padded) // y.element_size()),
        "R": padded,
        "UPCAST": y.device.type == "cpu" if upcast is None else upcast,
        "DOT": "tf32x3" if fast else "ieee",
    }
    grid = (triton.cdiv(width, columns), groups, triton.cdiv(rows, ROWS))
    return [Launch(add_adapters, grid, arguments, 8 if padded >= HIGH_RANK else 4)]


def _with_strides(name: str, x: Tensor, *axes: str) -> dict[str, Tensor | int]:
    """A tensor and the strides of its first axes, as arguments of the kernel."""
    return {name: x} | {f"{name}_{axis}": x.stride(i) for i, axis in enumerate(axes)}
