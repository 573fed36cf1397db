"""What all controllers together ask of a step of one model, known before anything runs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from plugalign.controller import Controller
from plugalign.engine.grouped import Groups
from plugalign.kernels.truncation import Truncation
from plugalign.steering import (
    BASE,
    BiasDecay,
    HeadAttribute,
    LogLinear,
    MinP,
    ModelLogits,
    PromptedLogits,
    Shift,
    Source,
    Steering,
    Support,
    TopK,
    TopP,
)


@dataclass(frozen=True)
class Plan:
    """The declarations of a controller's parts, with what engines want to know about them.

    Attributes:
        steerings: per steering controller its name and its weighted declaration.
        weights: the state of the base's weights, where declarations are made of them.
    """

    steerings: tuple[tuple[str, Steering], ...]
    weights: tuple[Hashable, ...] = ()

    @classmethod
    def of(cls, controller: Controller, model: Any, tokenizer: Any) -> Plan:
        """Asks every part of ``controller`` for its declaration on this model.

        Raises:
            ValueError: from a part that cannot work with this model or tokenizer.
        """
        declared = []
        for weight, part in controller.parts():
            if part.overrides("steer") and weight != 0:
                steering = part.steer(model, tokenizer).scaled(weight)
                if steering.shifts or steering.supports:
                    declared.append((type(part).__name__, steering))
        plan = cls(tuple(declared))
        return replace(plan, weights=plan._state_of(model))

    def renewed(self, controller: Controller, model: Any, tokenizer: Any) -> Plan:
        """This plan, or a new one where it is made of weights that have changed since. A change
        through ``parameter.data`` in place tells nobody and is not seen.

        Raises:
            ValueError: see `of`.
        """
        if self.weights == self._state_of(model):
            return self
        return Plan.of(controller, model, tokenizer)

    def _state_of(self, model: Any) -> tuple[Hashable, ...]:
        """Where the base's weights lie and how often they were written, if anything hangs on
        them: a shift that carries its head, an adapter merged into a copy."""
        modules = chain.from_iterable(expert.modules() for expert in self.experts.values())
        if not (self.needs_hidden or any("change" in vars(module) for module in modules)):
            return ()
        return tuple(
            (p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version)
            for p in model.parameters()
        )

    def shared_by(self, keys: Iterable[Hashable]) -> str:
        """In words, the base's forward in which sources with these keys have rows."""
        names = ", ".join(f"'{self.sources[key].name}'" for key in keys)
        return f"the base model with the rows of {names}" if names else "the base model"

    def owner(self, shift: Shift) -> str:
        """The name of the controller that declared a shift."""
        return next(name for name, s in self.steerings if any(x is shift for x in s.shifts))

    @cached_property
    def shifts(self) -> tuple[Shift, ...]:
        return tuple(chain.from_iterable(s.shifts for _, s in self.steerings))

    @cached_property
    def supports(self) -> tuple[Support, ...]:
        """Without repetition: an intersection does not count."""
        return tuple(dict.fromkeys(chain.from_iterable(s.supports for _, s in self.steerings)))

    @cached_property
    def truncation(self) -> Truncation:
        """The intersection of all supports: sets of best tokens are nested, kind by kind."""
        top_p = min((s.p for s in self.supports if isinstance(s, TopP)), default=1.0)
        top_k = min((s.k for s in self.supports if isinstance(s, TopK)), default=0)
        min_p = max((s.p for s in self.supports if isinstance(s, MinP)), default=0.0)
        return Truncation(top_p, top_k, min_p, joint=True)

    @cached_property
    def sources(self) -> dict[Hashable, Source]:
        """Every source once, however many controllers ask for it."""
        return {source.key: source for shift in self.shifts for source in shift.sources}

    @cached_property
    def prompts(self) -> dict[Hashable, PromptedLogits]:
        """The prompts under which the base runs again, by source key."""
        return {key: s for key, s in self.sources.items() if isinstance(s, PromptedLogits)}

    @cached_property
    def experts(self) -> dict[Hashable, Any]:
        """The other models that read the whole text, by source key."""
        return {key: s.model for key, s in self.sources.items() if isinstance(s, ModelLogits)}

    @cached_property
    def groups(self) -> Groups:
        """Which of these models run as rows of the base's forward."""
        return Groups()

    @cached_property
    def linear(self) -> dict[Hashable, float]:
        """The weights in z of the sources that are only added to it, but for the base."""
        weights: dict[Hashable, float] = {}
        for shift in self.shifts:
            if isinstance(shift, LogLinear):
                for coefficient, source in shift.terms:
                    weights.setdefault(source.key, 0.0)
                    weights[source.key] += shift.weight * coefficient
        others = (shift for shift in self.shifts if not isinstance(shift, LogLinear))
        for source in chain.from_iterable(shift.sources for shift in others):
            weights.pop(source.key, None)
        weights.pop(BASE, None)
        return weights

    @cached_property
    def needs_hidden(self) -> bool:
        """Whether any shift reads the base's last hidden state."""
        return any(shift.needs_hidden for shift in self.shifts)

    @property
    def needs_float32_logits(self) -> bool:
        """Whether any shift compares probabilities, which half precision logits are too coarse for:
        ``exp(-50 d)`` is off by nats."""
        return any(isinstance(shift, BiasDecay) for shift in self.shifts)

    def attribute_weight(self, shift: HeadAttribute) -> Tensor:
        """``(V, r + 1)``: ``left`` and a column of ones, which carries what all tokens share."""
        return self._attribute_weights[id(shift)]

    @cached_property
    def _attribute_weights(self) -> dict[int, Tensor]:
        heads = (shift for shift in self.shifts if isinstance(shift, HeadAttribute))
        return {
            id(head): torch.cat([head.left, head.left.new_ones(len(head.left), 1)], dim=1)
            for head in heads
        }
