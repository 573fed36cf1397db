"""Products of half precision matrices, summed up and kept in float32."""

from __future__ import annotations

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
