"""A planned kernel launch: made on the host, then run on a device or compiled ahead of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST_PARTS = 128  # what one small program merges


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


def split(tiles: int, rows: int, device: torch.device, parts: int | None = None) -> tuple[int, int]:
    """Programs that share a row of ``tiles``, and the tiles of each.

    About four programs on each multiprocessor, all resident at once: many rows need little
    sharing, one row as much as there is. Where there is no GPU, an H200's 132 are assumed.
    """
    if parts is None:
        cuda = device.type == "cuda"
        have = torch.cuda.get_device_properties(device).multi_processor_count if cuda else 132
        parts = -(-4 * have // max(rows, 1))
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
