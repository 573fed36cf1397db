"""Reward models: Hugging Face sequence classifiers that read token ids or texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModelForSequenceClassification

from plugalign.algebra.identity import model_name
from plugalign.engine.context_length import context_length_of
from plugalign.files.pretrained import loading

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
        """Rewards ``(..., 1)`` of hidden states ``(..., D)``, in float32: near 1 bfloat16 knows a
        reward to 0.004 only, which RAD multiplies by 30 and more."""
        head = self.model.score
        if isinstance(head, nn.Linear):
            rewards = linear(states.float(), head.weight.float(), _float(head.bias))
        else:
            rewards = head(states).float()
        return 1 - rewards if self.inverted else rewards


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


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
        batch = self._encoded(texts).to(self.model.device)
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

    def _encoded(self, texts: Sequence[str]) -> Any:
        """Texts as the model reads them; one without tokens is its beginning or padding token."""
        options = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        batch = self.tokenizer(list(texts), **options)
        empty = batch["attention_mask"].sum(1) == 0
        if not empty.any():
            return batch
        start = self.tokenizer.bos_token or self.tokenizer.pad_token
        shown = [start if e else text for text, e in zip(texts, empty.tolist(), strict=True)]
        return self.tokenizer(shown, **options)

    def _limit(self) -> int:
        """The most tokens that both the model and its tokenizer allow."""
        own = int(self.tokenizer.model_max_length)
        context = context_length_of(self.model)
        return own if context is None else min(own, context)


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
        ValueError: if it cannot be loaded, or lacks weights: any model loads as a classifier, with
            a random head.
    """
    with loading("the reward model", reward):
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
    """The number of the label whose probability is the reward; None for the only one's logit, by
    name or without.

    Raises:
        ValueError: listing the labels, for one that is not there, or none of several.
    """
    labels = [reward.config.id2label[i] for i in range(reward.config.num_labels)]
    if len(labels) == 1 and label in (None, *labels):
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
            "so it needs its tokenizer; give tokenizer=..., the base's if it was trained with that"
        )
    padded = tokenizer.pad_token is not None and reward.config.pad_token_id is not None
    if not padded:
        raise ValueError(
            f"the reward model '{name}' cannot read several texts at once: its tokenizer's "
            f"pad_token is {tokenizer.pad_token!r} and its config's pad_token_id "
            f"{reward.config.pad_token_id}; set both"
        )
