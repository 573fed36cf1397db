"""ARGS: alignment as reward-guided search.

``log p' = log p + w r(x, t)`` on the base's top-k tokens (Khanov et al. 2024), with the
unbounded reward of a Bradley-Terry model: at every step the optimum of RLHF whose penalty on the
divergence from the base is ``1 / w``. ARGS-greedy is greedy decoding; ARGS-stochastic is sampling
at temperature 0.7.
"""

from __future__ import annotations

from typing import Any

from plugalign.controllers.reward_guided import Reward, RewardGuided, RewardSettings


class ARGSSettings(RewardSettings):
    """Support, label and strength."""

    weight: float


class ARGS(RewardGuided):
    """Steers by a reward model over the base's top-k candidates.

    Args:
        reward: a Hugging Face sequence classifier in eval mode, or a folder or hub id of one. A
            causal one with one label and the base's tokenizer reads candidates behind a cached
            prefix; any other reads texts.
        tokenizer: the reward model's, or a folder or hub id of it. By default the one beside the
            reward model; where there is none (a model that is given as an object, a folder without
            tokenizer) the base's.
        k: number of the base's best tokens that stay possible and are scored.
        weight: w, which is 1 in the paper.
        label: the label whose probability is the reward, for a classifier with several.
        trust_remote_code: whether code that comes with a folder or hub id may run.

    Raises:
        TypeError: for a reward that is neither a sequence classifier nor a name.
        ValueError: for k below 1 or a weight that is not finite.
    """

    name = "args"
    settings = ARGSSettings
    link = "identity"

    def __init__(
        self,
        reward: Reward,
        *,
        tokenizer: Any = None,
        k: int = 10,
        weight: float = 1.0,
        label: str | None = None,
        trust_remote_code: bool = False,
    ):
        super().__init__(
            reward,
            tokenizer=tokenizer,
            k=k,
            weight=weight,
            label=label,
            trust_remote_code=trust_remote_code,
        )

    def config(self) -> dict[str, Any]:
        return {**super().config(), "weight": self.weight}
