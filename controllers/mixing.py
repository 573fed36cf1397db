"""Geometric mixtures of aligned models: DeRA and MOD, as formulas of language-model arithmetic.

DeRA moves between a reference and its aligned version, ``log p' = (1 - lambda) log p_ref + lambda
log p_aligned``, which is what alignment with another penalty on the divergence would have given
(Liu et al. 2024, "Decoding-time realignment of language models"). MOD weighs models that are
aligned with several objectives, ``log p' = sum_i w_i log p_i`` with ``sum_i w_i = 1`` (Shi et al.
2024, "Decoding-time language model alignment with multiple objectives", for the reverse KL
divergence).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

from plugalign.algebra.adjusting import checked_settings
from plugalign.controllers.lm_arithmetic import Formula, LMArithmetic, is_same, lm
from plugalign.controllers.with_models import Model

TOLERANCE = 1e-6


class DeRA(LMArithmetic):
    """Decodes between the base and its aligned version, or beyond.

    Args:
        aligned: the base after alignment: a model, a folder or hub id of one, or a folder of a LoRA
            adapter of the base.
        weight: lambda; 0 is the base, 1 the aligned model, more extrapolates.
        trust_remote_code: whether code that comes with the model's folder or hub id may run.

    Raises:
        TypeError: for something that is no model, or a weight that is no number.
        ValueError: for a weight that is not finite.
    """

    name = "dera"

    def __init__(self, aligned: Model, *, weight: float, trust_remote_code: bool = False):
        if aligned is None:
            raise TypeError("DeRA needs the aligned model, got None")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise TypeError(f"DeRA's weight must be a number, got {weight!r:.60}")
        formula = (1 - weight) * lm() + weight * lm(aligned)
        super().__init__(formula, trust_remote_code=trust_remote_code)

    @classmethod
    def from_formula(cls, formula: Formula, trust_remote_code: bool) -> Self:
        aligned = formula.summands[-1]
        model = aligned.operands[0].model
        return cls(model, weight=aligned.weight, trust_remote_code=trust_remote_code)

    def adjustable(self) -> Mapping[str, Any]:
        return {"weight": float}

    def with_settings(self, **changes: Any) -> Self:
        aligned = self.formula.summands[-1]
        found = {"weight": aligned.weight}
        found |= checked_settings(self.display_name, self.adjustable(), changes)
        model, trust = aligned.operands[0].model, self.trust_remote_code
        made = type(self)(model, weight=found["weight"], trust_remote_code=trust)
        object.__setattr__(made, "provenance", self.provenance)
        return made


class MOD(LMArithmetic):
    """Decodes from several models at once, each aligned with an objective of its own.

    Args:
        weights: by model (None for the base; see `lm`), what its objective counts. They add up
            to 1.
        trust_remote_code: whether code that comes with a model's folder or hub id may run.

    Raises:
        TypeError: for something that is no model, or a weight that is no number.
        ValueError: if the weights do not add up to 1, or a model is there twice.
    """

    name = "mod"

    def __init__(self, weights: Mapping[Model, float], *, trust_remote_code: bool = False):
        if not isinstance(weights, Mapping):
            raise TypeError(f"MOD needs weights by model, got {type(weights).__name__}")
        for weight in weights.values():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise TypeError(f"MOD's weights must be numbers, got {weight!r:.60}")
        total = math.fsum(weights.values())
        if not abs(total - 1) <= TOLERANCE:
            raise ValueError(f"MOD's weights must add up to 1, got {total:g}; divide them by it")
        models = list(weights)
        for i, model in enumerate(models):
            if any(is_same(model, other) for other in models[:i]):
                raise ValueError(f"MOD has the model {str(model)!r} twice; add up its weights")
        terms = [weight * lm(model) for model, weight in weights.items()]
        super().__init__(sum(terms[1:], terms[0]), trust_remote_code=trust_remote_code)

    @classmethod
    def from_formula(cls, formula: Formula, trust_remote_code: bool) -> Self:
        weights = {summand.operands[0].model: summand.weight for summand in formula.summands}
        return cls(weights, trust_remote_code=trust_remote_code)
