"""FUDGE without a second model: a bilinear head on the base's own hidden states.

The base has read the prefix already, so the attribute of every next token is scored from its last
hidden state ``h`` and the token's output embedding ``e_t``, with no forward of its own::

    s(x, t) = (e_t L) . (R^T h) + c_t + w . h + b        P(a | x, t) = sigmoid(s(x, t))
    p'(t | x) ~ p(t | x) P(a | x, t)^lambda on the base's top-k tokens

This is Yang and Klein's (2021) equation 2 with a predictor of low rank r.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import Identity
from plugalign.algebra.saving import Settings
from plugalign.algebra.shifts import HeadAttribute
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import TopK


class FudgeHeadSettings(Settings):
    """Support, strength and the model that the head reads."""

    k: int
    weight: float
    fitted_for: Identity | None


class FudgeHead(Controller):
    """Steers by an attribute head on the base's hidden states.

    Args:
        left: ``(D, r)``, reads the candidate's output embedding.
        right: ``(D, r)``, reads the hidden state.
        token_bias: ``(V,)``, the attribute of each token by itself.
        state: ``(D,)``, the attribute of the prefix by itself.
        offset: the logit of an average prefix and token.
        k: number of the base's best tokens that stay possible.
        weight: lambda; 1 is Bayes' rule, more steers harder.
        fitted_for: the model whose hidden states the head reads.

    Raises:
        ValueError: for shapes that do not fit each other, k below 1, or a weight or offset that is
            not finite.
    """

    name = "fudge_head"
    settings = FudgeHeadSettings
    learned: ClassVar[Mapping[str, int]] = {
        "left": 2,
        "right": 2,
        "token_bias": 1,
        "state": 1,
        "offset": 0,
    }

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        token_bias: Tensor,
        state: Tensor,
        offset: float,
        *,
        k: int = 200,
        weight: float = 1.0,
        fitted_for: Identity | None = None,
    ):
        if left.shape != right.shape or left.shape[:1] != state.shape:
            raise ValueError(
                f"left {tuple(left.shape)}, right {tuple(right.shape)} and state "
                f"{tuple(state.shape)} must be (D, r), (D, r) and (D,)"
            )
        for what, number in (("weight", weight), ("offset", offset)):
            if not math.isfinite(number):
                raise ValueError(f"the {what} must be finite, got {number}")
        self.left, self.right, self.token_bias = left, right, token_bias
        self.state, self.offset = state, float(offset)
        self.support, self.weight = TopK(k), float(weight)
        self.fitted_for = fitted_for

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """``lambda log P(a | x, t)`` of every token, on the base's top-k tokens.

        Raises:
            ValueError: if the head was fitted for another model.
        """
        if self.fitted_for is not None:
            self.fitted_for.check(model, tokenizer, needs="weights", what="the FUDGE head")
        embedding = model.get_output_embeddings().weight.detach().float()
        expected = (*self.token_bias.shape, *self.state.shape)
        if tuple(embedding.shape) != expected:
            raise ValueError(
                f"the FUDGE head was fitted for {expected} tokens and hidden units, but the model "
                f"has {tuple(embedding.shape)}; fit one for this model"
            )
        device = embedding.device
        shift = HeadAttribute(
            left=embedding @ self.left.to(device),
            right=self.right.to(device),
            token_bias=self.token_bias.to(device),
            state=self.state.to(device),
            offset=self.offset,
            weight=self.weight,
        )
        return Steering((shift,), (self.support,))

    def config(self) -> dict[str, Any]:
        fitted = None if self.fitted_for is None else self.fitted_for.to_dict()
        return {"k": self.support.k, "weight": self.weight, "fitted_for": fitted}

    def tensors(self) -> dict[str, Tensor]:
        return {
            "left": self.left,
            "right": self.right,
            "token_bias": self.token_bias,
            "state": self.state,
            "offset": torch.tensor(self.offset, dtype=torch.float64),
        }

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        fitted = config["fitted_for"]
        offset = float(tensors.pop("offset"))
        return cls(
            **tensors,
            offset=offset,
            k=config["k"],
            weight=config["weight"],
            fitted_for=None if fitted is None else Identity.from_dict(fitted),
        )
