"""Decoding under a reward model: ``log p' = log p + w link(r(x, t))`` on the base's k best tokens.

``r(x, t)`` is the reward of the text that the candidate ``t`` would make. A reward model that reads
the base's token ids and looks back only (a Hugging Face sequence classifier of a causal
architecture) scores all candidates in one forward over its cached prefix; any other reads them as
texts. `plugalign.controllers.rad` and `plugalign.controllers.args` are the methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plugalign.algebra.shifts import CandidateShift, Link
from plugalign.algebra.sources import CandidateValues, TextCandidateValues
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import TopK
from plugalign.context import context_of
from plugalign.controllers.with_models import ModelSettings, WithModels
from plugalign.identity import model_name, vocabulary_hash

Reward = Any  # a sequence classifier, or a folder or hub id of one
TEXTS = 32  # read in one forward


@dataclass(frozen=True, eq=False)
class TokenReward:
    """A reward model that reads the base's token ids, as `CandidateValues` wants it.

    Attributes:
        model: a sequence classifier with a causal body and a head ``score`` of one label.
        inverted: whether the value is 1 - r.
    """

    model: Any
    inverted: bool = False

    @property
    def backbone(self) -> Any:
        return self.model.base_model

    def head(self, states: Tensor) -> Tensor:
        """Rewards ``(..., 1)`` of hidden states ``(..., D)``."""
        rewards: Tensor = self.model.score(states)
        return 1 - rewards if self.inverted else rewards


@dataclass(frozen=True, eq=False)
class TextReward:
    """A reward model that reads texts, as `TextCandidateValues` wants it.

    Attributes:
        model: a sequence classifier. tokenizer: its own.
        label: the number of the label whose probability is the reward; None for the logit of the
            only one.
        inverted: whether the value is 1 - r.
    """

    model: Any
    tokenizer: Any
    label: int | None = None
    inverted: bool = False

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The rewards of N texts, float32 ``(N,)``.

        Raises:
            ValueError: for a text that is longer than the model's context.
        """
        found = [self._forward(texts[i : i + TEXTS]) for i in range(0, len(texts), TEXTS)]
        return torch.cat(found)

    @torch.no_grad()
    def _forward(self, texts: Sequence[str]) -> Tensor:
        batch = self.tokenizer(
            list(texts), padding=True, padding_side="right", return_tensors="pt"
        ).to(self.model.device)
        limit, length = self._limit(), batch["input_ids"].shape[1]
        if length > limit:
            raise ValueError(
                f"a text of {length} tokens is longer than the context of the reward model "
                f"'{model_name(self.model)}' ({limit} tokens); ask for fewer new tokens"
            )
        logits: Tensor = self.model(**batch).logits.float()
        if self.label is None:
            rewards = logits[:, 0]
        elif self.model.config.problem_type == "multi_label_classification":
            rewards = logits.sigmoid()[:, self.label]
        else:
            rewards = logits.softmax(-1)[:, self.label]
        return 1 - rewards if self.inverted else rewards

    def _limit(self) -> int:
        """The most tokens that both the model and its tokenizer allow."""
        own = int(self.tokenizer.model_max_length)
        context = context_of(self.model)
        return own if context is None else min(own, context)


class RewardSettings(ModelSettings):
    """Support and label."""

    k: int
    label: str | None


class RewardGuided(WithModels):
    """Weighs the base's k best tokens by the reward of the text that each would make.

    Args:
        reward: a Hugging Face sequence classifier in eval mode, or a folder or hub id of one.
        tokenizer: the reward model's, or a folder or hub id of it. By default the one beside the
            reward model; where there is none (a model that is given as an object, a folder without
            tokenizer) the base's.
        k: number of the base's best tokens that stay possible and are scored.
        weight: of the reward.
        inverted: whether 1 - r is the reward.
        label: the label whose probability is the reward, for a classifier with several.
        trust_remote_code: whether code that comes with a folder or hub id may run.

    Raises:
        TypeError: for a reward that is neither a sequence classifier nor a name.
        ValueError: for k below 1 or a weight that is not finite.
    """

    link: ClassVar[Link]

    def __init__(
        self,
        reward: Reward,
        *,
        tokenizer: Any,
        k: int,
        weight: float,
        inverted: bool = False,
        label: str | None = None,
        trust_remote_code: bool = False,
    ):
        if not isinstance(reward, (str, Path)):
            check_reward(reward)
        if not math.isfinite(weight):
            raise ValueError(f"the reward's weight must be finite, got {weight}")
        self.reward, self.tokenizer, self.label = reward, tokenizer, label
        self.trust_remote_code = trust_remote_code
        self.support, self.weight, self.inverted = TopK(k), float(weight), inverted

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """``w link(r(x, t))`` on the base's top-k tokens.

        Raises:
            ValueError: if the reward model cannot be loaded or read; names it.
        """
        reward, own = self._loaded(model)
        name, k = f"the reward model '{model_name(reward)}'", self.support.k
        label = label_number(reward, self.label)
        same = own is None or vocabulary_hash(own) == vocabulary_hash(tokenizer)
        scores: CandidateValues | TextCandidateValues
        if same and label is None and hasattr(reward, "score"):
            check_reads(reward, model)
            scores = CandidateValues(name, TokenReward(reward, self.inverted), k)
        else:
            check_text(reward, own)
            scores = TextCandidateValues(
                name, TextReward(reward, own, label, self.inverted), tokenizer, k
            )
        return Steering((CandidateShift(scores, self.link, weight=self.weight),), (self.support,))

    def _loaded(self, base: Any) -> tuple[Any, Any]:
        """The reward model, and its tokenizer or None for the base's."""
        reward, own, trust = self.reward, self.tokenizer, self.trust_remote_code
        if isinstance(reward, (str, Path)):
            own = tokenizer_beside(reward) if own is None else own
            reward = load_reward(reward, base, trust_remote_code=trust)
        if isinstance(own, (str, Path)):
            own = AutoTokenizer.from_pretrained(own, trust_remote_code=trust)
        return reward, own

    def models(self) -> dict[str, Any]:
        own = {} if self.tokenizer is None else {"tokenizer": self.tokenizer}
        return {"reward": self.reward, **own}

    def config(self) -> dict[str, Any]:
        return {**super().config(), "k": self.support.k, "label": self.label}

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        own = {name: value for name, value in config.items() if name != "models"}
        return cls(**own, **parts)


