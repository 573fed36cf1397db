"""Decoding under a reward model: ``log p' = log p + w link(r(x, t))`` on the base's k best tokens.

``r(x, t)`` is the reward of the text that the candidate ``t`` would make. A reward model that reads
the base's token ids and looks back only (a Hugging Face sequence classifier of a causal
architecture) scores all candidates in one forward over its cached prefix; any other reads them as
texts. `plugalign.controllers.rad` and `plugalign.controllers.args` are the methods.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Self, TypedDict

from torch import Tensor
from transformers import AutoTokenizer

from plugalign.algebra.identity import model_name, vocabulary_hash
from plugalign.algebra.shifts import CandidateShift, Link
from plugalign.algebra.sources import CandidateValues, TextCandidateValues
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import TopK
from plugalign.controllers.reward_models import (
    TextReward,
    TokenReward,
    check_reads,
    check_reward,
    check_text,
    label_number,
    load_reward,
    tokenizer_beside,
)
from plugalign.controllers.with_models import ModelSettings, WithModels
from plugalign.files.pretrained import loading

Reward = Any  # a sequence classifier, or a folder or hub id of one


class RewardOptions(TypedDict, total=False):
    """The arguments of `RewardGuided` that every method has."""

    tokenizer: Any
    label: str | None
    trust_remote_code: bool


class RewardSettings(ModelSettings):
    """Support and label."""

    k: int
    label: str | None


class RewardGuided(WithModels):
    """Weighs the base's k best tokens by the reward of the text that each would make.

    Args:
        reward: a Hugging Face sequence classifier in eval mode, or a folder or hub id of one. A
            causal one with one label and the base's tokenizer reads candidates behind a cached
            prefix; any other reads texts.
        k: number of the base's best tokens that stay possible and are scored.
        weight: of the reward.
        inverted: whether 1 - r is the reward.
        tokenizer: the reward model's, or a folder or hub id of it. By default the one beside the
            reward model; where there is none (a model that is given as an object, a folder without
            tokenizer) a model that can read token ids reads the base's, and one that reads texts
            is refused, since its vocabulary is unknown.
        label: the label whose probability is the reward, for a classifier with several; the reward
            of one with a single label is its logit.
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
        k: int,
        weight: float,
        inverted: bool = False,
        tokenizer: Any = None,
        label: str | None = None,
        trust_remote_code: bool = False,
    ):
        if not isinstance(reward, (str, Path)):
            check_reward(reward)
        if not math.isfinite(weight):
            raise ValueError(f"the reward's weight must be finite, got {weight}")
        if not isinstance(inverted, bool):
            raise TypeError(f"invert must be True or False, got {inverted!r}")
        self.reward, self.tokenizer, self.label = reward, tokenizer, label
        self.trust_remote_code = trust_remote_code
        self.support, self.weight, self.inverted = TopK(k), float(weight), inverted

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """``w link(r(x, t))`` on the base's top-k tokens.

        Raises:
            ValueError: if the reward model or its tokenizer cannot be loaded or read; names it.
        """
        reward, own = self._loaded(model)
        name, k = f"the reward model {model_name(reward)}", self.support.k
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
        """The reward model, and its tokenizer or None where it is unknown."""
        reward, own, trust = self.reward, self.tokenizer, self.trust_remote_code
        if isinstance(reward, (str, Path)):
            own = tokenizer_beside(reward) if own is None else own
            reward = load_reward(reward, base, trust_remote_code=trust)
        if isinstance(own, (str, Path)):
            with loading("the reward model's tokenizer", own):
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
