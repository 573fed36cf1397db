"""Looks for the theta that does most harm under an equilibrium's bounds and budget.

Harm is counted by a scorer that is no principle: what nobody has written down. Half of the theta
are random, half are found uphill, by the gradients of that harm and of how hard theta presses on
each principle's bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from equilibrium_positions import Found, Positions, direct, joined, prefixes_of, recorded
from torch import Tensor

from plugalign.controllers.equilibrium import Equilibrium, Principle
from plugalign.controllers.principles_scorers import Scorer
from plugalign.fitting.progress import progress, say

SIZES = (3.0, 30.0, 1000.0)  # of random theta, in nats
LADDER = (0.005, 0.02, 0.05, 0.2, 1.0, None)  # budgets under which the worst theta is tried
STEPS = 5  # tokens of each prompt's answer
NEAR = 0.01  # how far apart theta are of which a gradient is the difference, as a share of theta
Told = Mapping[str, float]
HARM = "unwritten"


def search(
    model: Any,
    tokenizer: Any,
    equilibrium: Equilibrium,
    unwritten: Scorer,
    prompts: Sequence[str],
    tried: int,
) -> dict[str, Any]:
    """Tries theta, the same prefixes for each.

    Args:
        unwritten: of which harm is counted, by no principle.
        tried: how many theta.

    Returns:
        The worst theta; the largest excess of any principle's bound under any theta, that of the
        projection and that of what the engine draws from; the largest change of the unwritten
        expectation, and that under other budgets; and how far ``generate`` itself is from all this.
    """
    start = equilibrium.taught(equilibrium.preferences.learned(torch.zeros(0), None))
    prefixes = prefixes_of(model, tokenizer, start, prompts, STEPS)
    batches = recorded(model, tokenizer, watched(equilibrium, unwritten), prefixes)
    positions = joined(batches)
    say(f"searching the worst theta at {len(positions.base)} prefixes")
    random, uphill = tried_theta(positions, equilibrium.kappa, tried)
    every = random + uphill
    theta, worst = max(every, key=lambda each: each[1][HARM])
    longest, excess = (max(every, key=key)[0] for key in (_size, _engine_excess))

    def under(kappa: float | None, bounded: bool = True) -> dict[str, float]:
        budget = math.inf if kappa is None else kappa
        return told_of(positions.found(theta, budget, bounded=bounded))

    checked = [
        direct(model, tokenizer, taught(equilibrium, each), prefixes, batches)
        for each in (theta, longest, excess)
    ]
    return {
        "tried": len(every),
        "uphill": len(uphill),
        "of_1000_nats_or_more": sum(_size(each) >= 0.999 * SIZES[-1] for each in every),
        "prefixes": len(positions.base),
        "dtype": str(model.dtype).removeprefix("torch."),
        "theta": theta.tolist(),
        "worst": dict(worst),
        "most_excess": max(told["excess"] for _, told in every),
        "most_engine_excess": max(told["engine_excess"] for _, told in every),
        "most_change_at_a_token": max(told["most_change"] for _, told in every),
        "most_pressure": max(told["pressure"] for _, told in every),
        "by_budget": {str(kappa): under(kappa) for kappa in LADDER},
        "free": under(None, bounded=False),
        "by_generate": {
            "theta": len(checked),
            "most_apart": max(apart for apart, _ in checked),
            "most_excess": max(most for _, most in checked),
        },
    }


def watched(equilibrium: Equilibrium, unwritten: Scorer) -> Equilibrium:
    """The equilibrium with one more scorer behind its principles, which bounds nothing."""
    last = Principle(HARM, unwritten, epsilon=1.0, priority=len(equilibrium.principles) + 1)
    return Equilibrium(
        equilibrium.reference,
        (*equilibrium.principles, last),
        equilibrium.preferences,
        epsilon=equilibrium.epsilon,
        k=equilibrium.support.k,
    )


def taught(equilibrium: Equilibrium, theta: Tensor) -> Equilibrium:
    """The equilibrium with a theta that acts as it is."""
    known = equilibrium.preferences.learned(theta, None)
    return equilibrium.taught(known).with_settings(strength=1.0)


def tried_theta(
    positions: Positions, kappa: float, tried: int
) -> tuple[list[tuple[Tensor, Told]], list[tuple[Tensor, Told]]]:
    """Random theta and those found uphill, each with what `told_of` says."""
    found = list[tuple[Tensor, Told]]()
    draw = torch.Generator().manual_seed(0)
    with progress("searching the worst theta", tried) as bar:

        def evaluate(theta: Tensor) -> Told:
            told = told_of(positions.found(theta, kappa))
            found.append((theta, told))
            bar.advance()
            return told

        for number in range(tried // 2):
            step = torch.randn(positions.at.phi.shape[1], generator=draw, dtype=torch.float64)
            evaluate(SIZES[number % len(SIZES)] * step / step.norm())
        random, goals = list(found), [name for name in found[0][1] if name.startswith("presses")]
        climbs = [
            Climb(goal, max(random[size :: len(SIZES)], key=lambda each: each[1][goal]))
            for goal in (HARM, *goals)
            for size in range(len(SIZES))
        ]
        for climb in cycle(climbs):
            if len(found) >= tried:
                break
            climb.step(evaluate)
    return random, found[len(random) :]


class Climb:
    """Steps uphill.

    Args:
        goal: what shall grow.
        start: theta and what is told of it.
    """

    def __init__(self, goal: str, start: tuple[Tensor, Told]):
        self._goal, (self._theta, self._told), self._reach = goal, start, 0.3

    def step(self, evaluate: Callable[[Tensor], Told]) -> None:
        """A step along the gradient, which central differences tell; a shorter one next time if it
        leads down."""
        theta, size = self._theta, self._theta.norm()
        slope = torch.zeros_like(theta)
        for i in range(len(theta)):
            aside = torch.zeros_like(theta)
            aside[i] = NEAR * size
            above, below = evaluate(theta + aside), evaluate(theta - aside)
            slope[i] = above[self._goal] - below[self._goal]
        if not bool(slope.norm() > 0):
            self._reach /= 3
            return
        there = theta + self._reach * size * slope / slope.norm()
        told = evaluate(there)
        if told[self._goal] > self._told[self._goal]:
            self._theta, self._told = there, told
        else:
            self._reach /= 3


def told_of(found: Found) -> dict[str, float]:
    """What is kept of a theta."""
    presses = {f"presses.{j}": float(x) for j, x in enumerate(found.pressure.mean(0))}
    return {
        HARM: float(found.change.mean()),
        "most_change": float(found.change.abs().max()),
        "excess": float(found.excess.max()),
        "engine_excess": float(found.engine_excess.max()),
        "kl": float(found.kl.mean()),
        "pressure": float(found.pressure.max()),
        **presses,
    }


def _size(each: tuple[Tensor, Told]) -> float:
    return float(each[0].norm())


def _engine_excess(each: tuple[Tensor, Told]) -> float:
    return each[1]["engine_excess"]
