"""The product of a linear layer, on a CPU with all of its vector units.

torch multiplies float32 matrices with MKL, which keeps to half of a vector's width on processors of
other makers than its own. oneDNN, which torch brings along for convolutions and compiled models,
asks the processor what it can do, and is as good as MKL elsewhere. Where products are small, a few
rows and some hundred columns, its calls cost more than they save.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

# How torch.compile multiplies by a layer's weights; not every build has it.
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
# Multiplies half precision matrices on CUDA devices into a float32 result (torch 2.8 and later).
MIXED = getattr(torch.ops.aten.mm, "dtype", None)
CHUNK = 2**19  # weights that are converted at a time, few enough to stay in a core's cache


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight^T + bias`` ``(..., o)`` for ``x (..., i)`` and ``weight (o, i)``."""
    fits = x.is_cpu and x.dtype == weight.dtype == torch.float32 and not torch.is_grad_enabled()
    if ONEDNN is None or not fits:
        return linear(x, weight, bias)
    found: Tensor = ONEDNN(x, weight, bias, "none", [], "")
    return found


def float32_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same in float32, whatever the dtype of what is multiplied: the sums are not rounded to
    half precision. A float32 copy of all weights never exists.

    Args:
        x: ``(N, i)``. weight: ``(o, i)``. bias: ``(o,)``.
    """
    if x.dtype == torch.float32:
        return product(x, weight, bias)
    if x.is_cuda and MIXED is not None:
        found: Tensor = MIXED(x, weight.T, torch.float32)
    else:
        found = torch.empty(len(x), len(weight), dtype=torch.float32, device=x.device)
        x, rows = x.float(), max(1, CHUNK // weight.shape[1])
        for start in range(0, len(weight), rows):
            here = slice(start, start + rows)
            found[:, here] = product(x, weight[here].float())
    return found if bias is None else found.add_(bias)
