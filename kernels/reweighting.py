"""The formulas of token reweighting, on tensors alone: the specification of every shift.

Each function takes float32 scores ``(B, V)`` and follows one paper's equation; fused kernels must
equal them. Supports use one total order, (value, then smaller token id), so ties are decided the
same way everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

NEVER = float("-inf")


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
        A bool mask ``(B, V)`` with at least one token in each row.
    """
    mask = torch.ones_like(log_p, dtype=torch.bool)
    if min_p > 0:
        mask = log_p.exp() >= min_p * log_p.amax(-1, keepdim=True).exp()
    if top_p >= 1 and not 0 < top_k < log_p.shape[-1]:
        return mask & (log_p > NEVER)
    order = torch.sort(log_p, dim=-1, descending=True, stable=True)
    keep = torch.ones_like(mask)
    if top_p < 1:
        probabilities = order.values.exp()
        keep = probabilities.cumsum(-1) - probabilities < top_p
    if top_k > 0:
        keep[:, top_k:] = False
    keep[:, 0] = True
    return mask & torch.zeros_like(mask).scatter(-1, order.indices, keep) & (log_p > NEVER)


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
    return (-decay * excess).clamp_min(torch.tensor(floor).log().item())


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
