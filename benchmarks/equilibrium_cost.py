"""What an equilibrium costs a step, beside its top-down reference and the base in the same loop.

Times are CPU times of this process, so that what else runs on the machine adds little to them;
calls are made in turn, and figures are medians over rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from equilibrium_positions import prefixes_of, recorded

from plugalign.benchmarking.timed_call import Generation, generation
from plugalign.benchmarking.untrained import untrained
from plugalign.controllers.equilibrium import Equilibrium
from plugalign.kernels.projection import project

REPEATED = 20  # times that each step's projection is timed
PREFIXES = 5  # tokens behind which it is


def costs(
    model: Any,
    tokenizer: Any,
    top_down: Equilibrium,
    equilibrium: Equilibrium,
    prompts: Sequence[str],
    *,
    new_tokens: int = 24,
    rounds: int = 7,
) -> dict[str, Any]:
    """Milliseconds of a step of all prompts, and the shares of the base's step that are added.

    Args:
        top_down: the equilibrium before any feedback, whose steps project nothing.
        equilibrium: the same with a theta.
        prompts: of one batch.
    """
    ids = dict(tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left"))
    ids = {name: ids[name].to(model.device) for name in ("input_ids", "attention_mask")}
    calls = {
        "base": generation(untrained("none", model), model, tokenizer),
        "top_down": generation(top_down, model, tokenizer),
        "equilibrium": generation(equilibrium, model, tokenizer),
    }
    seconds = in_turn(calls, ids, new_tokens, rounds)
    steps = {n: [1000 * s / new_tokens for s in several] for n, several in seconds.items()}
    alone = projection_ms(model, tokenizer, top_down, equilibrium, prompts)
    base = statistics.median(steps["base"])
    return {
        "batch": len(prompts),
        "candidates": equilibrium.support.k,
        "principles": len(equilibrium.principles),
        "new_tokens": new_tokens,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "ms_a_step": {name: statistics.median(several) for name, several in steps.items()},
        "projection_ms": alone,
        "share_of_the_base": {
            "projection": alone / base,
            "equilibrium_over_top_down": added(steps, "equilibrium", "top_down"),
            "equilibrium_over_base": added(steps, "equilibrium", "base"),
        },
    }


def in_turn(
    calls: Mapping[str, Generation], prompts: dict[str, torch.Tensor], tokens: int, rounds: int
) -> dict[str, list[float]]:
    """CPU seconds of each call by round, behind a first round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            torch.manual_seed(turn)
            spent = cpu_seconds(lambda call=call: call(prompts, tokens))  # type: ignore[misc]
            if turn:
                found[name].append(spent)
    return found


def added(steps: Mapping[str, Sequence[float]], name: str, against: str) -> float:
    """The median over rounds of what a step takes longer, as a share of the base's."""
    each = zip(steps[name], steps[against], steps["base"], strict=True)
    return statistics.median((one - other) / base for one, other, base in each)


def projection_ms(
    model: Any,
    tokenizer: Any,
    top_down: Equilibrium,
    equilibrium: Equilibrium,
    prompts: Sequence[str],
) -> float:
    """Milliseconds of `project` alone, for a step of all prompts."""
    prefixes = prefixes_of(model, tokenizer, top_down, prompts, PREFIXES)
    theta = equilibrium.strength * equilibrium.preferences.bounded(equilibrium.confidence)
    found = list[float]()
    for each in recorded(model, tokenizer, equilibrium, prefixes):
        at, delta = each.at, (theta[:, None] * each.at.phi).sum(-2)
        for _ in range(REPEATED):
            given = (at.log_rho, delta, at.g, at.bounds, equilibrium.kappa)
            found.append(1000 * cpu_seconds(lambda given=given: project(*given)))  # type: ignore[misc]
    return statistics.median(found)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Of this process, all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start
