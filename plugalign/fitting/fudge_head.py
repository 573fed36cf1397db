"""Trains FUDGE's head on the base's own hidden states.

Every pair of a prefix's last hidden state and the token that follows it is an example, its label
that of the full text. So is every pair of a state and an end token: that a text ends there says
nothing about its label, so the head does not promote or forbid stopping. The base is frozen, and
its states are computed once. Hidden states and embeddings are scaled to unit size while training,
so that one learning rate suits every model; the scales are folded in afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.identity import identify
from plugalign.controllers.fudge_head import FudgeHead
from plugalign.fitting import workspace
from plugalign.fitting.answers import frame_of
from plugalign.fitting.budget import affordable_steps, time_of
from plugalign.fitting.clock import Clock
from plugalign.fitting.data import Labelled
from plugalign.fitting.fudge import prefix_loss
from plugalign.fitting.held_out import HeldOut
from plugalign.fitting.labelled import Examples, auc, encoded, end_tokens
from plugalign.fitting.settings import (
    Count,
    FitSettings,
    LearningRate,
    Minutes,
    Rank,
    Seed,
    Weight,
    check_context,
    fit_function,
)
from plugalign.fitting.states import States, keep_states
from plugalign.fitting.training import steps_of_an_epoch, train

REACH = 0.4  # of a score in a step: lr D
HELD_OUT, READING, TRAINING = 0.1, 0.7, 0.9  # shares of what is left: the head learns fast


class FudgeHeadSettings(FitSettings):
    """Settings of `fit_fudge_head`.

    Attributes:
        desired: the label of the desired class, see `Labelled.binary`.
        rank: of the interaction between prefix and token.
        steps: at most; it ends when held-out texts are classified no better.
        lr: by default `REACH` over the hidden states' width D. A step of Adam moves all weights by
            as much, and with them the scores by about lr D.
        max_length: of a training text, in tokens; longer ones are cut.
        k: candidates of the controller that is returned and saved.
        weight: its lambda; 1 is Bayes' rule, more steers harder.
        minutes: read fewer texts and make fewer steps where these take longer.
    """

    desired: str | None = None
    rank: Rank = 32
    steps: Count = 1000
    batch_size: Count = 64
    lr: LearningRate | None = None
    max_length: Count = 64
    seed: Seed = 0
    k: Count = 200
    weight: Weight = 8.0
    minutes: Minutes | None = None


@fit_function(FudgeHeadSettings)
def fit_fudge_head(
    model: Any, tokenizer: Any, data: Labelled, out: Path, settings: FudgeHeadSettings
) -> FudgeHead:
    """Trains a head for the desired class and saves the controller in ``out``.

    A run that was killed and is started again continues. The model given is not changed. The
    keyword arguments are those of `FudgeHeadSettings`.

    Raises:
        ValueError: for settings out of range, or data without both classes.
    """
    frame = frame_of(model, tokenizer, settings)
    check_context(model, len(frame.context) + settings.max_length)
    sides, size = data.binary(settings.desired), settings.batch_size

    def work(folder: Path, result: Path) -> dict[str, Any]:
        clock = Clock(settings.minutes)
        learnt, held = encoded(
            tokenizer, sides, settings.max_length, settings.seed, end=False, least=2, frame=frame
        )
        learnt = learnt.shuffled(settings.seed)
        kept = None
        if len(held):
            held = held.alternating()
            kept = _states(model, held, folder / "held-out", size, clock.part(HELD_OUT))
            held = held.up_to(len(kept))
        states = _states(model, learnt, folder / "states", size, clock.part(READING))
        ends = end_tokens(model, tokenizer, frame)
        head = Head(model, ends, states, size, settings.rank, settings.seed)
        time = clock.part(TRAINING)
        measured = _trained(head, (learnt, states), (held, kept), settings, folder, time)
        fitted = FudgeHead(
            **head.unscaled(),
            k=settings.k,
            weight=settings.weight,
            fitted_for=identify(model, tokenizer),
        )
        fitted.save_pretrained(result)
        return {**measured, "texts": len(states)}

    about = frame.record()
    record = workspace.record("fudge_head", model, tokenizer, data, settings.recorded(), about)
    workspace.make(out, record, work, workspace.write_data_sheet)
    return FudgeHead.from_pretrained(out)


def _states(model: Any, examples: Examples, path: Path, size: int, clock: Clock) -> States:
    """The states behind which something is learnt."""
    first = examples.frame.first
    columns = [range(first, len(row)) for row in examples.rows]
    return keep_states(model, examples.rows, path, size, columns=columns, shared=first, clock=clock)


def _trained(
    head: Head,
    learnt: tuple[Examples, States],
    held: tuple[Examples, States | None],
    settings: FudgeHeadSettings,
    folder: Path,
    clock: Clock,
) -> dict[str, Any]:
    """Trains the head in place and measures it on the held-out texts, where there are any."""
    (examples, states), (apart, kept) = learnt, held
    loss = head.loss(
        examples, states, examples.picks(settings.batch_size, settings.seed, len(states))
    )
    look: Callable[[], float] | None = None
    if kept is not None:
        every = list(apart.in_order(settings.batch_size))
        look = partial(_mean_loss, head.loss(apart, kept, every.__getitem__), every)
    steps, looks = affordable_steps(
        loss,
        head.learned,
        settings.steps,
        clock,
        title="FUDGE head",
        note=folder / "head.json",
        looking=time_of(look, head.learned),
    )
    epoch = steps_of_an_epoch(len(states), settings.batch_size)
    watch = None if look is None else HeldOut(look, looks, epoch=epoch)
    losses = train(
        parameters=head.learned,
        loss=loss,
        steps=steps,
        most=settings.steps,
        lr=REACH / states.width if settings.lr is None else settings.lr,
        seed=settings.seed,
        title="FUDGE head",
        checkpoint=folder / "head.checkpoint",
        weight_decay=0.01,
        held_out=watch,
        clock=clock,
    )
    if watch is None or kept is None:
        return {"steps": len(losses)}
    found = head.auc(apart, kept, settings.batch_size)
    return {"steps": len(losses), "held_out": {**watch.best, "auc": found}}


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
        self,
        model: Any,
        ends: Sequence[int],
        states: States,
        batch_size: int,
        rank: int,
        seed: int,
    ):
        self._embedding = model.get_output_embeddings().weight.detach().float()  # (V, D)
        self._embedding_size = self._embedding.std()
        first = range(min(batch_size, len(states)))
        self._hidden_size = torch.cat([states[i].float() for i in first]).std()
        self._rows, self._device = self._embedding / self._embedding_size, model.device
        self._ends = torch.tensor(list(ends), dtype=torch.long, device=model.device)
        self.learned = _start(self._embedding, rank, seed)

    def loss(
        self, examples: Examples, states: States, pick: Callable[[int], Sequence[int]]
    ) -> Callable[[int], Tensor]:
        """The loss of a step's texts: of each prefix with the token that follows, and of each with
        an end token, which weigh as much."""

        def loss(step: int) -> Tensor:
            texts = pick(step)
            ids, mask, label, share = self._batch(examples, texts)
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
            ids, mask, label, share = self._batch(examples, texts)
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

    def _batch(self, examples: Examples, texts: Sequence[int]) -> tuple[Tensor, ...]:
        """The ids and the mask ``(B, T)`` of the columns whose states are kept, labels and weights
        ``(B,)``."""
        batch, first = examples.batch(texts, self._device), examples.frame.first
        return batch.ids[:, first:], batch.mask[:, first:], batch.label, batch.weight

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
