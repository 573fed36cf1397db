"""A reward model in training: a head, and a copy of the base's body with LoRA adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear, pad
from transformers import AutoModelForSequenceClassification

from plugalign.algebra.identity import model_name
from plugalign.engine.readers.cache_spec import check_columns
from plugalign.fitting.answers import Frame
from plugalign.fitting.budget import affordable_look, affordable_steps, remember
from plugalign.fitting.clock import Clock
from plugalign.fitting.fudge import broken_off
from plugalign.fitting.held_out import HeldOut
from plugalign.fitting.labelled import Batch, Examples, auc, end_tokens
from plugalign.fitting.low_rank import with_adapters
from plugalign.fitting.settings import (
    Count,
    FitSettings,
    LearningRate,
    Minutes,
    Rank,
    Seed,
)
from plugalign.fitting.shared_context import read_behind
from plugalign.fitting.training import batches, recompute_activations, steps_of_an_epoch, train

TITLE = "reward"
Loss = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]
"""Of the rewards of prefixes ``(B, T)``: the sum of their weighted losses, and of the weights."""


class RewardFitSettings(FitSettings):
    """What the settings of `fit_rad` and `fit_args` have in common.

    Attributes:
        desired: the label of the desired class, see `Labelled.binary`.
        rank: of the adapters.
        batch_size: of a step, half of each class; an odd one is rounded down.
        steps: at most; it ends when held-out texts are judged no better.
        max_length: of a training text, in tokens; longer ones are cut.
        minutes: make fewer steps where these take longer.
    """

    desired: str | None = None
    rank: Rank = 16
    steps: Count = 600
    batch_size: Annotated[Count, Field(ge=2)] = 16
    lr: LearningRate = 1e-3
    max_length: Count = 64
    seed: Seed = 0
    minutes: Minutes | None = None


class RewardStudent:
    """A reward model in training: its head and adapters of its body, in float32.

    A step has as many texts of the desired class as others, since a loss may compare them.

    Attributes:
        model: a sequence classifier with one label. learned: its parameters in training, by name.
    """

    def __init__(
        self, base: Any, tokenizer: Any, loss: Loss, settings: RewardFitSettings, frame: Frame
    ):
        self.model, self._dtype = untrained(base, tokenizer), base.dtype
        self._adapters = with_adapters(self.model.base_model, settings.rank, settings.seed)
        self.model.train()
        self._loss, self._settings, self._frame = loss, settings, frame
        self._ends = end_tokens(base, tokenizer, frame)
        named = self.model.named_parameters()
        self.learned = {name: p for name, p in named if p.requires_grad}

    def trained(
        self, learnt: Examples, held: Examples, folder: Path, clock: Clock
    ) -> dict[str, Any]:
        """Trains the model in place, adds the adapters to its weights, and measures it on the
        held-out texts, where there are any."""
        chosen, note = self._settings, folder / "look.json"
        looking = affordable_look(
            lambda texts: self._held_loss(held.up_to(texts)),
            len(held),
            self.learned,
            clock,
            read=chosen.steps * chosen.batch_size,
            note=note,
        )
        held, clock = held.up_to(looking.texts), clock.part(but=looking.seconds)
        loss = self._loss_of(learnt)
        steps, looks = affordable_steps(
            loss,
            self.learned,
            chosen.steps,
            clock,
            title=TITLE,
            note=folder / "steps.json",
            spare=self._spare,
            looking=lambda: looking.seconds,
        )
        remember(note, looking._asdict())
        look = partial(self._held_loss, held)
        epoch = steps_of_an_epoch(len(learnt), chosen.batch_size)
        watch = HeldOut(look, looks, epoch=epoch) if len(held) else None
        losses = train(
            parameters=self.learned,
            loss=loss,
            steps=steps,
            most=chosen.steps,
            lr=chosen.lr,
            title=TITLE,
            seed=chosen.seed,
            checkpoint=folder / "reward.checkpoint",
            held_out=watch,
            clock=clock,
        )
        self._adapters.merge_and_unload()
        self.model.to(self._dtype).eval()
        if watch is None:
            return {"steps": len(losses)}
        found = {**watch.best, "texts": len(held), **self._measured(held)}
        return {"steps": len(losses), "held_out": found}

    def _loss_of(self, learnt: Examples) -> Callable[[int], Tensor]:
        """The loss of each step's texts."""
        pick = _pairs(learnt, self._settings.batch_size, self._settings.seed)
        hazard = len(learnt) / sum(len(row) - self._frame.first for row in learnt.rows)

        def loss(step: int) -> Tensor:
            batch = learnt.batch(pick(step), self.model.device)
            batch = self._answers(broken_off(batch, self._ends, hazard, self._frame))
            batch = batch._replace(weight=torch.ones_like(batch.weight))  # it has both classes
            total, count = self._loss(self._rewards(batch), batch)
            return total / count

        return loss

    @torch.no_grad()
    def _held_loss(self, held: Examples) -> float:
        """The mean loss of texts, without dropout."""
        self.model.eval()
        parts = [self._loss(self._rewards(batch), batch) for batch in self._batches(held)]
        self.model.train()
        total, count = (sum(float(part[i]) for part in parts) for i in (0, 1))
        return total / count

    @torch.no_grad()
    def _measured(self, held: Examples) -> dict[str, float]:
        """How well rewards tell the classes apart: of prefixes of one length, the mean over all
        lengths, and of the texts as far as they are read."""
        batches = self._batches(held)
        label = torch.cat([batch.label for batch in batches])
        rewards = [self._rewards(batch) for batch in batches]
        most = max(part.shape[1] for part in rewards)
        seen, values = (
            torch.cat([pad(part, (0, most - part.shape[1])) for part in parts])
            for parts in ([batch.learnt for batch in batches], rewards)
        )
        last = most - 1 - seen.flip(1).argmax(1)
        found: dict[int, tuple[int, float]] = {}
        for column in range(most):
            here = seen[:, column].bool()
            if 0 < label[here].sum() < here.sum():
                found[column] = int(here.sum()), auc(values[here, column], label[here])
        prefixes = sum(count for count, _ in found.values())
        mean = sum(count * value for count, value in found.values()) / prefixes
        whole = values.gather(1, last[:, None])[:, 0]
        return {"auc": round(mean, 4), "whole_auc": auc(whole, label)}

    def _batches(self, held: Examples) -> list[Batch]:
        """All texts, so many at a time: of both classes wherever there are enough, and alike in
        length."""
        count = -(-len(held) // self._settings.batch_size)
        parts = [np.array_split(np.array(side, int), count) for side in _by_class(held)]
        texts = [np.concatenate(some).tolist() for some in zip(*parts, strict=True)]
        return [self._answers(held.batch(some, self.model.device)) for some in texts]

    def _answers(self, batch: Batch) -> Batch:
        """The same, learnt from no prefix that ends in front of an answer: in a chat one would
        be."""
        column = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        return batch._replace(learnt=batch.learnt * (column >= len(self._frame.context)))

    def _rewards(self, batch: Batch) -> Tensor:
        """The reward of each prefix, float32 ``(B, T)``; 0 in front of an answer."""
        body, head, first = self.model.base_model, self.model.score, self._frame.first
        states = read_behind(body, batch.ids, batch.mask, first, lambda output: output[0])
        return pad(linear(states.float(), head.weight.float())[..., 0], (first, 0))

    def _spare(self) -> None:
        """Computes the activations of a forward again for its gradient, instead of keeping them."""
        recompute_activations(self.model)


def _by_class(examples: Examples) -> list[list[int]]:
    """The numbers of the texts of the desired class, and of all others, the shortest first."""
    labels = examples.labels.tolist()
    order = sorted(range(len(examples)), key=lambda i: len(examples.rows[i]))
    return [[i for i in order if labels[i] == y] for y in (1, 0)]


def _pairs(examples: Examples, batch_size: int, seed: int) -> Callable[[int], list[int]]:
    """Maps a step to its texts, half of them of each class. Texts of equal rank by length are
    drawn together, those of the smaller class more often."""
    lengths, sides = [len(row) for row in examples.rows], _by_class(examples)
    most = max(map(len, sides))
    pairs = [[side[i * len(side) // most] for side in sides] for i in range(most)]
    longest = [max(lengths[i] for i in pair) for pair in pairs]
    pick = batches(most, batch_size // 2, seed, longest)
    return lambda step: [i for pair in pick(step) for i in pairs[pair]]


def check_body(base: Any) -> None:
    """Refuses a base of which no reward model can be made.

    Raises:
        ValueError: saying why.
    """
    if hasattr(base, "peft_config"):
        raise ValueError(
            f"'{model_name(base)}' is a PEFT model; merge its adapters first (merge_and_unload)"
        )
    check_columns(base, "its candidates are read beside")
    with torch.device("meta"):
        _classifier(base, None)


def untrained(base: Any, tokenizer: Any) -> Any:
    """A sequence classifier with one label, a copy of the base's body and a head in float32, whose
    rewards are 0. A body in float16, in which gradients vanish, becomes float32.

    Raises:
        ValueError: see `check_body`.
    """
    with torch.device(base.device), torch.random.fork_rng():
        model = _classifier(base, tokenizer.pad_token_id)
    model.base_model.load_state_dict(base.base_model.state_dict())
    torch.nn.init.zeros_(model.score.weight)
    model.score.float()
    return model


def _classifier(base: Any, pad_token_id: int | None) -> Any:
    """A sequence classifier with one label and random weights."""
    config = copy.deepcopy(base.config.get_text_config())
    config.num_labels = 1
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = pad_token_id
    dtype = torch.float32 if base.dtype == torch.float16 else base.dtype
    wanted, model = {name: w.shape for name, w in base.base_model.state_dict().items()}, None
    with suppress(ValueError):  # there is none of this configuration
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    body = {} if model is None else model.base_model.state_dict()
    if {name: w.shape for name, w in body.items()} != wanted or not hasattr(model, "score"):
        raise ValueError(
            f"transformers has no sequence classifier with the body of '{model_name(base)}' and a "
            f"head 'score' ({type(base).__name__}), so no reward model can be made of it; give RAD "
            "and ARGS one that was trained elsewhere"
        )
    return model
