"""A planned kernel launch: made on the host, then run on a device or compiled ahead of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plugalign.kernels.occupancy import programs_on

MOST_PARTS = 128  # what one small program merges
EVEN, PADDED, ODD = 0, 1, 2  # rows: loaded 16 bytes at once, so with a surplus, by single entries


@dataclass(frozen=True)
class Launch:
    """One Triton kernel with its grid and arguments.

    A plan is a value, so the compile gate compiles exactly what an operation would launch.

    Args:
        warps: of each program.
        fuse: products and sums may become one operation, faster and differently rounded.
        registers: a thread may take so many, on NVIDIA's GPUs alone; where given, the assembler
            does not spill some of them for the sake of more resident programs.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    fuse: bool = True
    registers: int | None = None

    def run(self) -> None:
        self.kernel[self.grid](**self.arguments, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        most = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "enable_fp_fusion": self.fuse, **most}


def prepared(
    kernel: Any,
    grid: tuple[int, ...],
    shared: dict[str, Any],
    warps: int,
    fuse: bool = True,
    registers: int | None = None,
) -> Launch:
    """A launch with those of the ``shared`` arguments that the kernel takes."""
    arguments = {name: shared[name] for name in kernel.arg_names}
    return Launch(kernel, grid, arguments, warps, fuse, registers)


def split(
    kernel: str, tiles: int, rows: int, device: torch.device, parts: int | None = None
) -> tuple[int, int]:
    """Programs of ``kernel`` that share a row of ``tiles``, and the tiles of each.

    As many as the device holds at once: many rows need little sharing, one row as much as there is.
    """
    if parts is None:
        parts = -(-programs_on(device, kernel) // max(rows, 1))
    each = -(-tiles // min(parts, MOST_PARTS, tiles))
    return -(-tiles // each), each


def aligned(count: int) -> int:
    """``count`` float32 numbers, rounded up so that the next array starts at 16 bytes again: Triton
    compiles another kernel for pointers that do not."""
    return -(-count // 4) * 4


def load_bound(x: Tensor) -> int:
    """How many entries of a row of ``x`` ``(R, V)`` may be loaded, at least V.

    A bound that is a multiple of 16 lets a kernel load 16 bytes at once though V is odd. Rows that
    are padded to a multiple of 16 allow it: the surplus is padding, and the kernel masks it out.
    """
    rows, vocab = x.shape
    bound, stride = -(-vocab // 16) * 16, x.stride(0)
    end = x.storage_offset() + (rows - 1) * stride + bound
    inside = end * x.element_size() <= x.untyped_storage().nbytes()
    return bound if stride % 16 == 0 and stride >= bound and inside else vocab


def tiling(tensors: Sequence[Tensor], tile: int) -> dict[str, int]:
    """How a kernel loads tiles [T, W] of rows of ``tensors`` ``(R, V)``: what it takes as ``bound``
    and ``ROWS``, ``T`` and ``W``."""
    bound, vocab = min(load_bound(x) for x in tensors), tensors[0].shape[1]
    rows = PADDED if bound > vocab else EVEN
    width = 16 // min(x.element_size() for x in tensors)
    if any(x.stride(0) % 16 or x.storage_offset() * x.element_size() % 16 for x in tensors):
        bound, rows, width = vocab, ODD, 4  # the four words of a counter of the noise
    return {"bound": bound, "ROWS": rows, "T": tile // width, "W": width}
