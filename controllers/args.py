"""ARGS: alignment as reward-guided search.

``log p' = log p + w r(x, t)`` on the base's top-k tokens (Khanov et al. 2024), with the
unbounded reward of a Bradley-Terry model: at every step the optimum of RLHF whose penalty on the
divergence from the base is ``1 / w``. ARGS-greedy is greedy decoding; ARGS-stochastic is sampling
at temperature 0.7.
"""

from __future__ import annotations

from typing import Any, Unpack

from plugalign.controllers.reward_guided import (
    Reward,
    RewardGuided,
    RewardOptions,
    RewardSettings,
)


class ARGSSettings(RewardSettings):
    """Support, label and strength."""

    weight: float


class ARGS(RewardGuided):
    """Steers by a reward model over the base's top-k candidates.

    Args:
        reward, k, options: see `plugalign.controllers.reward_guided.RewardGuided`.
        weight: w, which is 1 in the paper.

    Raises:
        TypeError, ValueError: as `RewardGuided` does.
    """

    name = "args"
    settings = ARGSSettings
    link = "identity"

    def __init__(
        self,
        reward: Reward,
        *,
        k: int = 10,
        weight: float = 1.0,
        **options: Unpack[RewardOptions],
    ):
        super().__init__(reward, k=k, weight=weight, **options)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "weight": self.weight}
