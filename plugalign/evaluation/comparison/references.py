"""What methods are compared with: rows of the table that are no methods.

* **base** is the model without controllers, in the decoding loop that the methods run in, so that
  its cost differs from theirs by the methods alone.
* **plain generate** is transformers' own ``generate``: the same texts, its own cost.
* **base (top-p 0.9)** is base cut as a controller with that support is cut: first to the support,
  then to the caller's top-p. A narrower choice lowers perplexity, and toxicity, by itself; what a
  method with a support does beyond that is its difference to this row. A support that follows the
  steering, as PPLM's does, counts as what it is where nothing is steered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plugalign.algebra.controller import Controller
from plugalign.algebra.steering import Steering
from plugalign.algebra.supports import MinP, Support, TopK, TopP
from plugalign.generation.wrap import Steered, wrap
from plugalign.kernels.truncation import Truncation

BASE = "base"
PLAIN = "plain generate"


@dataclass(frozen=True, eq=False)
class CutAlike(Controller):
    """The base within a support, and nothing else."""

    supports: tuple[Support, ...]

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        return Steering(supports=self.supports)


@dataclass(frozen=True)
class References:
    """The rows that methods are compared with.

    Attributes:
        generators: by name, something with ``generate``.
        supports: by the name of a row that is cut, where its support ends, by the kind of support.
        cut_alike: by the name of a method with a support, the row that is cut alike.
    """

    generators: Mapping[str, Any]
    supports: Mapping[str, dict[str, float]]
    cut_alike: Mapping[str, str]


def make_references(model: Any, tokenizer: Any, steered: Mapping[str, Steered]) -> References:
    """What these methods need beside them.

    Raises:
        ValueError: if a method has the name of a reference.
    """
    generators: dict[str, Any] = {BASE: wrap(model, tokenizer, Controller()), PLAIN: model}
    supports, cut_alike = {}, {}
    for method, each in steered.items():
        found = _supports(each.plan.unsteered)
        if not found:
            continue
        name = f"{BASE} ({', '.join(f'{_words(k)} {v:g}' for k, v in found.items())})"
        generators[name] = wrap(model, tokenizer, CutAlike(tuple(map(_support, found.items()))))
        supports[name], cut_alike[method] = found, name
    if taken := [name for name in generators if name in steered]:
        raise ValueError(f"'{taken[0]}' is the name of a reference; rename that controller")
    return References(generators, supports, cut_alike)


def _supports(cut: Truncation) -> dict[str, float]:
    """What a truncation cuts, by kind; nothing if it keeps all tokens."""
    every = {"top_p": cut.top_p, "top_k": cut.top_k, "min_p": cut.min_p}
    nothing = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
    return {kind: value for kind, value in every.items() if value != nothing[kind]}


def _support(item: tuple[str, float]) -> Support:
    kind, value = item
    return TopK(int(value)) if kind == "top_k" else {"top_p": TopP, "min_p": MinP}[kind](value)


def _words(kind: str) -> str:
    return kind.replace("_", "-")
