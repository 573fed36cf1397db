"""Products of half precision matrices: kept in float32, and of a single row on a CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import linear

# Multiplies half precision matrices on CUDA devices into a float32 result (torch 2.8 and later).
MIXED = getattr(torch.ops.aten.mm, "dtype", None)
CHUNK = 2**19  # weights that are converted at a time, few enough to stay in a core's cache


def float32_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight^T + bias`` ``(N, o)`` in float32, whatever the dtype of what is multiplied: the
    sums are not rounded to half precision. A float32 copy of all weights never exists.

    Args:
        x: ``(N, i)``. weight: ``(o, i)``. bias: ``(o,)``.
    """
    if x.dtype == torch.float32:
        return linear(x, weight, bias)
    if x.is_cuda and MIXED is not None:
        found: Tensor = MIXED(x, weight.T, torch.float32)
    else:
        found = torch.empty(len(x), len(weight), dtype=torch.float32, device=x.device)
        x, rows = x.float(), max(1, CHUNK // weight.shape[1])
        for start in range(0, len(weight), rows):
            here = slice(start, start + rows)
            found[:, here] = linear(x, weight[here].float())
    return found if bias is None else found.add_(bias)


class OneRow:
    """Products of a single bfloat16 row with weights on a CPU, at the speed of its memory.

    oneDNN, which torch asks for bfloat16, is made for many rows; for one it reads weights at half
    the speed of torch's own product. Both sum in float32 and round once, so their results differ
    where sums of another order round differently. Which one torch takes is a setting of the
    process: it is changed while any thread is in the block, and counted, so that it is afterwards
    what it was. A product of another thread meanwhile is right and may take longer.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, True

    @contextmanager
    def __call__(self, rows: int, weight: Tensor) -> Iterator[None]:
        """Inside, products of so many ``rows`` with weights like this one are fast."""
        if rows != 1 or weight.dtype != torch.bfloat16 or not weight.is_cpu:
            yield
            return
        with self._lock:
            if not self._inside:
                self._before = _use_onednn(False)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    _use_onednn(self._before)


def _use_onednn(wanted: bool) -> bool:
    """Whether torch asked oneDNN before; from now on as wanted."""
    before, *_ = torch.backends.mkldnn.set_flags(wanted)  # type: ignore[no-untyped-call]
    return bool(before)


one_row = OneRow()  # one, since the setting is one
