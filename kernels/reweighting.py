"""The formulas of token reweighting, on tensors alone: the specification of every shift.

Each function takes float32 scores ``(B, V)`` and follows one paper's equation; fused kernels must
equal them. Supports use one total order, (value, then smaller token id), so ties are decided the
same way everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

NEVER = float("-inf")
HEAD = 256  # how many of the best tokens a nucleus is looked for in, before a full sort


def log_probs(scores: Tensor) -> Tensor:
    """Normalises ``(B, V)`` scores in float32; entries of -inf stay -inf."""
    return torch.log_softmax(scores.float(), dim=-1)


def support_mask(
    log_p: Tensor, *, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> Tensor:
    """Which tokens the base keeps: the intersection of top-p, top-k and min-p.

    Args:
        log_p: normalised log-probabilities ``(B, V)``.
        top_p: smallest set of most probable tokens whose mass reaches it; 0 keeps one token.
        top_k: number of most probable tokens; 0 keeps all.
        min_p: probability relative to the best token; 0 keeps all.

    Returns:
        A bool mask ``(B, V)``; never a token of probability zero.
    """
    mask = log_p > NEVER
    if min_p > 0:
        mask &= log_p >= log_p.amax(-1, keepdim=True) + math.log(min_p)
    if 0 < top_k < log_p.shape[-1]:
        mask &= top_k_mask(log_p, top_k)
    if top_p < 1:
        mask &= top_p_mask(log_p, top_p)
    return mask


def top_k_mask(log_p: Tensor, k: int) -> Tensor:
    """The ``k`` best tokens of each row, ``(B, V)`` with exactly ``min(k, V)`` set."""
    k = min(k, log_p.shape[-1])
    values = log_p.topk(k, dim=-1).values
    return _best(log_p, values, torch.full_like(values[:, :1], k, dtype=torch.long))


def top_k_ids(log_p: Tensor, k: int) -> Tensor:
    """Ids ``(B, K)`` of the ``k`` best tokens, in ascending order of id."""
    mask = top_k_mask(log_p, k)
    return mask.nonzero()[:, 1].view(log_p.shape[0], -1)


def top_p_mask(log_p: Tensor, p: float) -> Tensor:
    """The smallest set of best tokens whose mass reaches ``p``, ``(B, V)``, at least one token.

    A nucleus is small, so the best `HEAD` values are tried first and the row is sorted only
    where they do not reach.
    """
    values = log_p.topk(min(HEAD, log_p.shape[-1]), dim=-1).values
    if bool((values.exp().sum(-1) < p).any()):
        values = log_p.sort(dim=-1, descending=True).values
    mass = values.exp()
    count = (mass.cumsum(-1) - mass < p).sum(-1, keepdim=True).clamp_min(1)
    return _best(log_p, values, count)


def _best(log_p: Tensor, values: Tensor, count: Tensor) -> Tensor:
    """The ``count`` ``(B, 1)`` best tokens by (value, then smaller id); ``values`` descend."""
    threshold = values.gather(-1, count - 1)
    above, tied = log_p > threshold, log_p == threshold
    room = count - above.sum(-1, keepdim=True)
    return above | (tied & (tied.long().cumsum(-1) <= room))


def log_linear(sources: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """``sum_k c_k z_k`` over sources ``(B, V)`` (DExperts, Liu et al. 2021, equation 2)."""
    total = coefficients[0] * sources[0]
    for coefficient, scores in zip(coefficients[1:], sources[1:], strict=True):
        total = total.add(scores, alpha=coefficient)
    return total


def bias_decay(log_p: Tensor, biased: Sequence[Tensor], decay: float, floor: float) -> Tensor:
    """``log max(exp(-decay * d), floor)`` with ``d = max(0, max_k p_k - p)`` (Schick et al. 2021,
    equations 3 to 5, over several attributes at once).

    Args:
        log_p: the base's log-probabilities ``(B, V)``.
        biased: logits ``(B, V)`` of the base behind each self-diagnosis prefix.
    """
    worst = torch.stack([log_probs(scores).exp() for scores in biased]).amax(0)
    excess = (worst - log_p.exp()).clamp_min(0.0)
    return (-decay * excess).clamp_min(math.log(floor))


def low_rank(hidden: Tensor, left: Tensor, right: Tensor, center: Tensor | None) -> Tensor:
    """``-left @ right^T (h - center)``: ``(B, V)`` from ``h`` ``(B, D)``, ``left`` ``(V, r)``,
    ``right`` ``(D, r)``. The change of the logits when the span of ``right`` leaves ``h``."""
    offset = hidden if center is None else hidden - center
    return -(offset @ right) @ left.T


def adaptive_alpha(
    log_p: Tensor, sensitivity: Tensor, *, top_p: float, low: float, high: float, floor: float
) -> Tensor:
    """A-INLP's share of the original hidden state ``(B, 1)`` (Liang et al. 2021, section 4.2).

    ``b`` is the base's expected sensitivity over its top-p set; 1 where ``low <= b <= high``,
    else ``max(1 - |b|, floor)``.
    """
    p = log_p.exp() * support_mask(log_p, top_p=top_p)
    bias = (p * sensitivity).sum(-1, keepdim=True)
    kept = (1.0 - bias.abs()).clamp_min(floor)
    return torch.where((bias >= low) & (bias <= high), torch.ones_like(bias), kept)


def scatter_candidates(ids: Tensor, scores: Tensor, vocab: int) -> Tensor:
    """``logsigmoid`` of candidate scores ``(B, K)`` at their ids, 0 elsewhere, as ``(B, V)``
    (FUDGE, Yang and Klein 2021, equation 2)."""
    values = logsigmoid(scores.float())
    return values.new_zeros(ids.shape[0], vocab).scatter(-1, ids, values)


def combine(log_p: Tensor, shifts: Sequence[Tensor], mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Adds weighted shifts to the base and renormalises on the support.

    Args:
        log_p: the base ``(B, V)``. shifts: weighted ``delta`` ``(B, V)``. mask: support or None.

    Returns:
        Log-probabilities ``(B, V)``, and ``(B,)`` bool: rows whose support was empty, where the
        base's best token stays.
    """
    total = log_p
    for shift in shifts:
        total = total + shift
    empty = torch.zeros(log_p.shape[0], dtype=torch.bool, device=log_p.device)
    if mask is not None:
        empty = ~mask.any(-1)
        best = torch.zeros_like(mask).scatter(-1, log_p.argmax(-1, keepdim=True), True)
        mask = torch.where(empty[:, None], best, mask)
        total = total.masked_fill(~mask, NEVER)
    return torch.log_softmax(total, dim=-1), empty


def head_attribute(
    hidden: Tensor, left: Tensor, right: Tensor, token_bias: Tensor, state: Tensor, offset: float
) -> Tensor:
    """``logsigmoid(left (right^T h) + token_bias + state . h + offset)``, ``(B, V)``: FUDGE's
    attribute of every next token from the base's own hidden state ``h`` ``(B, D)``."""
    scores = (hidden @ right) @ left.T + token_bias + (hidden @ state)[:, None] + offset
    return logsigmoid(scores)
