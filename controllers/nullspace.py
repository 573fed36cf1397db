"""Nullspace projection: a concept leaves the hidden state before the head reads it.

The head reads ``h' = h - removed @ read^T (h - center)``, so with the output embedding ``E`` the
logits change by ``-(E removed)(read^T (h - center))``, a rank-r shift; the head never runs twice.

* INLP (Ravfogel et al. 2020): ``removed = read = U``, an orthonormal basis of what linear
  classifiers find; ``strength`` is ``1 - alpha`` in ``h' = alpha h + (1 - alpha) P h``.
* A-INLP (Liang et al. 2021, section 4.2): the same with an alpha for each step, from how
  sensitive the base's likely tokens are along ``guide``.
* LEACE (Belrose et al. 2023, theorem 4.3): ``removed = W^-1 U``, ``read = W U``, ``center`` the
  mean, with W the whitening matrix: the smallest change after which no linear probe does better
  than a constant.
* Direction projection (Bolukbasi et al. 2016): INLP's form with the first principal direction of
  definitional pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import Identity, model_name
from plugalign.algebra.saving import Settings
from plugalign.algebra.shifts import Adaptive, LowRank
from plugalign.algebra.steering import Steering
from plugalign.engine.readers.heads import head_input

TOLERANCE = 1e-3  # on read^T removed = I, after a round trip through float32


class NullspaceSettings(Settings):
    """Strength, A-INLP's rule and the model that the subspace was fitted for."""

    strength: float
    top_p: float
    low: float
    high: float
    floor: float
    fitted_for: Identity | None


class Nullspace(Controller):
    """Removes a subspace from what the LM head reads.

    Args:
        removed: ``(D, r)``, a basis of what is taken out.
        read: ``(D, r)`` with ``read^T removed = I``, so that removing twice is removing once;
            None takes ``removed`` itself, which must then be orthonormal.
        center: ``(D,)``, the hidden state that stays as it is; None is the origin.
        guide: ``(D,)``, the direction of the concept among output embeddings. With it the
            strength adapts at every step (A-INLP).
        strength: 0 is the identity, 1 removes the subspace.
        top_p: A-INLP's likely tokens. low, high: between them the sensitivity is harmless.
        floor: the smallest share of the hidden state that A-INLP keeps.
        fitted_for: the model that the subspace was fitted for.

    Raises:
        ValueError: for shapes that do not fit, a pair that is no projection, a guide without a
            direction, numbers that are not finite, or settings out of range.
    """

    name = "nullspace"
    settings = NullspaceSettings
    learned: ClassVar[Mapping[str, int]] = {"removed": 2}
    optional: ClassVar[Mapping[str, int]] = {"read": 2, "center": 1, "guide": 1}

    def __init__(
        self,
        removed: Tensor,
        read: Tensor | None = None,
        center: Tensor | None = None,
        guide: Tensor | None = None,
        *,
        strength: float = 1.0,
        top_p: float = 0.7,
        low: float = -0.1,
        high: float = 0.15,
        floor: float = 0.6,
        fitted_for: Identity | None = None,
    ):
        _check_projection(removed, removed if read is None else read)
        for what, vector in (("center", center), ("guide", guide)):
            _check_vector(what, vector, len(removed))
        if guide is not None and not (length := float(guide.float().norm())) > 0:
            raise ValueError(
                f"the guide must be a direction, got one of length {length:g}; leave it out for "
                "the same strength at every step"
            )
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"the strength must not be negative, got {strength}")
        if not (0 < top_p <= 1 and 0 <= floor <= 1 and low <= high):
            raise ValueError(
                "A-INLP needs 0 < top_p <= 1, 0 <= floor <= 1 and low <= high, got "
                f"{top_p=}, {floor=}, {low=}, {high=}"
            )
        self.removed, self.read, self.center, self.guide = removed, read, center, guide
        self.strength, self.top_p, self.floor = float(strength), float(top_p), float(floor)
        self.low, self.high = float(low), float(high)
        self.fitted_for = fitted_for

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """The projection carried to the logits, as a `LowRank` shift in float32.

        Raises:
            ValueError: if it was fitted for another model, or the model's logits are not a linear
                map of what its head reads.
        """
        if self.fitted_for is not None:
            self.fitted_for.check(model, tokenizer, needs="weights", what="this nullspace")
        embedding = output_embedding(model)
        if embedding.shape[1] != self.removed.shape[0]:
            raise ValueError(
                f"this nullspace is for hidden states of width {self.removed.shape[0]}, but "
                f"'{model_name(model)}' has {embedding.shape[1]}"
            )
        left = embedding @ self.removed.to(embedding)
        right = (self.removed if self.read is None else self.read).to(embedding)
        center = None if self.center is None else self.center.to(embedding)
        alpha = 0.0 if self.guide is None else self._adaptive(embedding)
        return Steering((LowRank(left, right, center, alpha, weight=self.strength),))

    def _adaptive(self, embedding: Tensor) -> Adaptive:
        """A-INLP's rule; the sensitivity of token t is ``e_t . g / |e_t|`` with ``|g| = 1``."""
        assert self.guide is not None
        guide = self.guide.to(embedding)
        norms = embedding.norm(dim=1).clamp_min(torch.finfo(embedding.dtype).tiny)
        sensitivity = embedding @ (guide / guide.norm()) / norms
        return Adaptive(sensitivity, self.top_p, self.low, self.high, self.floor)

    def config(self) -> dict[str, Any]:
        fitted = None if self.fitted_for is None else self.fitted_for.to_dict()
        keys = ("strength", "top_p", "low", "high", "floor")
        return {**{key: getattr(self, key) for key in keys}, "fitted_for": fitted}

    def tensors(self) -> dict[str, Tensor]:
        named = {key: getattr(self, key) for key in ("removed", "read", "center", "guide")}
        return {key: tensor for key, tensor in named.items() if tensor is not None}

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        fitted = config.pop("fitted_for", None)
        identity = None if fitted is None else Identity.from_dict(fitted)
        return cls(**{**config, **tensors, "fitted_for": identity})


