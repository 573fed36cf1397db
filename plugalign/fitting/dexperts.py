"""Trains the expert and the anti-expert of DExperts (Liu et al. 2021).

Both start from the base and are tuned as plain language models, the expert on desired and the
anti-expert on all other texts: as whole models, or as LoRA adapters of the base. Where to stop they
do not learn from the texts, whose lengths are no part of the attribute: at every position they keep
the base's own log-probability of an end token, and learn what comes next if the text goes on. So
the difference of any two of expert, anti-expert and base neither promotes nor forbids stopping.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugalign.adapters.layers import shared_copy
from plugalign.algebra.identity import identify
from plugalign.controllers.dexperts import ROLES, DExperts
from plugalign.fitting import workspace
from plugalign.fitting.budget import affordable_steps
from plugalign.fitting.data import Labelled, pad
from plugalign.fitting.held_out import HeldOut
from plugalign.fitting.labelled import auc, encoded, end_tokens
from plugalign.fitting.settings import (
    Count,
    LearningRate,
    Minutes,
    Rank,
    Seed,
    Share,
    Weight,
    check_context,
    checked,
)
from plugalign.fitting.training import batches, train

Rows = Sequence[Sequence[int]]


@checked
def fit_dexperts(
    model: Any,
    tokenizer: Any,
    data: Labelled,
    out: Path,
    *,
    desired: str | None = None,
    lora: bool = False,
    rank: Rank = 16,
    steps: Count = 300,
    batch_size: Count = 32,
    lr: LearningRate | None = None,
    max_length: Count = 64,
    seed: Seed = 0,
    alpha: Weight = 2.0,
    top_p: Share = 0.9,
    minutes: Minutes | None = None,
) -> DExperts:
    """Trains both experts and saves the controller in ``out``, with one subfolder each.

    A run that was killed and is started again continues. The model given is not changed.

    Args:
        desired: the label of the desired class, see `Labelled.binary`.
        lora: adapters of the base on all linear layers instead of whole models (needs peft).
        rank: of the adapters.
        steps: of each expert, at most; it ends when held-out texts are explained no better.
        lr: by default 1e-4 for whole models and 1e-3 for adapters. Experts that drift far from the
            base differ in much besides the attribute, and the difference of two of them is noise.
        max_length: of a training text, in tokens; longer ones are cut.
        alpha: strength of the controller that is returned and saved. top_p: its base's support.
        minutes: make fewer steps where these take longer.

    Raises:
        ValueError: for settings out of range, or data without both classes.
        ImportError: if ``lora`` is asked for and peft is missing.
    """
    lr = lr if lr is not None else (1e-3 if lora else 1e-4)
    check_context(model, max_length)
    sides = data.binary(desired)
    settings = {
        "desired": desired,
        "rank": rank if lora else None,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "max_length": max_length,
        "seed": seed,
        "alpha": alpha,
        "top_p": top_p,
    }

    def work(folder: Path, result: Path) -> dict[str, Any]:
        learnt, held = encoded(tokenizer, sides, max_length, seed, end=False, least=2)
        found: dict[str, Any] = {}
        scores: list[Tensor] = []
        for role, rows, apart in zip(ROLES, learnt.sides(), held.sides(), strict=True):
            student = Student(model, tokenizer, rank if lora else 0, seed)
            loss = student.loss_of(rows, batch_size, seed)
            chosen = affordable_steps(
                loss,
                student.learned,
                steps,
                minutes,
                title=role,
                runs=2,
                note=folder / "steps.json",
                spare=student.spare,
            )
            watch = HeldOut(partial(student.mean_loss, apart, batch_size))
            train(
                parameters=student.learned,
                loss=loss,
                steps=chosen,
                lr=lr,
                title=role,
                seed=seed,
                checkpoint=folder / f"{role}.checkpoint",
                held_out=watch if apart else None,
            )
            student.model.eval()
            scores.append(student.log_likelihoods(held.rows, batch_size))
            _save(student.model, tokenizer, folder / role)
            found |= {"steps": chosen, role: watch.best if apart else {}}
        if len(held):
            found["auc"] = auc(scores[0] - scores[1], held.labels)
        origin = identify(model, tokenizer)
        expert, anti = (folder / role for role in ROLES)
        fitted = DExperts(expert, anti, alpha=alpha, top_p=top_p, fitted_for=origin)
        fitted.save_pretrained(result)
        return found

    method = "dexperts_lora" if lora else "dexperts"
    workspace.make(out, workspace.record(method, model, tokenizer, data, settings), work)
    return DExperts.from_pretrained(out)


class Student:
    """A copy of the base that is being tuned.

    Args:
        rank: of its adapters; 0 tunes the whole model.

    Attributes:
        model: the copy. learned: its parameters in training, by name.
    """

    def __init__(self, base: Any, tokenizer: Any, rank: int, seed: int):
        self._base, self.model = base, _adapted(base, rank, seed) if rank else _whole(base)
        self._ends = end_tokens(base, tokenizer)
        self.model.train()
        named = self.model.named_parameters()
        self.learned = {name: p for name, p in named if p.requires_grad}

    def loss_of(self, rows: Rows, batch_size: int, seed: int) -> Callable[[int], Tensor]:
        """The loss of each step's texts."""
        pick = batches(len(rows), batch_size, seed, [len(row) for row in rows])
        return lambda step: self._loss([rows[i] for i in pick(step)])[0]

    @torch.no_grad()
    def mean_loss(self, rows: Rows, batch_size: int) -> float:
        """The mean loss of a token of given texts, without dropout."""
        self.model.eval()
        parts = [self._loss(some) for some in _in_order(rows, batch_size)]
        self.model.train()
        total = sum(float(loss) * float(count) for loss, count in parts)
        return total / sum(float(count) for _, count in parts)

    @torch.no_grad()
    def log_likelihoods(self, rows: Rows, batch_size: int) -> Tensor:
        """The log-likelihood of each text ``(N,)``, in nats, behind its first token and given where
        it ends."""
        found = torch.zeros(len(rows))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            ids, mask = (x.to(self._base.device) for x in pad([rows[i] for i in some]))
            log_p, _ = following(self._logits(self.model, ids, mask), ids, self._ends)
            found[some] = (log_p * mask[:, 1:]).sum(1).cpu()
        return found

    def spare(self) -> None:
        """Computes the activations of a forward again for its gradient, instead of keeping them."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def _loss(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The loss of some texts, and how many tokens it is the mean of."""
        ids, mask = (x.to(self._base.device) for x in pad(rows))
        with torch.no_grad():
            base = self._logits(self._base, ids, mask)
            stop = following(base, ids, self._ends)[1] if self._ends else None
        return guide_loss(self._logits(self.model, ids, mask), stop, ids, mask, self._ends)

    @staticmethod
    def _logits(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits


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
    logits: Tensor, stop: Tensor | None, ids: Tensor, mask: Tensor, ends: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The mean negative log-likelihood of next tokens given that the text goes on, plus the mean
    square of what the log-probability of ending differs by from the base's: of the shift that an
    end token would get.

    Args:
        logits: ``(B, T, V)``. ids, mask: ``(B, T)``. ends: the end tokens.
        stop: the log-probability with which the base ends behind each token ``(B, T)``.

    Returns:
        The loss, and the number of tokens.
    """
    log_p, end = following(logits, ids, ends)
    shown = mask[:, 1:] * ~torch.isin(ids[:, 1:], torch.tensor(list(ends), device=ids.device))
    count = shown.sum()
    loss = -(log_p * shown).sum() / count
    if stop is not None:
        loss = loss + ((end - stop).square() * mask).sum() / mask.sum()
    return loss, count


def _complement(log_p: Tensor) -> Tensor:
    """``log(1 - p)``."""
    return torch.log(-torch.expm1(log_p.clamp_max(-1e-6)))


def _in_order(rows: Rows, batch_size: int) -> list[Rows]:
    """Texts of like length together, so many at a time."""
    ordered = sorted(rows, key=len)
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


def _whole(model: Any) -> Any:
    return copy.deepcopy(model).float()


def _adapted(model: Any, rank: int, seed: int) -> Any:
    """The model with fresh LoRA adapters on all its linear layers; the model given keeps its own
    modules, and its weights are shared unless they are float16, in which gradients vanish."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("LoRA experts need peft: pip install 'plugalign[train]'") from error
    conv = any(type(module).__name__ == "Conv1D" for module in model.modules())
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        fan_in_fan_out=conv,
    )
    base = _whole(model) if model.dtype == torch.float16 else shared_copy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(base, config)


def _save(student: Any, tokenizer: Any, folder: Path) -> None:
    """A Hugging Face model folder, or the adapter alone if it is one."""
    if hasattr(student, "peft_config"):
        student.save_pretrained(folder, save_embedding_layers=False)
        return
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
