"""RAD: a reward model of prefixes weighs the base's best candidates.

``log p' = log p + beta clamp(r(x, t), 0, 1)`` on the base's top-k tokens (Deng and Raffel 2023,
"Reward-augmented decoding", algorithm 1), with ``1 - r`` where less is better, toxicity say. The
reward model looks back only, and is trained with the squared error on all prefixes of a text, whose
rewards lie in [0, 1].
"""

from __future__ import annotations

from typing import Any

from plugalign.controllers.reward_guided import Reward, RewardGuided, RewardSettings


class RADSettings(RewardSettings):
    """Support, label, strength and direction."""

    beta: float
    invert: bool


class RAD(RewardGuided):
    """Steers by a reward in [0, 1] over the base's top-k candidates.

    Args:
        reward: a Hugging Face sequence classifier in eval mode, or a folder or hub id of one. A
            causal one with one label and the base's tokenizer reads candidates behind a cached
            prefix; any other reads texts.
        tokenizer: the reward model's, or a folder or hub id of it. By default the one beside the
            reward model; where there is none (a model that is given as an object, a folder without
            tokenizer) the base's.
        k: number of the base's best tokens that stay possible and are scored.
        beta: strength; the paper takes 10 to 50.
        invert: whether 1 - r is the reward: less is better.
        label: the label whose probability is the reward, for a classifier with several.
        trust_remote_code: whether code that comes with a folder or hub id may run.

    Raises:
        TypeError: for a reward that is neither a sequence classifier nor a name.
        ValueError: for k below 1 or a beta that is not finite.
    """

    name = "rad"
    settings = RADSettings
    link = "clamp"

    def __init__(
        self,
        reward: Reward,
        *,
        tokenizer: Any = None,
        k: int = 20,
        beta: float = 30.0,
        invert: bool = False,
        label: str | None = None,
        trust_remote_code: bool = False,
    ):
        super().__init__(
            reward,
            tokenizer=tokenizer,
            k=k,
            weight=beta,
            inverted=invert,
            label=label,
            trust_remote_code=trust_remote_code,
        )

    def config(self) -> dict[str, Any]:
        return {**super().config(), "beta": self.weight, "invert": self.inverted}
