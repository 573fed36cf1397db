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
from plugalign.controller import Controller
from plugalign.controllers.dexperts import DExperts
from plugalign.controllers.lm_arithmetic import Model, check_model, hub_id, loaded_logits


class ContrastiveDecoding(Controller):
    """Steers away from what a weaker model says.

    Args:
        amateur: a causal language model with the base's tokenizer, a folder or hub id of one, or a
            folder of a LoRA adapter of the base.
        alpha: tokens less than ``alpha`` times as probable as the base's best one are left out,
            before mixing.
        beta: strength.

    Raises:
        TypeError: for an amateur that is no model.
        ValueError: for ``alpha`` outside [0, 1] or ``beta`` that is not finite.
    """

    name = "contrastive"

    def __init__(self, amateur: Model, *, alpha: float = 0.1, beta: float = 0.5):
        check_model(amateur, "the amateur")
        if not math.isfinite(beta):
            raise ValueError(f"beta must be finite, got {beta}")
        self.amateur, self.beta, self.support = amateur, float(beta), MinP(alpha)

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """``-beta log p_amateur`` where ``p >= alpha max p``.

        Raises:
            ValueError: if the amateur has another tokenizer than the base; names both.
        """
        amateur = loaded_logits(self.amateur, model, tokenizer, "the amateur")
        return Steering((LogLinear(((-1.0, amateur),), weight=self.beta),), (self.support,))

    def config(self) -> dict[str, Any]:
        return {"alpha": self.support.p, "beta": self.beta, "amateur": hub_id(self.amateur)}

    def saved_parts(self) -> dict[str, Any]:
        return {"amateur": self.amateur} if hub_id(self.amateur) is None else {}

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        return cls(**{**config, **parts})


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
