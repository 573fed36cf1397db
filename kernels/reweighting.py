"""Formulas that make one source of a mixture: from hidden states, or from candidates' scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plugalign.kernels.truncation import Truncation, kept_mask


def top_k_mask(log_p: Tensor, k: int) -> Tensor:
    """The ``k`` best tokens of each row, ``(B, V)`` with exactly ``min(k, V)`` set."""
    k = min(k, log_p.shape[-1])
    values = log_p.topk(k, dim=-1).values
    return _best(log_p, values, torch.full_like(values[:, :1], k, dtype=torch.long))


def top_k_ids(log_p: Tensor, k: int) -> Tensor:
    """Ids ``(B, K)`` of the ``k`` best tokens, in ascending order of id."""
    mask = top_k_mask(log_p, k)
    return mask.nonzero()[:, 1].view(log_p.shape[0], -1)


def _best(log_p: Tensor, values: Tensor, count: Tensor) -> Tensor:
    """The ``count`` ``(B, 1)`` best tokens by (value, then smaller id); ``values`` descend."""
    threshold = values.gather(-1, count - 1)
    above, tied = log_p > threshold, log_p == threshold
    room = count - above.sum(-1, keepdim=True)
    return above | (tied & (tied.long().cumsum(-1) <= room))


def low_rank(hidden: Tensor, left: Tensor, right: Tensor, center: Tensor | None) -> Tensor:
    """``-left @ right^T (h - center)``: ``(B, V)`` from ``h`` ``(B, D)``, ``left`` ``(V, r)``,
    ``right`` ``(D, r)``. The change of the logits when the span of ``right`` leaves ``h``."""
    offset = hidden if center is None else hidden - center
    return -(offset @ right) @ left.T


def adaptive_alpha(
    base: Tensor, sensitivity: Tensor, *, top_p: float, low: float, high: float, floor: float
) -> Tensor:
    """A-INLP's share of the original hidden state ``(B, 1)`` (Liang et al. 2021, section 4.2).

    ``b`` is the expected sensitivity over the top-p set of the base's logits ``(B, V)``; the share
    is 1 where ``low <= b <= high``, else ``max(1 - |b|, floor)``.
    """
    p = base.float().softmax(-1) * kept_mask(base, Truncation(top_p))
    bias = (p * sensitivity).sum(-1, keepdim=True)
    kept = (1.0 - bias.abs()).clamp_min(floor)
    return torch.where((bias >= low) & (bias <= high), torch.ones_like(bias), kept)


def scatter_candidates(ids: Tensor, scores: Tensor, vocab: int) -> Tensor:
    """Candidates' logits of P(a | x, t) ``(B, K)`` at their ids, +inf elsewhere, as ``(B, V)``."""
    everywhere = torch.full((len(ids), vocab), math.inf, device=scores.device)
    return everywhere.scatter_(-1, ids, scores.float())


def head_attribute(
    hidden: Tensor, left: Tensor, right: Tensor, token_bias: Tensor, state: Tensor, offset: float
) -> Tensor:
    """``left (right^T h) + token_bias + state . h + offset``, ``(B, V)``: the logit of P(a | x, t)
    for every next token from the base's own hidden state ``h`` ``(B, D)``."""
    return (hidden @ right) @ left.T + token_bias + (hidden @ state)[:, None] + offset
