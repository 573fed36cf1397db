"""Products of matrices: half precision kept in float32, and few rows on a CPU.

For few rows a product is bound by reading its weights. On a CPU torch asks oneDNN for bfloat16,
which rearranges the weights at every product for its instructions. For a single row torch's own
product is quicker (`one_row`); for several, weights that were rearranged once (`pack`). So they are
in float32, for which torch asks MKL: the weights of SmolLM2-135M take 50 ms of a core and not 84
for eight rows, 40 and not 73 for four.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

# Multiplies half precision matrices on CUDA devices into a float32 result (torch 2.8 and later).
MIXED = getattr(torch.ops.aten.mm, "dtype", None)
FEW = range(2, 65)  # rows of a product that reading its weights bounds, but one
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


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN has a layout of its own for such a weight, and fast instructions for it; in
    float32 on x86 alone, where it was measured."""
    onednn = torch.backends.mkldnn
    wanted = onednn.is_available() and onednn.enabled  # type: ignore[no-untyped-call]
    if weight.ndim != 2 or not weight.is_cpu or not wanted:
        return False
    if weight.dtype == torch.float32:
        return torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(weight: Tensor, rows: int) -> Tensor:
    """A copy of a weight ``(o, i)`` that `can_pack`, laid out for products of about so many rows.
    It is opaque: `packed_product` and `packed_float32_product` read it."""
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return found


def packed_product(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight^T + bias`` ``(..., o)`` for ``x`` ``(..., i)``, with what `pack` made of the
    weight: as `torch.nn.functional.linear` up to rounding. It can be traced."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return _scripted()(x, packed, bias)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return found


def packed_float32_product(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """`packed_product` of ``x`` ``(N, i)`` as float32 ``(N, o)``, to about 16 significant bits for
    bfloat16 weights. It is not traced.

    oneDNN sums in float32 and rounds to bfloat16 at the end. A second product is of what the first
    one rounded away, since it subtracts the first's result before it rounds; of what is infinite
    that is nothing.
    """
    if x.dtype == torch.float32:
        return packed_product(x, packed, bias)
    fused = torch.ops.mkldnn._linear_pointwise
    rounded: Tensor = fused(x, packed, bias, "none", [], "")
    rest: Tensor = fused.binary(x, rounded, packed, bias, "sub")
    return rounded.float().add_(rest.nan_to_num_(0.0, 0.0, 0.0))


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")  # type: ignore[no-any-return]


@cache
def _scripted() -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """`_product` as a function that the tracer takes whole: it knows no list of numbers that is
    empty."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", DeprecationWarning)
        found: Callable[[Tensor, Tensor, Tensor | None], Tensor] = torch.jit.script(_product)
    return found
