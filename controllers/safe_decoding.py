"""SafeDecoding: at the start of an answer, where it is decided whether to refuse, a safety expert
is amplified.

For the first m tokens the probabilities of the base and of an expert that was tuned to refuse
harmful requests are extrapolated, on tokens that both hold likely; then the base goes on by itself
(Xu et al. 2024, "SafeDecoding: Defending against Jailbreak Attacks via Safety-Aware Decoding",
section 4)::

    V_c      = top-k(p) and top-k(p_expert) in common, for the least k that leaves c tokens
    p'(t)    ~ max(p(t) + alpha (p_expert(t) - p(t)), floor)    for t in V_c
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor

from plugalign.algebra.gates import FirstSteps
from plugalign.algebra.identity import Identity
from plugalign.algebra.shifts import Shift
from plugalign.algebra.sources import Logits, Source, Step
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import Support
from plugalign.controllers.with_models import (
    Model,
    ModelSettings,
    WithModels,
    check_model,
    loaded_logits,
)
from plugalign.kernels.head import full
from plugalign.kernels.terms.probability_mix import ProbabilityMix
from plugalign.kernels.terms.term import Term, Weight


@dataclass(frozen=True, eq=False)
class Amplified(Shift):
    """``delta(t) = log max(p(t) + alpha (p_expert(t) - p(t)), floor) - log p(t)``."""

    expert: Logits
    alpha: float
    floor: float

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.expert,)

    def terms(self, step: Step, weight: Weight) -> Iterable[Term]:
        yield ProbabilityMix(step.read(self.expert), self.alpha, self.floor, weight)


@dataclass(frozen=True)
class CommonTop(Support):
    """What the k best tokens of the base and of an expert have in common, for the least k that
    leaves ``count`` tokens; it may leave one more. Of equals the smaller token id ranks first."""

    expert: Logits
    count: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.expert,)

    def mask(self, step: Step) -> Tensor:
        # A token is among both models' k best if the worse of its two ranks is below k.
        worse = torch.maximum(ranks(step.base), ranks(full(step.read(self.expert))))
        count = min(self.count, worse.shape[-1])
        return worse <= worse.kthvalue(count, dim=-1, keepdim=True).values


def ranks(logits: Tensor) -> Tensor:
    """The place of each token of logits ``(R, V)``, 0 for the best, int64 ``(R, V)``."""
    order = logits.float().sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


class SafeDecodingSettings(ModelSettings):
    """Strength, when and where it acts, and the base that an adapter was made from."""

    alpha: float
    first_steps: int = Field(ge=1)
    least_common: int = Field(ge=1)
    floor: float
    fitted_for: Identity | None


class SafeDecoding(WithModels):
    """Amplifies a safety expert at the start of an answer.

    The paper decodes greedily. Where text stands in front of the answer that the model wrote by
    itself (a prefilled turn), it is part of the prompt and not counted.

    Args:
        expert: a model with the base's tokenizer, a folder (or hub id) of one, or a folder of a
            LoRA adapter of the base.
        alpha: strength; 0 is the base on the common tokens, 1 the expert.
        first_steps: m, so many tokens of an answer are steered.
        least_common: c, the fewest tokens that stay possible in these steps.
        floor: the probability of a token that the extrapolation leaves with less, before
            normalisation.
        fitted_for: the base that the expert was made from, where it is an adapter.
        trust_remote_code: whether code that comes with the expert's folder or hub id may run.

    Raises:
        TypeError: for an expert that is no model.
        ValueError: for a number outside its range.
    """

    name = "safe_decoding"
    settings = SafeDecodingSettings

    def __init__(
        self,
        expert: Model,
        *,
        alpha: float = 3.0,
        first_steps: int = 2,
        least_common: int = 5,
        floor: float = 1e-8,
        fitted_for: Identity | None = None,
        trust_remote_code: bool = False,
    ):
        check_model(expert, "SafeDecoding's expert")
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha must be finite and not negative, got {alpha}")
        if isinstance(least_common, bool) or not isinstance(least_common, int) or least_common < 1:
            raise ValueError(f"least_common must be an int of at least 1, got {least_common!r}")
        if not 2.0**-126 <= floor <= 1:
            raise ValueError(f"the floor must lie in [2**-126, 1], got {floor}")
        self.expert, self.alpha, self.floor = expert, float(alpha), float(floor)
        self.gate, self.least_common = FirstSteps(first_steps), least_common
        self.fitted_for, self.trust_remote_code = fitted_for, trust_remote_code

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """The extrapolated probabilities on the common tokens, at the first steps.

        Raises:
            ValueError: if the expert has another tokenizer than the base, or is an adapter of
                another model.
        """
        expert = loaded_logits(
            self.expert,
            model,
            tokenizer,
            "safety expert",
            trust_remote_code=self.trust_remote_code,
            fitted_for=self.fitted_for,
        )
        shift = Amplified(expert, self.alpha, self.floor)
        return Steering((shift,), (CommonTop(expert, self.least_common),)).behind(self.gate)

    def models(self) -> dict[str, Model]:
        return {"expert": self.expert}

    def config(self) -> dict[str, Any]:
        return {
            **super().config(),
            "alpha": self.alpha,
            "first_steps": self.gate.count,
            "least_common": self.least_common,
            "floor": self.floor,
            "fitted_for": None if self.fitted_for is None else self.fitted_for.to_dict(),
        }

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        fitted = config["fitted_for"]
        return cls(
            parts["expert"],
            alpha=config["alpha"],
            first_steps=config["first_steps"],
            least_common=config["least_common"],
            floor=config["floor"],
            fitted_for=None if fitted is None else Identity.from_dict(fitted),
            trust_remote_code=config["trust_remote_code"],
        )
