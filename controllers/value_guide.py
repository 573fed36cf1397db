"""Steering by a value discriminator on the base's own states, as a guide and as a gate.

``log p' = log p + lambda log P(v | x, t)`` on the base's top-k tokens (Bayes' rule at lambda = 1,
as in Yang and Klein 2021, equation 2), where P(v | x, t) is the probability that the text with the
candidate t conforms to the value v; see `plugalign.controllers.value_head`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.gates import Gate
from plugalign.algebra.identity import Identity
from plugalign.algebra.saving import Settings
from plugalign.algebra.shifts import CandidateShift
from plugalign.algebra.sources import Source, Step
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import TopK
from plugalign.controllers.value_head import ValueHead, ValueOfCandidates, ValueOfText


class ValueGuideSettings(Settings):
    """Statement, layer, support, strength, side and the model whose states the head reads."""

    statement: str
    layer: Annotated[int, Field(ge=1, le=10_000)]
    k: int
    weight: float
    breaks: bool
    fitted_for: Identity | None


class ValueGuide(Controller):
    """Steers by how probable it is that a text conforms to a value, over the base's top-k
    candidates.

    Args:
        head: of a value discriminator that was fitted on the model to steer; see
            `plugalign.values.discriminator.guiding.guide`.
        k: number of the base's best tokens that stay possible and are scored.
        weight: lambda; 1 is Bayes' rule, more steers harder.
        breaks: whether it steers by the probability that the text breaks the value.

    Raises:
        ValueError: for k below 1 or a weight that is not finite.
    """

    name = "value_guide"
    settings = ValueGuideSettings
    learned: ClassVar[Mapping[str, int]] = {"weights": 1, "offset": 0}

    def __init__(self, head: ValueHead, *, k: int = 50, weight: float = 60.0, breaks: bool = False):
        if not math.isfinite(weight):
            raise ValueError(f"the guide's weight must be finite, got {weight}")
        self.head, self.breaks = head, breaks
        self.support, self.weight = TopK(k), float(weight)

    @property
    def fitted_for(self) -> Identity | None:
        """The model whose states the head reads."""
        return self.head.fitted_for

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """``lambda log P(v | x, t)`` on the base's top-k tokens.

        Raises:
            ValueError: if the head was fitted on another model.
        """
        bound = self.head.bound(model, tokenizer)
        name = f"the value {self.head.statement!r}"
        scores = ValueOfCandidates(name, bound, self.support.k, breaks=self.breaks)
        return Steering(
            (CandidateShift(scores, "logsigmoid", weight=self.weight),), (self.support,)
        )

    def adjustable(self) -> Mapping[str, Any]:
        """As `Controller.adjustable`, without the layer, whose states the head was fitted on."""
        return {name: kind for name, kind in super().adjustable().items() if name != "layer"}

    def config(self) -> dict[str, Any]:
        fitted = self.head.fitted_for
        return {
            "statement": self.head.statement,
            "layer": self.head.layer,
            "k": self.support.k,
            "weight": self.weight,
            "breaks": self.breaks,
            "fitted_for": None if fitted is None else fitted.to_dict(),
        }

    def tensors(self) -> dict[str, Tensor]:
        offset = torch.tensor(self.head.offset, dtype=torch.float64)
        return {"weights": self.head.weights, "offset": offset}

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        fitted = config["fitted_for"]
        head = ValueHead(
            config["statement"],
            config["layer"],
            tensors["weights"],
            float(tensors["offset"]),
            None if fitted is None else Identity.from_dict(fitted),
        )
        return cls(head, k=config["k"], weight=config["weight"], breaks=config["breaks"])


@dataclass(frozen=True)
class ValueGate(Gate):
    """Open where the text so far, prompt and answer, breaks a value.

    It costs one forward of the layers below the head a step, over the new token. Gates of equal
    heads and thresholds are equal, also when each was loaded by itself: they share that forward.

    Args:
        head: see `ValueGuide`.
        threshold: open from this P(breaks) on.

    Raises:
        ValueError: for a threshold outside (0, 1].
    """

    head: ValueHead
    threshold: float = 0.5
    name: ClassVar[str] = "value"

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"the threshold is a probability in (0, 1], got {self.threshold}")

    def open(self, step: Step) -> Tensor:
        raise TypeError(f"{self} does not know its model yet; `bound` gives one that does")

    def bound(self, model: object, tokenizer: object) -> BoundValueGate:
        source = ValueOfText(
            f"the value {self.head.statement!r}", self.head.bound(model, tokenizer)
        )
        return BoundValueGate(source, self.threshold)

    def config(self) -> dict[str, Any]:
        fitted = self.head.fitted_for
        return {
            "statement": self.head.statement,
            "layer": self.head.layer,
            "weights": self.head.weights.tolist(),
            "offset": self.head.offset,
            "fitted_for": None if fitted is None else fitted.to_dict(),
            "threshold": self.threshold,
        }

    @classmethod
    def build(cls, config: dict[str, Any]) -> Self:
        own = dict(config)
        threshold, fitted = own.pop("threshold"), own.pop("fitted_for")
        own["weights"] = torch.tensor(own["weights"])
        fitted = None if fitted is None else Identity.from_dict(fitted)
        return cls(ValueHead(**own, fitted_for=fitted), threshold)


@dataclass(frozen=True)
class BoundValueGate(Gate):
    """A `ValueGate` with the layers of one model."""

    source: ValueOfText
    threshold: float

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.source,)

    def open(self, step: Step) -> Tensor:
        breaks = torch.sigmoid(-step.read(self.source))
        return torch.where(breaks.isnan(), breaks, (breaks >= self.threshold).float())
