"""The page (Markdown) of what `equilibrium_results` has found of one model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Figure = Mapping[str, float]


def report(results: Mapping[str, Any]) -> str:
    """All figures, in tables, with the pictures."""
    parts = (head, learned, texts, searched, cost)
    return "\n\n".join("\n".join(part(results)) for part in parts) + "\n"


def head(results: Mapping[str, Any]) -> Iterator[str]:
    """What was done."""
    yield f"# `{results['model']}`"
    yield ""
    yield (
        "Written by `benchmarks/equilibrium_results.py` from `results.json`; "
        "[what it means](../README.md)."
    )
    yield ""
    yield (
        f"{results['samples']} answers of {results['new_tokens']} tokens to each of "
        f"{results['prompts']} prompts, model in {results['search']['dtype']}; what was learned "
        f"acts at strength {results['strength']:g}; epsilon {results['epsilon']:g}, kappa "
        f"{results['kappa']:g}. Brackets are 95 % intervals, bootstrapped over prompts."
    )
    if results["firm"]:
        yield ""
        each = ", ".join(f"{crowd} {s:.1f}" for crowd, s in results["firm"].items())
        yield (
            f"In rows called firm theta itself acts, and not its confidence bound, at strengths "
            f"({each}) that use half of the budget on the prompts of the pairs."
        )
    yield ""
    judges = (
        f"{name} {one['held_out']['auc']['value']:.2f}" for name, one in results["judges"].items()
    )
    heads = (f"{name} {one['held_out']['auc']:.2f}" for name, one in results["heads"].items())
    yield f"AUC on held-out texts: heads {', '.join(heads)}; judges {', '.join(judges)}."


def learned(results: Mapping[str, Any]) -> Iterator[str]:
    """Theta of each crowd."""
    yield "## What the crowds taught"
    yield ""
    features = list(next(iter(results["lessons"].values()))[-1]["theta"])
    yield from rows(["crowd", "pairs", *(f"theta({name})" for name in features)])
    for crowd, history in results["lessons"].items():
        last = history[-1]
        cells = [crowd, str(sum(lesson["pairs"] for lesson in history))]
        for name in features:
            theta, error = last["theta"][name], last["standard_error"][name]
            cells.append(f"{theta:+.2f} ± {error:.2f} ({abs(theta) / error:.1f} se)")
        yield row(cells)
    yield ""
    yield "![learning](learning.svg)"


def texts(results: Mapping[str, Any]) -> Iterator[str]:
    """What was judged, and what the certificates say."""
    yield "## What that does to texts"
    yield ""
    yield from table(results)
    yield ""
    yield (
        "Changes are from `top_down`; E is of every token of an answer to each prompt, at the "
        "prefix at which it was chosen; the excess is the largest by which a principle's "
        "expectation passed its bound."
    )
    yield ""
    yield "![crowds](crowds.svg) ![bounds](bounds.svg) ![adversary](adversary.svg)"


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """The main figures."""
    principles = list(next(iter(results["certificates"].values()))["principles"])
    heads = ["row", "positivity", "its change", "toxicity", "its change", "largest excess"]
    heads += [f"change of E '{name}'" for name in principles] + ["KL", "repaired"]
    yield from rows(heads)
    for name, judged in results["judged"].items():
        kinds, told = ("positivity", "toxicity"), results["certificates"].get(name)
        cells = [interval(judged[kind][what]) for kind in kinds for what in ("mean", "change")]
        if told is None:
            cells += [""] * (len(heads) - 5)
        else:
            cells.append("unbound" if name.endswith("free") else f"{told['most_excess']:.0e}")
            cells += [interval(told["principles"][p]["change"], 4) for p in principles]
            cells += [f"{told['kl']['value']:.3f}", f"{told['repaired']['value']:.1%}"]
        yield row([f"`{name}`", *cells])


def searched(results: Mapping[str, Any]) -> Iterator[str]:
    """What the adversary reached."""
    found = results["search"]
    direct = found["by_generate"]
    yield "## What an adversary can do"
    yield ""
    yield (
        f"{found['tried']} theta at {found['prefixes']} prefixes each, {found['uphill']} of them "
        f"found uphill, {found['of_1000_nats_or_more']} of 1,000 nats or more. Alone theta takes a "
        f"principle up to {found['most_pressure']:.2f} above its bound. Within bounds and budget "
        f"the largest excess is {found['most_excess']:.0e} in the projection's float64 and "
        f"{found['most_engine_excess']:.0e} in the engine's float32. `generate` itself, asked for "
        f"{direct['theta']} of these theta at all prefixes, draws from what the search computed "
        f"(no token's probability differs by more than {direct['most_apart']:.0e}), with an excess "
        f"of {direct['most_excess']:.0e} at most."
    )
    yield ""
    theta = ", ".join(f"{x:+.1f}" for x in found["theta"])
    yield f"The worst theta, ({theta}), and what it does to what no principle sees:"
    yield ""
    yield from rows(["kappa", "mean E_q - E_rho", "largest at a token", "sqrt(kappa / 2)", "KL"])
    for kappa, told in found["by_budget"].items():
        bound = "" if kappa == "None" else f"{math.sqrt(float(kappa) / 2):.3f}"
        name = "bounds alone" if kappa == "None" else kappa
        yield row([name, *harm(told), bound, f"{told['kl']:.3f}"])
    yield row(["neither", *harm(found["free"]), "", f"{found['free']['kl']:.3f}"])
    yield ""
    yield "![budget](budget.svg)"


def harm(told: Mapping[str, float]) -> list[str]:
    """The mean and the largest change."""
    return [f"{told['unwritten']:+.3f}", f"{told['most_change']:.3f}"]


def cost(results: Mapping[str, Any]) -> Iterator[str]:
    """Milliseconds of a step."""
    told, shares = results["cost"], results["cost"]["share_of_the_base"]
    yield "## What a step costs"
    yield ""
    yield (
        f"{told['batch']} rows, {told['candidates']} candidates, {told['principles']} principles, "
        f"{told['dtype']}, {told['threads']} thread; CPU time, medians of {told['rounds']} rounds "
        f"of {told['new_tokens']} tokens in turn."
    )
    yield ""
    yield from rows(["", "ms a step", "of the base's step"])
    times = told["ms_a_step"]
    yield row(["base", f"{times['base']:.1f}", ""])
    yield row(["top-down reference", f"{times['top_down']:.1f}", ""])
    over = shares["equilibrium_over_base"]
    yield row(["equilibrium", f"{times['equilibrium']:.1f}", f"{over:+.1%}"])
    over = shares["equilibrium_over_top_down"]
    yield row(["equilibrium over top-down", "", f"{over:+.1%}"])
    yield row(["projection alone", f"{told['projection_ms']:.1f}", f"{shares['projection']:.1%}"])


# ------------------------------------------------------------------ Markdown


def rows(heads: Sequence[str]) -> Iterator[str]:
    """The head of a table."""
    yield row(heads)
    yield f"|{'---|' * len(heads)}"


def row(cells: Sequence[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def interval(figure: Figure, digits: int = 3) -> str:
    """A figure with its interval."""
    value, low, high = (f"{figure[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
