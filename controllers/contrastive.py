"""Contrasts with a small model: contrastive decoding and proxy tuning.

Contrastive decoding leaves out what an amateur would say as well, ``log p' = log p - beta log
p_amateur`` on the tokens with ``p >= alpha max p`` (Li et al. 2023, "Contrastive decoding:
open-ended text generation as optimization", equation 2). What the paper writes as a temperature tau
of the amateur is ``beta = 1 / tau``, since its normaliser does not matter.

Proxy tuning carries what a small model has learned over to a large one, ``log p' = log p + alpha
(log p_tuned - log p_untuned)`` on all tokens (Liu et al. 2024, "Tuning language models by proxy").
"""

from __future__ import annotations

import math
from typing import Any, Self

from torch import Tensor

from plugalign.algebra.shifts import LogLinear
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import MinP
from plugalign.controllers.dexperts import DExperts
from plugalign.controllers.with_models import (
    Model,
    ModelSettings,
    WithModels,
    check_model,
    loaded_logits,
)


class ContrastiveSettings(ModelSettings):
    """Support and strength."""

    alpha: float
    beta: float


class ContrastiveDecoding(WithModels):
    """Steers away from what a weaker model says.

    Args:
        amateur: a causal language model with the base's tokenizer, a folder or hub id of one, or a
            folder of a LoRA adapter of the base.
        alpha: tokens less than ``alpha`` times as probable as the base's best one are left out,
            before mixing.
        beta: strength.
        trust_remote_code: whether code that comes with the amateur's folder or hub id may run.

    Raises:
        TypeError: for an amateur that is no model.
        ValueError: for ``alpha`` outside [0, 1] or ``beta`` that is not finite.
    """

    name = "contrastive"
    settings = ContrastiveSettings

    def __init__(
        self,
        amateur: Model,
        *,
        alpha: float = 0.1,
        beta: float = 1.0,
        trust_remote_code: bool = False,
    ):
        check_model(amateur, "the amateur")
        if not math.isfinite(beta):
            raise ValueError(f"beta must be finite, got {beta}")
        self.amateur, self.trust_remote_code = amateur, trust_remote_code
        self.beta, self.support = float(beta), MinP(alpha)

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """``-beta log p_amateur`` where ``p >= alpha max p``.

        Raises:
            ValueError: if the amateur cannot be loaded, or has another tokenizer than the base;
                names it.
        """
        amateur = loaded_logits(
            self.amateur, model, tokenizer, "the amateur", trust_remote_code=self.trust_remote_code
        )
        return Steering((LogLinear(((-1.0, amateur),), weight=self.beta),), (self.support,))

    def models(self) -> dict[str, Model]:
        return {"amateur": self.amateur}

    def config(self) -> dict[str, Any]:
        return {**super().config(), "alpha": self.support.p, "beta": self.beta}

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        own = {name: config[name] for name in ("alpha", "beta", "trust_remote_code")}
        return cls(**own, **parts)


def proxy_tuning(tuned: Model, untuned: Model, *, alpha: float = 1.0) -> DExperts:
    """DExperts without support, as proxy tuning: the difference of a small model before and after
    its tuning.

    Args:
        tuned, untuned: models with the base's tokenizer, or folders or hub ids of them.
        alpha: strength.

    Raises:
        TypeError: for something that is no model.
    """
    check_model(tuned, "the tuned model")
    check_model(untuned, "the untuned model")
    return DExperts(tuned, untuned, alpha=alpha, top_p=1.0)
