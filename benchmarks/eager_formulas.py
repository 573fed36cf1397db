"""What the kernels replace: each formula in plain PyTorch, step by step as its paper's code has it.

Logits are cast to float32 first, as transformers does before its logits processors. Formulas that
draw use torch's global generator. Where a paper's code loops over the rows of a batch, these do
not, which is the faster and thus the harder comparison.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad


def draw(scores: Tensor) -> Tensor:
    """A token ``(B,)`` from softmax(scores ``(B, V)``)."""
    return torch.multinomial(scores.softmax(-1), 1)[:, 0]


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits ``(B, V)``, -inf outside the top-p set: a sort of the vocabulary, sums along it, and a
    scatter back (Holtzman et al. 2020, "The curious case of neural text degeneration", section 3.1;
    so in the code of DExperts and A-INLP).
    """
    ranked, token = logits.sort(dim=-1, descending=True)
    beyond = ranked.softmax(-1).cumsum(-1) > top_p
    beyond = pad(beyond[:, :-1], (1, 0))  # the token that reaches the mass stays
    removed = torch.empty_like(beyond).scatter_(1, token, beyond)
    return logits.masked_fill(removed, -math.inf)


def dexperts(
    base: Tensor, expert: Tensor, antiexpert: Tensor, *, alpha: float, top_p: float = 1.0
) -> Tensor:
    """Scores ``(B, V)``: the base's nucleus, then the experts' difference (Liu et al. 2021,
    equation 2 and section 3)."""
    base = base.float()
    if top_p < 1:
        base = nucleus(base, top_p)
    return base + alpha * (expert.float() - antiexpert.float())


def self_debiased(base: Tensor, *biased: Tensor, decay: float, floor: float) -> Tensor:
    """Scores ``(B, V)``: what a biased prompt makes more probable decays (Schick et al. 2021,
    equations 3 to 5)."""
    own = base.float().softmax(-1)
    worst = biased[0].float().softmax(-1)
    for logits in biased[1:]:
        worst = torch.maximum(worst, logits.float().softmax(-1))
    excess = (worst - own).clamp_min(0)
    left = own * (-decay * excess).exp().clamp_min(floor)
    return (left / left.sum(-1, keepdim=True)).log()


def reweighted(values: Tensor, ids: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """One of the candidates ``(B, K)`` with their attribute's log-probabilities added, and the
    log-probabilities of all (Yang and Klein 2021, equation 2)."""
    log_p = (values.float() + added.float()).log_softmax(-1)
    place = torch.multinomial(log_p.exp(), 1)
    return ids.gather(1, place)[:, 0], log_p


def fudge(logits: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """The same behind the base's top-k, k being the width of ``added`` ``(B, k)``."""
    values, ids = logits.float().topk(added.shape[1], dim=-1)
    return reweighted(values, ids, added)


def lora_by_index(y: Tensor, x: Tensor, a: Tensor, b: Tensor, *, scaling: float) -> Tensor:
    """LoRA for a batch of several adapters, each of its rows picked by a list of indices, and in
    place (the mixed batches of PEFT; Hu et al. 2021, equation 3)."""
    each = len(y) // (len(a) + 1)
    for group in range(len(a)):
        rows = list(range((group + 1) * each, (group + 2) * each))
        y[rows] += (x[rows] @ a[group] @ b[group]) * scaling
    return y


def verified(target: Tensor, draft: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """How many drafted tokens ``(B, G)`` stay, and the next one (Leviathan et al. 2023,
    algorithm 1), from target ``(B, G + 1, V)`` and draft ``(B, G, V)``."""
    p, q = target.float().softmax(-1), draft.float().softmax(-1)
    drafted = tokens[..., None]
    ratio = (p[:, :-1].gather(2, drafted) / q.gather(2, drafted))[..., 0]
    accepted = (torch.rand_like(ratio) < ratio).long().cumprod(1).sum(1)
    place = accepted[:, None, None].expand(-1, 1, p.shape[2])
    # Behind a draft that stays whole nothing was drafted, and the next token comes from p alone.
    left = (p.gather(1, place) - pad(q, (0, 0, 0, 1)).gather(1, place))[:, 0].clamp_min(0)
    return accepted, torch.multinomial(left / left.sum(-1, keepdim=True), 1)[:, 0]
