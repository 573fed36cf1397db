"""How tiles are loaded, by the alignment of rows."""

from __future__ import annotations

import pytest
import torch

from plugalign.kernels.launch import EVEN, ODD, PADDED, tiling


def rows_of(vocab, stride, first=0, dtype=torch.bfloat16):
    """Two rows that begin ``first`` entries behind those of their buffer."""
    return torch.empty(2, stride, dtype=dtype)[:, first : first + vocab]


@pytest.mark.parametrize(
    ("vocab", "stride", "first", "how"),
    [
        (64, 64, 0, (64, EVEN, 32, 8)),
        (60, 64, 0, (64, PADDED, 32, 8)),
        (60, 60, 0, (60, ODD, 64, 4)),
        (57, 61, 0, (57, ODD, 64, 4)),
        (50, 64, 8, (50, EVEN, 32, 8)),  # a surplus would reach beyond the last row
        (40, 64, 8, (48, PADDED, 32, 8)),
        (40, 64, 3, (40, ODD, 64, 4)),
    ],
)
def test_how_tiles_are_loaded(vocab, stride, first, how):
    found = tiling((rows_of(vocab, stride, first),), 256)
    assert tuple(found[name] for name in ("bound", "ROWS", "T", "W")) == how


def test_the_worst_of_several_tensors_decides():
    aligned, odd = rows_of(57, 64), rows_of(57, 57)
    assert tiling((aligned, odd), 256) == {"bound": 57, "ROWS": ODD, "T": 64, "W": 4}
    wide = rows_of(57, 64, dtype=torch.float32)
    assert tiling((aligned, wide), 256) == {"bound": 64, "ROWS": PADDED, "T": 32, "W": 8}