@torch.no_grad()
def output_embedding(model: Any) -> Tensor:
    """The output embedding ``E`` ``(V, D)`` in float32.

    Raises:
        ValueError: if the logits are not ``E h`` plus a bias, as with a soft cap or a scale.
    """
    head = model.get_output_embeddings()
    with head_input(model) as seen:
        # Several tokens, since the state behind a padding token may be zero.
        tokens = torch.linspace(0, len(head.weight) - 1, 8, device=model.device).long()
        logits = model(input_ids=tokens[None]).logits
    if not torch.allclose(logits.float(), head(seen[0]).float(), rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"'{model_name(model)}' scales or caps its logits behind the head, so a projection of "
            "the hidden state is no low-rank shift of them; nullspace cannot steer it"
        )
    weight: Tensor = head.weight
    return weight.detach().float()


def _check_vector(what: str, vector: Tensor | None, width: int) -> None:
    if vector is None:
        return
    if vector.shape != (width,):
        raise ValueError(f"the {what} must be ({width},), got {tuple(vector.shape)}")
    if not math.isfinite(float(vector.float().norm())):
        raise ValueError(f"the {what} must be finite, got a length of {vector.float().norm():g}")


def _check_projection(removed: Tensor, read: Tensor) -> None:
    if removed.ndim != 2 or removed.shape != read.shape or not 0 < removed.shape[1] <= len(removed):
        raise ValueError(
            "the removed subspace needs a basis (D, r) with 1 <= r <= D and a reading of the same "
            f"shape, got {tuple(removed.shape)} and {tuple(read.shape)}"
        )
    product = read.double().T @ removed.double()
    identity = torch.eye(len(product), dtype=product.dtype, device=product.device)
    if not torch.allclose(product, identity, rtol=0, atol=TOLERANCE):
        raise ValueError(
            "read^T removed must be the identity, or removing twice is not removing once; "
            "orthonormalise the directions (torch.linalg.qr)"
        )
