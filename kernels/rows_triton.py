# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""Loading a tile [T, W] of a row, so that the W entries of a line belong to one thread.

Where rows are aligned the compiler arranges that by itself: W entries are one load of 16 bytes.
Rows of odd stride can be loaded by single entries only, which it would deal out over the threads,
and every sum over a line, and all noise, would then pass through shared memory. So their tiles are
loaded in four tensors of every fourth entry, each a thread's own, and joined in its registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from plugalign.kernels import launch

PADDED = tl.constexpr(launch.PADDED)
ODD = tl.constexpr(launch.ODD)
NEVER = tl.constexpr(float("-inf"))


@triton.jit
def values_at(x, token, bound, other, ROWS: tl.constexpr):
    """Float32 of a row ``x`` at tokens [T, W] or [N], and ``other`` from ``bound`` on.

    Without ``bound`` all are loaded; without ``other`` what stands beyond is any value.
    """
    if ROWS == ODD and len(token.shape) == 2:
        a, b, c, d = quarters(token)
        left = tl.join(value_at(x, a, bound, other), value_at(x, c, bound, other))
        right = tl.join(value_at(x, b, bound, other), value_at(x, d, bound, other))
        return tl.reshape(tl.join(left, right), token.shape)
    else:
        return value_at(x, token, bound, other)


@triton.jit
def value_at(x, token, bound, other):
    mask = None if bound is None else token < bound
    return tl.load(x + token, mask=mask, other=other if bound is not None else None).to(tl.float32)


@triton.jit
def quarters(tile):
    """The entries 4 i, 4 i + 1, 4 i + 2 and 4 i + 3 of the lines of a tile: four of [T, W / 4]."""
    T: tl.constexpr = tile.shape[0]
    W: tl.constexpr = tile.shape[1]
    even, odd = tl.split(tl.reshape(tile, (T, W // 2, 2)))
    a, c = tl.split(tl.reshape(even, (T, W // 4, 2)))
    b, d = tl.split(tl.reshape(odd, (T, W // 4, 2)))
    return a, b, c, d


@triton.jit
def logits_at(x, token, vocab, bound, ROWS: tl.constexpr):
    """Float32 of a row ``x`` at tokens [T, W] or [N], -inf outside the vocabulary."""
    value = values_at(x, token, bound, NEVER, ROWS)
    if ROWS == PADDED and bound is not None:
        value = tl.where(token < vocab, value, NEVER)
    return value
