"""How much of a hidden state adaptive nullspace projection keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from plugalign.kernels import steer
from plugalign.kernels.truncation import Truncation


def adaptive_alpha(
    base: Tensor, sensitivity: Tensor, *, top_p: float, low: float, high: float, floor: float
) -> Tensor:
    """A-INLP's share of the original hidden state ``(B, 1)`` (Liang et al. 2021, section 4.2).

    ``b`` is the expected sensitivity over the top-p set of the base's logits ``(B, V)``; the share
    is 1 where ``low <= b <= high``, else ``max(1 - |b|, floor)``.
    """
    p = base.float().softmax(-1) * steer.kept(base, Truncation(top_p))
    bias = (p * sensitivity).sum(-1, keepdim=True)
    kept = (1.0 - bias.abs()).clamp_min(floor)
    return torch.where((bias >= low) & (bias <= high), torch.ones_like(bias), kept)
