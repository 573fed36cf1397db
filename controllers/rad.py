"""RAD: a reward model of prefixes weighs the base's best candidates.

``log p' = log p + beta clamp(r(x, t), 0, 1)`` on the base's top-k tokens (Deng and Raffel 2023,
"Reward-augmented decoding", algorithm 1), with ``1 - r`` where less is better, toxicity say. The
reward model looks back only, and is trained with the squared error on all prefixes of a text, whose
rewards lie in [0, 1].
"""

from __future__ import annotations

from typing import Any, Unpack

from plugalign.controllers.reward_guided import (
    Reward,
    RewardGuided,
    RewardOptions,
    RewardSettings,
)


class RADSettings(RewardSettings):
    """Support, label, strength and direction."""

    beta: float
    invert: bool


class RAD(RewardGuided):
    """Steers by a reward in [0, 1] over the base's top-k candidates.

    Args:
        reward, k, options: see `plugalign.controllers.reward_guided.RewardGuided`.
        beta: strength; the paper takes 10 to 50.
        invert: whether 1 - r is the reward: less is better.

    Raises:
        TypeError, ValueError: as `RewardGuided` does.
    """

    name = "rad"
    settings = RADSettings
    link = "clamp"

    def __init__(
        self,
        reward: Reward,
        *,
        k: int = 20,
        beta: float = 30.0,
        invert: bool = False,
        **options: Unpack[RewardOptions],
    ):
        super().__init__(reward, k=k, weight=beta, inverted=invert, **options)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "beta": self.weight, "invert": self.inverted}
