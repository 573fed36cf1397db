"""A reward model in training: a head, and a copy of the base's body with LoRA adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from plugalign.algebra.identity import model_name
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
from plugalign.fitting.training import train

TITLE = "reward"
Loss = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]
"""Of the rewards of prefixes ``(B, T)``: the sum of their weighted losses, and of the weights."""


class RewardFitSettings(FitSettings):
    """What the settings of `fit_rad` and `fit_args` have in common.

    Attributes:
        desired: the label of the desired class, see `Labelled.binary`.
        rank: of the adapters.
        steps: at most; it ends when held-out texts are judged no better.
        max_length: of a training text, in tokens; longer ones are cut.
        minutes: make fewer steps where these take longer.
    """

    desired: str | None = None
    rank: Rank = 16
    steps: Count = 600
    batch_size: Count = 16
    lr: LearningRate = 1e-3
    max_length: Count = 64
    seed: Seed = 0
    minutes: Minutes | None = None


class RewardStudent:
    """A reward model in training: its head and adapters of its body, in float32.

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
        """Trains the model in place and measures it on the held-out texts, where there are any."""
        chosen, note = self._settings, folder / "look.json"
        looking = affordable_look(
            lambda texts: self._held_loss(held.up_to(texts)),
            len(held),
            self.learned,
            clock,
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
        watch = HeldOut(partial(self._held_loss, held), looks) if len(held) else None
        losses = train(
            parameters=self.learned,
            loss=loss,
            steps=steps,
            lr=chosen.lr,
            title=TITLE,
            seed=chosen.seed,
            checkpoint=folder / "reward.checkpoint",
            held_out=watch,
            clock=clock,
        )
        self.model.eval()
        if watch is None:
            return {"steps": len(losses)}
        found = {**watch.best, "texts": len(held), "auc": self._auc(held)}
        return {"steps": len(losses), "held_out": found}

    def _loss_of(self, learnt: Examples) -> Callable[[int], Tensor]:
        """The loss of each step's texts."""
        pick = learnt.picks(self._settings.batch_size, self._settings.seed)
        hazard = len(learnt) / sum(len(row) - self._frame.first for row in learnt.rows)

        def loss(step: int) -> Tensor:
            batch = learnt.batch(pick(step), self.model.device)
            batch = broken_off(batch, self._ends, hazard, self._frame)
            total, count = self._loss(self._rewards(batch), batch)
            return total / count.clamp(min=1e-9)

        return loss

    @torch.no_grad()
    def _held_loss(self, held: Examples) -> float:
        """The mean loss of texts, without dropout."""
        self.model.eval()
        parts = [self._loss(self._rewards(batch), batch) for batch in self._batches(held)]
        self.model.train()
        total, count = (sum(float(part[i]) for part in parts) for i in (0, 1))
        return total / max(count, 1e-9)

    @torch.no_grad()
    def _auc(self, held: Examples) -> float:
        """How well the rewards of all prefixes tell the classes apart."""
        found = []
        for batch in self._batches(held):
            seen, rewards = batch.learnt.bool(), self._rewards(batch)
            rows = (rewards, batch.label[:, None], batch.weight[:, None])
            found.append([row.expand_as(rewards)[seen] for row in rows])
        return auc(*(torch.cat(part) for part in zip(*found, strict=True)))

    def _batches(self, held: Examples) -> list[Batch]:
        size, device = self._settings.batch_size, self.model.device
        return [held.batch(texts, device) for texts in held.in_order(size)]

    def _rewards(self, batch: Batch) -> Tensor:
        """The reward of each prefix, float32 ``(B, T)``."""
        body = self.model.base_model
        states = body(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)[0]
        rewards: Tensor = self.model.score(states.float())
        return rewards[..., 0]

    def _spare(self) -> None:
        """Computes the activations of a forward again for its gradient, instead of keeping them."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def merged(self) -> Any:
        """The model with what was learnt in its weights, in the base's precision."""
        self._adapters.merge_and_unload()
        return self.model.to(self._dtype)


def untrained(base: Any, tokenizer: Any) -> Any:
    """A sequence classifier with one label, a copy of the base's body and a head in float32, whose
    rewards are 0. A body in float16, in which gradients vanish, becomes float32.

    Raises:
        ValueError: if there is none of the base's architecture.
    """
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    dtype = torch.float32 if base.dtype == torch.float16 else base.dtype
    try:
        with torch.random.fork_rng():
            model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
        model.base_model.load_state_dict(base.base_model.state_dict())
        torch.nn.init.zeros_(model.score.weight)
    except (AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"transformers has no sequence classifier with the body of '{model_name(base)}' and a "
            f"head 'score' ({type(base).__name__}), so no reward model can be made of it; give RAD "
            "and ARGS one that was trained elsewhere"
        ) from error
    model.score.float()
    return model.to(base.device)
