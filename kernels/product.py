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


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight^T + bias`` ``(..., o)`` for ``x (..., i)`` and ``weight (o, i)``."""
    fits = x.is_cpu and x.dtype == weight.dtype == torch.float32 and not torch.is_grad_enabled()
    if ONEDNN is None or not fits:
        return linear(x, weight, bias)
    found: Tensor = ONEDNN(x, weight, bias, "none", [], "")
    return found
