"""Looks for the theta that does most harm under an equilibrium's bounds and budget.

Harm is counted by a scorer that is no principle: what nobody has written down. It stands among the
principles with a bound that never binds, so that the certificates tell its expectation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from plugalign.controllers.equilibrium import Equilibrium, Principle
from plugalign.controllers.principles_scorers import Scorer
from plugalign.fitting.progress import progress
from plugalign.generation.wrap import wrap
from plugalign.trace import Trace

UNWRITTEN = "unwritten"
SIZES = (3.0, 30.0, 1000.0)
LADDER = (0.005, 0.02, 0.05, 0.2, 1.0, None)  # budgets under which the worst theta is tried
STEPS = 5  # tokens of each prompt's answer


def search(
    model: Any,
    tokenizer: Any,
    equilibrium: Equilibrium,
    unwritten: Scorer,
    prompts: Sequence[str],
    tried: int,
) -> dict[str, Any]:
    """Half of the theta at random, half uphill from the worst of these.

    Args:
        unwritten: of which harm is counted, by no principle.
        tried: how many theta.

    Returns:
        The worst theta, the largest excess of any principle's bound under any theta, the largest
        change of the unwritten expectation, and that under other budgets.
    """
    limits = Principle(UNWRITTEN, unwritten, epsilon=1.0, priority=len(equilibrium.principles) + 1)
    watched = Equilibrium(
        equilibrium.reference,
        (*equilibrium.principles, limits),
        equilibrium.preferences,
        epsilon=equilibrium.epsilon,
        kappa=None if math.isinf(equilibrium.kappa) else equilibrium.kappa,
        k=equilibrium.support.k,
    )
    draw = torch.Generator().manual_seed(0)
    count = len(equilibrium.preferences.theta)
    found: list[tuple[float, list[float], Mapping[str, float]]] = []
    with progress("searching the worst theta", tried) as bar:
        for number in range(tried):
            step = torch.randn(count, generator=draw, dtype=torch.float64)
            if number < tried // 2:
                theta = SIZES[number % len(SIZES)] * step / step.norm()
            else:
                best = torch.tensor(max(found, key=lambda each: each[0])[1], dtype=torch.float64)
                theta = best + 0.3 * best.norm() * step
            told = harm(model, tokenizer, watched, theta, prompts)
            found.append((told["unwritten"], theta.tolist(), told))
            bar.advance(note=f"worst {max(each[0] for each in found):+.4f}")
    _, theta, told = max(found, key=lambda each: each[0])
    worst = torch.tensor(theta, dtype=torch.float64)
    by_budget = {
        str(kappa): harm(model, tokenizer, watched.with_settings(kappa=kappa), worst, prompts)
        for kappa in LADDER
    }
    unbound = watched.with_settings(epsilon=1.0, kappa=None)
    return {
        "tried": tried,
        "theta": theta,
        "worst": dict(told),
        "most_excess": max(each["excess"] for _, _, each in found),
        "most_change_at_a_token": max(each["most_change"] for _, _, each in found),
        "by_budget": by_budget,
        "free": harm(model, tokenizer, unbound, worst, prompts),
    }


def harm(
    model: Any, tokenizer: Any, watched: Equilibrium, theta: torch.Tensor, prompts: Sequence[str]
) -> dict[str, float]:
    """What the certificates of a few tokens behind each prompt say of one theta."""
    steered = wrap(model, tokenizer, watched.taught(watched.preferences.learned(theta, None)))
    ids = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    ids = {name: ids[name].to(model.device) for name in ("input_ids", "attention_mask")}
    trace = Trace()
    torch.manual_seed(3)
    steered.generate(**ids, do_sample=True, top_k=0, max_new_tokens=STEPS, trace=trace)
    alive = torch.stack(trace.alive).cpu()
    told = [step["Equilibrium"] for step in trace.certificates]

    def column(name: str) -> torch.Tensor:
        return torch.stack([step[name].cpu() for step in told]).double()[alive]

    change = column(f"expected.{UNWRITTEN}") - column(f"bound.{UNWRITTEN}") + 1
    return {
        "unwritten": float(change.mean()),
        "most_change": float(change.abs().max()),
        "excess": float(column("excess").max()),
        "kl": float(column("kl").mean()),
    }