def check_reward(reward: Any) -> None:
    """Refuses what is no sequence classifier.

    Raises:
        TypeError: naming what it is.
    """
    if "SequenceClassification" not in type(reward).__name__:
        raise TypeError(
            "a reward model is a Hugging Face sequence classifier "
            f"(AutoModelForSequenceClassification), or a folder or hub id of one, got "
            f"{type(reward).__name__}"
        )


def tokenizer_beside(reward: str | Path) -> str | Path | None:
    """Where the tokenizer of a reward model's folder or hub id is; None for a folder without."""
    folder = Path(reward)
    alone = folder.is_dir() and not (folder / "tokenizer_config.json").is_file()
    return None if alone else reward


def load_reward(reward: str | Path, base: Any, *, trust_remote_code: bool) -> Any:
    """A reward model from a folder or the hub: on the base's device, in its precision, in eval
    mode.

    Raises:
        ValueError: if it lacks weights: any model loads as a classifier, with a random head.
    """
    model, found = AutoModelForSequenceClassification.from_pretrained(
        reward, dtype=base.dtype, output_loading_info=True, trust_remote_code=trust_remote_code
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"'{reward}' is no trained reward model: it lacks {', '.join(missing)}; give the "
            "folder of a sequence classifier"
        )
    return model.to(base.device).eval()


def label_number(reward: Any, label: str | None) -> int | None:
    """The number of the label whose probability is the reward; None for the only one's logit.

    Raises:
        ValueError: listing the labels, for one that is not there, or none of several.
    """
    labels = [reward.config.id2label[i] for i in range(reward.config.num_labels)]
    if label is None and len(labels) == 1:
        return None
    if label not in labels:
        wanted = "none is named" if label is None else f"{label!r} is none of them"
        raise ValueError(
            f"the reward model '{model_name(reward)}' has the labels "
            f"{', '.join(map(repr, labels))}, and {wanted}; give label=..."
        )
    return labels.index(label)


def check_reads(reward: Any, base: Any) -> None:
    """Refuses a reward model that cannot read the base's token ids where they are.

    Raises:
        ValueError: naming both models.
    """
    known = reward.get_input_embeddings().weight.shape[0]
    rows = base.get_output_embeddings().weight.shape[0]
    if known < rows:
        raise ValueError(
            f"the reward model '{model_name(reward)}' knows {known} tokens, but "
            f"'{model_name(base)}' can choose {rows}; give the reward model's own tokenizer, and "
            "it reads texts"
        )
    if reward.device != base.device:
        raise ValueError(
            f"the reward model '{model_name(reward)}' is on {reward.device} and "
            f"'{model_name(base)}' on {base.device}; move one to the other"
        )


def check_text(reward: Any, tokenizer: Any) -> None:
    """Refuses a reward model that cannot read texts in batches.

    Raises:
        ValueError: naming it.
    """
    name = model_name(reward)
    if tokenizer is None:
        raise ValueError(
            f"the reward model '{name}' reads texts (its head is no causal 'score' of one label), "
            "so it needs its tokenizer; give tokenizer=..."
        )
    padded = tokenizer.pad_token is not None and reward.config.pad_token_id is not None
    if not padded:
        raise ValueError(
            f"the reward model '{name}' cannot read several texts at once: its tokenizer's "
            f"pad_token is {tokenizer.pad_token!r} and its config's pad_token_id "
            f"{reward.config.pad_token_id}; set both"
        )
