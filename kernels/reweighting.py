"""How much of a hidden state adaptive nullspace projection keeps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plugalign.kernels import steer
from plugalign.kernels.truncation import Truncation


def adaptive_alpha(
    base: Tensor, sensitivity: Tensor, *, top_p: float, low: float, high: float, floor: float
) -> Tensor:
    """A-INLP's share of the original hidden state ``(B, 1)`` (Liang et al. 2021, section 4.2).

    ``b`` is the expected sensitivity under the softmax of the logits ``(B, V)`` that top-p leaves,
    as in the authors' released code: the nucleus' probabilities sum to 1, and the thresholds are
    calibrated for that. The share is 1 where ``low <= b <= high``, else ``max(1 - |b|, floor)``.

    Args:
        sensitivity: ``(V,)``.
    """
    nucleus = steer.kept(base, Truncation(top_p))
    p = base.float().masked_fill(~nucleus, -math.inf).softmax(-1)
    bias = (p * sensitivity).sum(-1, keepdim=True)
    kept = (1.0 - bias.abs()).clamp_min(floor)
    return torch.where((bias >= low) & (bias <= high), torch.ones_like(bias), kept)
