"""A model in training as an expert of DExperts: its loss, and its likelihood of texts.

Where to stop an expert does not learn from the texts, whose lengths are no part of the attribute:
at every position it keeps the base's own log-probability of an end token, and learns what comes
next if the text goes on. So the difference of any two of expert, anti-expert and base neither
promotes nor forbids stopping.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from plugalign.adapters.layers import shared_copy
from plugalign.adapters.peft_models import transformers_model
from plugalign.fitting.answers import PLAIN, Frame, followed
from plugalign.fitting.data import pad
from plugalign.fitting.labelled import end_tokens
from plugalign.fitting.low_rank import with_adapters
from plugalign.fitting.shared_context import read_behind
from plugalign.fitting.training import batches, recompute_activations

Rows = Sequence[Sequence[int]]
"""Texts as token ids."""


class Student:
    """A copy of the base that is being tuned.

    A full model learns in float32. Where its base is bfloat16, its products are too (Micikevicius
    et al. 2018, "Mixed precision training"), as those of an adapted base are by themselves.

    Args:
        rank: of its adapters; None tunes the full model.
        frame: what stands around each text.

    Attributes:
        model: the copy. learned: its parameters in training, by name.
    """

    def __init__(
        self, base: Any, tokenizer: Any, rank: int | None, seed: int, frame: Frame = PLAIN
    ):
        self._base, self.model = base, _adapted(base, rank, seed) if rank else _full_copy(base)
        self._frame, self._ends = frame, end_tokens(base, tokenizer, frame)
        self._mixed = rank is None and base.dtype == torch.bfloat16
        self.model.train()
        named = self.model.named_parameters()
        self.learned = {name: p for name, p in named if p.requires_grad}

    def loss_of(self, rows: Rows, batch_size: int, seed: int) -> Callable[[int], Tensor]:
        """The loss of each step's texts."""
        pick = batches(len(rows), batch_size, seed, [len(row) for row in rows])

        def loss(step: int) -> Tensor:
            ids, mask = self._padded([rows[i] for i in pick(step)])
            return self._loss(ids, mask, self._stop(ids, mask))[0]

        return loss

    def held_loss(self, rows: Rows, batch_size: int) -> Callable[[], float]:
        """Measures the mean loss of a token of given texts, without dropout. What the base says of
        them is kept."""
        every, stops = _in_order(rows, batch_size), list[Tensor | None]()

        @torch.no_grad()
        def measure() -> float:
            if not stops:
                stops.extend(self._stop(*self._padded(some)) for some in every)
            self.model.eval()
            parts = [
                self._loss(*self._padded(some), stop)
                for some, stop in zip(every, stops, strict=True)
            ]
            self.model.train()
            total = sum(float(loss) * float(count) for loss, count in parts)
            return total / sum(float(count) for _, count in parts)

        return measure

    @torch.no_grad()
    def log_likelihoods(self, rows: Rows, batch_size: int, *, of_base: bool = False) -> Tensor:
        """The log-likelihood of each text ``(N,)``, in nats, behind its first token and given where
        it ends, by the student or by its base."""
        found = torch.zeros(len(rows))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            ids, mask = self._padded([rows[i] for i in some])
            logits = self._logits(self._base, ids, mask) if of_base else self._own_logits(ids, mask)
            log_p, _ = following(logits, self._learnt(ids), self._ends)
            found[some] = (log_p * followed(self._learnt(mask))).sum(1).cpu()
        return found

    def spare(self) -> None:
        """Computes the activations of a forward again for its gradient, instead of keeping them."""
        recompute_activations(self.model)

    def _padded(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Texts and their mask ``(B, T)``."""
        ids, mask = (x.to(self._base.device) for x in pad(rows))
        return ids, mask

    def _learnt(self, columns: Tensor) -> Tensor:
        """Of columns ``(B, T)``, those behind which something is learnt."""
        return columns[:, self._frame.first :]

    @torch.no_grad()
    def _stop(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        """The log-probability with which the base ends behind each learnt column."""
        if not self._ends:
            return None
        logits = self._logits(self._base, ids, mask)
        return following(logits, self._learnt(ids), self._ends)[1]

    def _loss(self, ids: Tensor, mask: Tensor, stop: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss of some texts, and how many tokens it is the mean of."""
        logits = self._own_logits(ids, mask)
        return guide_loss(logits, stop, self._learnt(ids), self._learnt(mask), self._ends)

    def _own_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(self._base.device.type, torch.bfloat16, enabled=self._mixed):
            return self._logits(self.model, ids, mask)

    def _logits(self, model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        """The logits at the learnt columns."""
        model = transformers_model(model)
        return read_behind(model, ids, mask, self._frame.first, lambda output: output.logits)


def following(logits: Tensor, ids: Tensor, ends: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The log-probability of each next token if the text goes on ``(B, T - 1)``, and that with
    which it ends behind each token ``(B, T)``.

    Args:
        logits: ``(B, T, V)``. ids: ``(B, T)``. ends: the end tokens.
    """
    log_p = logits.float().log_softmax(-1)
    chosen = log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    if not ends:
        return chosen, torch.full_like(log_p[..., 0], -torch.inf)
    end = log_p[..., list(ends)].logsumexp(-1)
    return chosen - _complement(end[:, :-1]), end


def guide_loss(
    logits: Tensor, stop: Tensor | None, ids: Tensor, learnt: Tensor, ends: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The mean negative log-likelihood of next tokens given that the text goes on, plus what the
    log-probability of ending differs by from the base's, which is the shift that an end token would
    get: the mean square of it up to a nat, and beyond, where it would outweigh the texts, linear
    (Huber 1964).

    Args:
        logits: ``(B, T, V)``. ids: ``(B, T)``. ends: the end tokens.
        learnt: the columns behind which something is learnt, ``(B, T)``.
        stop: the log-probability with which the base ends behind each token ``(B, T)``.

    Returns:
        The loss, and the number of tokens.
    """
    log_p, end = following(logits, ids, ends)
    shown = followed(learnt) * ~torch.isin(ids[:, 1:], torch.tensor(list(ends), device=ids.device))
    count = shown.sum()
    loss = -(log_p * shown).sum() / count
    if stop is not None:
        shift = 2 * huber_loss(end, stop, reduction="none")
        loss = loss + (shift * learnt).sum() / learnt.sum()
    return loss, count


def _complement(log_p: Tensor) -> Tensor:
    """``log(1 - p)``."""
    return torch.log(-torch.expm1(log_p.clamp_max(-1e-6)))


def _in_order(rows: Rows, batch_size: int) -> list[Rows]:
    """Texts of like length together, so many at a time."""
    ordered = sorted(rows, key=len)
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


def _full_copy(model: Any) -> Any:
    return copy.deepcopy(model).float()


def _adapted(model: Any, rank: int, seed: int) -> Any:
    """The model with fresh LoRA adapters on all its linear layers; the model given keeps its own
    modules, and its weights are shared unless they are float16, in which gradients vanish."""
    base = _full_copy(model) if model.dtype == torch.float16 else shared_copy(model)
    return with_adapters(base, rank, seed, "CAUSAL_LM")
