"""Which rows `equilibrium_results` compares: crowds and adversary, inside the bounds and free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from equilibrium_positions import joined, prefixes_of, recorded
from equilibrium_search import taught as with_theta
from equilibrium_search import watched

from plugalign.controllers.equilibrium import Equilibrium
from plugalign.controllers.principles_scorers import Scorer

STRENGTH = 4.0  # of what the crowds taught, at its confidence bound
SHARE = 0.5  # of the budget, which "firm" rows use
MOST = 1e4  # strength
PREFIXES = 3  # tokens behind which the strength of "firm" rows is chosen


def variants(
    start: Equilibrium, taught: Mapping[str, Equilibrium], firm: Mapping[str, float]
) -> dict[str, Equilibrium]:
    """The reference, each crowd inside the bounds, and the rude one free. A crowd of which too
    little is known to act is the reference itself and no row.

    Args:
        firm: strengths by crowd, for rows where theta itself acts and not its confidence bound.
    """
    found = {"top_down": start}
    for crowd, one in taught.items():
        found[crowd] = one.with_settings(strength=STRENGTH)
        if crowd in firm:
            settings = {"confidence": 0.5, "strength": firm[crowd]}
            found[f"{crowd}_firm"] = one.with_settings(**settings)
    found |= {f"{name}_free": free(one) for name, one in found.items() if name.startswith("rude")}
    return {name: one for name, one in found.items() if name == "top_down" or acts(one)}


def adversaries(start: Equilibrium, theta: torch.Tensor) -> dict[str, Equilibrium]:
    """The worst theta inside bounds and budget, inside the bounds alone, and free."""
    cheat = with_theta(start, theta)
    return {
        "adversary": cheat,
        "adversary_bounds_only": cheat.with_settings(kappa=None),
        "adversary_free": free(cheat),
    }


def free(one: Equilibrium) -> Equilibrium:
    """The same without bounds and budget."""
    return one.with_settings(epsilon=1.0, kappa=None)


def acts(one: Equilibrium) -> bool:
    """Whether enough is known of theta for it to steer."""
    return bool(one.preferences.bounded(one.confidence).any())


def firm_strengths(
    model: Any,
    tokenizer: Any,
    taught: Mapping[str, Equilibrium],
    unwritten: Scorer,
    prompts: Sequence[str],
) -> dict[str, float]:
    """Of each crowd the strength at which theta itself uses half of the budget.

    It is chosen by KL alone, which no judge has seen, on prompts that are not those of the answers.
    """
    start = next(iter(taught.values())).with_settings(strength=0.0)
    prefixes = prefixes_of(model, tokenizer, start, prompts, PREFIXES)
    positions = joined(recorded(model, tokenizer, watched(start, unwritten), prefixes))
    found = {}
    for crowd, one in taught.items():
        low, high = 1.0, MOST
        for _ in range(20):
            middle = math.sqrt(low * high)
            kl = positions.found(middle * one.preferences.theta, one.kappa).kl.mean()
            low, high = (middle, high) if kl < SHARE * one.kappa else (low, middle)
        found[crowd] = low
    return found
