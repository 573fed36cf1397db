"""Principles that bound what may be said, and preferences that people's feedback teaches.

A `Principle` bounds how probable its violation is; `Preferences` weigh features. Both read scorers
of candidates, see `plugalign.controllers.principles_scorers`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.controllers.principles_scorers import Scorer, check_scorer
from plugalign.files.shown import shown


@dataclass(frozen=True, eq=False)
class Principle:
    """What must not become more probable than under the top-down controllers, by more than epsilon.

    Attributes:
        name: for messages, traces and reports.
        scorer: a controller that steers towards what keeps the principle, so that
            ``g(t) = 1 - P(a | x, t)``, or a table of how far each token violates it.
        epsilon: how much ``E_q[g]`` may lie above the reference's at a step; None for the
            `Equilibrium`'s own.
        priority: 1 is the highest. None where the order in which principles are given says it.
        controller: what steers top-down for this principle, and within the bounds of all higher
            ones; None where the reference does.

    Raises:
        ValueError: for no name, a negative epsilon, or a priority below 1.
        TypeError: for a scorer or controller that is none, or a priority that is no whole number.
    """

    name: str
    scorer: Scorer
    epsilon: float | None = None
    priority: int | None = None
    controller: Controller | None = None

    def __post_init__(self) -> None:
        check_scorer(f"the principle {shown(self.name)}", self.name, self.scorer)
        if self.epsilon is not None:
            check_epsilon(f"the principle {shown(self.name)}", self.epsilon)
        if not isinstance(self.controller, Controller | None):
            got = type(self.controller).__name__
            raise TypeError(f"a principle's controller must be one, or None, got {got}")
        place = self.priority
        if place is not None and (isinstance(place, bool) or not isinstance(place, int)):
            raise TypeError(f"a priority must be a whole number, got {shown(place)}")
        if place is not None and place < 1:
            raise ValueError(
                f"the principle {shown(self.name)} has the priority {place}; 1 is the highest"
            )


@dataclass(frozen=True, eq=False)
class Preferences:
    """Features and what people's feedback has taught of them: ``delta(t) = theta . phi(t)``.

    Attributes:
        features: scorers by name, F of them.
        theta: the weights in nats ``(F,)``, float64; 0 where nothing has been learned.
        covariance: of theta ``(F, F)``, float64; None where theta was set by hand, without doubt.

    Raises:
        ValueError: without features, or for numbers that do not fit them.
        TypeError: for a scorer that is none, or numbers that are no tensor.
    """

    features: Mapping[str, Scorer]
    theta: Tensor = field(default_factory=lambda: torch.zeros(0))
    covariance: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.features, Mapping):
            got = type(self.features).__name__
            raise TypeError(f"features must be scorers by name, got {got}")
        for what, numbers in (("theta", self.theta), ("covariance", self.covariance)):
            if numbers is not None and not isinstance(numbers, Tensor):
                raise TypeError(f"{what} must be a tensor, got {type(numbers).__name__}")
        for name, scorer in self.features.items():
            check_scorer(f"the feature {shown(name)}", name, scorer)
        count = len(self.features)
        if not count:
            raise ValueError("preferences need a feature; give features={'name': scorer}")
        theta = self.theta if self.theta.numel() else torch.zeros(count)
        object.__setattr__(self, "theta", theta.double())
        if self.covariance is not None:
            object.__setattr__(self, "covariance", self.covariance.double())
        _check_numbers(self.theta, self.covariance, tuple(self.features))

    def learned(self, theta: Tensor, covariance: Tensor | None) -> Preferences:
        """The same features with other weights."""
        return replace(self, theta=theta, covariance=covariance)

    def bounded(self, confidence: float) -> Tensor:
        """Theta ``(F,)`` at its confidence bound nearest to 0: of a weight that is not known to
        differ from 0, nothing is left.

        Args:
            confidence: of the bound on one side, as 0.95.
        """
        if self.covariance is None:
            return self.theta
        doubt = NormalDist().inv_cdf(confidence) * self.covariance.diagonal().sqrt()
        return self.theta.sign() * (self.theta.abs() - doubt).clamp(min=0)


def _check_numbers(theta: Tensor, covariance: Tensor | None, names: Sequence[str]) -> None:
    count = len(names)
    if theta.shape != (count,) or not bool(theta.isfinite().all()):
        raise ValueError(
            f"theta must be {count} finite numbers, one for each feature ({', '.join(names)}), got "
            f"{shown(theta.tolist())}"
        )
    if covariance is None:
        return
    if covariance.shape != (count, count):
        raise ValueError(
            f"theta's covariance must be ({count}, {count}), got {tuple(covariance.shape)}"
        )
    if not bool(torch.equal(covariance, covariance.mT)) or bool(
        (torch.linalg.eigvalsh(covariance) < 0).any()
    ):
        raise ValueError("theta's covariance must be symmetric, without a negative eigenvalue")


def check_epsilon(what: str, epsilon: float) -> None:
    """Refuses a negative or infinite epsilon.

    Raises:
        ValueError: naming it.
    """
    if not isinstance(epsilon, (int, float)) or not 0 <= epsilon < math.inf:
        raise ValueError(
            f"{what}: epsilon must be at least 0 and finite, got {shown(epsilon)}; 1 bounds nothing"
        )


def in_order(principles: Iterable[Principle]) -> tuple[Principle, ...]:
    """The principles, the highest first, each with its priority.

    Raises:
        ValueError: for names or priorities that contradict each other.
    """
    if not isinstance(principles, Iterable):
        raise TypeError(f"principles must be a list of them, got {type(principles).__name__}")
    given = tuple(principles)
    if odd := [each for each in given if not isinstance(each, Principle)]:
        raise TypeError(f"principles must be Principle(name, scorer), got {shown(odd[0])}")
    if not given:
        raise ValueError("an equilibrium needs a principle; give Principle(name, scorer)")
    names, places = [p.name for p in given], [p.priority for p in given]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two principles are called {shown(twice[0])}; rename one")
    if all(place is None for place in places):
        return tuple(replace(p, priority=i) for i, p in enumerate(given, start=1))
    if None in places:
        without = names[places.index(None)]
        raise ValueError(
            f"the principle {shown(without)} has no priority and others have; give it to all, or "
            "to none and order them"
        )
    for place in places:
        if len(same := [n for n, p in zip(names, places, strict=True) if p == place]) > 1:
            raise ValueError(
                f"the principles {shown(same[0])} and {shown(same[1])} both have the priority "
                f"{place}, and one must yield; give each its own"
            )
    return tuple(sorted(given, key=lambda p: p.priority or 0))
