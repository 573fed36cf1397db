"""Trains FUDGE's head on the base's own hidden states.

Every pair of a prefix's last hidden state and the token that follows it is an example, its label
that of the whole text. So is every pair of a state and an end token: that a text ends there says
nothing about its label, so the head does not promote or forbid stopping. The base is frozen, and
its states are computed once. Hidden states and embeddings are scaled to unit size while training,
so that one learning rate suits every model; the scales are folded in afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.identity import identify
from plugalign.controllers.fudge_head import FudgeHead
from plugalign.fitting import workspace
from plugalign.fitting.budget import affordable_steps
from plugalign.fitting.data import Labelled
from plugalign.fitting.fudge import prefix_loss
from plugalign.fitting.held_out import HeldOut
from plugalign.fitting.labelled import Examples, auc, encoded, end_tokens
from plugalign.fitting.settings import (
    Count,
    LearningRate,
    Minutes,
    Rank,
    Seed,
    Weight,
    check_context,
    checked,
)
from plugalign.fitting.states import States, keep_states
from plugalign.fitting.training import train

READING = 0.7  # share of the time for the base's states; the head learns fast


@checked
def fit_fudge_head(
    model: Any,
    tokenizer: Any,
    data: Labelled,
    out: Path,
    *,
    desired: str | None = None,
    rank: Rank = 32,
    steps: Count = 1000,
    batch_size: Count = 64,
    lr: LearningRate = 3e-3,
    max_length: Count = 64,
    seed: Seed = 0,
    k: Count = 200,
    weight: Weight = 8.0,
    minutes: Minutes | None = None,
) -> FudgeHead:
    """Trains a head for the desired class and saves the controller in ``out``.

    A run that was killed and is started again continues. The model given is not changed.

    Args:
        desired: the label of the desired class, see `Labelled.binary`.
        rank: of the interaction between prefix and token.
        steps: at most; it ends when held-out texts are told apart no better.
        max_length: of a training text, in tokens; longer ones are cut.
        k: candidates of the controller that is returned and saved.
        weight: its lambda; 1 is Bayes' rule, more steers harder.
        minutes: read fewer texts and make fewer steps where these take longer.

    Raises:
        ValueError: for settings out of range, or data without both classes.
    """
    check_context(model, max_length)
    sides = data.binary(desired)
    settings = {
        "desired": desired,
        "rank": rank,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "max_length": max_length,
        "seed": seed,
        "k": k,
        "weight": weight,
    }

    def work(folder: Path, result: Path) -> dict[str, Any]:
        learnt, held = encoded(tokenizer, sides, max_length, seed, end=False, least=2)
        learnt, share = learnt.shuffled(seed), None if minutes is None else READING * minutes
        kept = keep_states(model, held.rows, folder / "held-out", batch_size) if len(held) else None
        states = keep_states(model, learnt.rows, folder / "states", batch_size, minutes=share)
        head = Head(model, tokenizer, states, batch_size, rank, seed)
        pick = learnt.picks(batch_size, seed, len(states))
        loss, title = head.loss(learnt, states, pick), "FUDGE head"
        chosen = affordable_steps(
            loss,
            head.learned,
            steps,
            None if minutes is None else minutes / 4,
            title=title,
            note=folder / "head.json",
        )
        watch = None
        if kept is not None:
            every = list(held.in_order(batch_size))
            watch = HeldOut(lambda: _mean_loss(head.loss(held, kept, every.__getitem__), every))
        train(
            parameters=head.learned,
            loss=loss,
            steps=chosen,
            lr=lr,
            seed=seed,
            title=title,
            checkpoint=folder / "head.checkpoint",
            weight_decay=0.01,
            held_out=watch,
        )
        origin = identify(model, tokenizer)
        controller = FudgeHead(**head.unscaled(), k=k, weight=weight, fitted_for=origin)
        controller.save_pretrained(result)
        found: dict[str, Any] = {"steps": chosen, "texts": len(states)}
        if watch is not None and kept is not None:
            found["held_out"] = {**watch.best, "auc": head.auc(held, kept, batch_size)}
        return found

    workspace.make(out, workspace.record("fudge_head", model, tokenizer, data, settings), work)
    return FudgeHead.from_pretrained(out)


@torch.no_grad()
def _mean_loss(loss: Callable[[int], Tensor], batches: Sequence[Sequence[int]]) -> float:
    """The mean over batches, by their numbers of texts."""
    total = sum(float(loss(i)) * len(texts) for i, texts in enumerate(batches))
    return total / sum(map(len, batches))


class Head:
    """The head in training, on scaled states and embeddings.

    Attributes:
        learned: its parameters by name.
    """

    def __init__(
        self, model: Any, tokenizer: Any, states: States, batch_size: int, rank: int, seed: int
    ):
        self._embedding = model.get_output_embeddings().weight.detach().float()  # (V, D)
        self._embedding_size = self._embedding.std()
        first = range(min(batch_size, len(states)))
        self._hidden_size = torch.cat([states[i].float() for i in first]).std()
        self._rows, self._device = self._embedding / self._embedding_size, model.device
        self._ends = torch.tensor(end_tokens(model, tokenizer), device=model.device)
        self.learned = _start(self._embedding, rank, seed)

    def loss(
        self, examples: Examples, states: States, pick: Callable[[int], Sequence[int]]
    ) -> Callable[[int], Tensor]:
        """The loss of a step's texts: of each prefix with the token that follows, and of each with
        an end token, which weigh as much."""

        def loss(step: int) -> Tensor:
            texts = pick(step)
            ids, mask, label, share = examples.of(texts, self._device)
            hidden = self._scaled(states.padded(texts))
            logits = self._logits(hidden[:, :-1], ids[:, 1:])
            parts = [prefix_loss(logits, label, mask[:, 1:], share)]
            if len(self._ends):
                token = self._ends[step % len(self._ends)].expand_as(ids)
                parts.append(prefix_loss(self._logits(hidden, token), label, mask, share))
            return torch.stack(parts).mean()

        return loss

    @torch.no_grad()
    def auc(self, examples: Examples, states: States, batch_size: int) -> float:
        """How well the scores of prefixes and what follows them tell the classes apart."""
        found = []
        for texts in examples.in_order(batch_size):
            ids, mask, label, share = examples.of(texts, self._device)
            seen = mask[:, 1:].bool()
            logits = self._logits(self._scaled(states.padded(texts))[:, :-1], ids[:, 1:])
            found.append([x[seen] for x in (logits, *_columns(logits, label, share))])
        return auc(*(torch.cat(part) for part in zip(*found, strict=True)))

    @torch.no_grad()
    def unscaled(self) -> dict[str, Any]:
        """The head for hidden states and embeddings as they are."""
        learned, scale = self.learned, self._embedding_size
        return {
            "left": learned["left"] / scale,
            "right": learned["right"] / self._hidden_size,
            "token_bias": learned["token_bias"] + self._embedding @ (learned["token"] / scale),
            "state": learned["state"] / self._hidden_size,
            "offset": learned["offset"].item(),
        }

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden.to(self._device) / self._hidden_size

    def _logits(self, hidden: Tensor, following: Tensor) -> Tensor:
        """The score ``(B, T)`` of each following token ``(B, T)`` after its prefix's hidden state.

        Args:
            hidden: scaled hidden states ``(B, T, D)``.
        """
        learned, tokens = self.learned, self._rows[following]
        bilinear = ((tokens @ learned["left"]) * (hidden @ learned["right"])).sum(-1)
        by_token = tokens @ learned["token"] + learned["token_bias"][following]
        scores: Tensor = bilinear + by_token + hidden @ learned["state"] + learned["offset"]
        return scores


def _columns(like: Tensor, *rows: Tensor) -> list[Tensor]:
    """One number of each row ``(B,)`` at all columns ``(B, T)``."""
    return [row[:, None].expand_as(like) for row in rows]


def _start(embedding: Tensor, rank: int, seed: int) -> dict[str, Tensor]:
    """Zero but for the two factors of the interaction, which need to differ to learn.

    Args:
        embedding: ``(V, D)``.
    """
    vocab, width = embedding.shape
    generator = torch.Generator().manual_seed(seed)
    random: Mapping[str, Tensor] = {
        name: torch.randn(width, rank, generator=generator) / width for name in ("left", "right")
    }
    zero = {"token": (width,), "token_bias": (vocab,), "state": (width,), "offset": ()}
    tensors = {**random, **{name: torch.zeros(shape) for name, shape in zero.items()}}
    return {name: tensor.to(embedding.device).requires_grad_() for name, tensor in tensors.items()}
