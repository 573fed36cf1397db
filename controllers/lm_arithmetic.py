"""Language-model arithmetic: a distribution written as a formula over models and prompts.

``p'(t | x) = softmax(1/W sum_i w_i f_i(t))`` with ``W = sum_i w_i`` (Dekoninck et al. 2024,
"Controlled text generation via language model arithmetic", theorem 1), where ``f_i`` is the
log-probability of one model, perhaps behind a prompt, the largest of several (their union) or the
least (their intersection; section 3.3). As the change of a base this is
``delta(t) = 1/W sum_i w_i f_i(t) - log p(t)``, so that formulas add up with other controllers; the
paper's classifiers are FUDGE (`plugalign.controllers.fudge`) beside a formula::

    base, magic = lm(), lm(prompt="You always talk about magic.")
    LMArithmetic(base - 0.6 * lm(small) + 2 * union(base, magic))
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor

from plugalign.algebra.shifts import LogLinear, Shift
from plugalign.algebra.sources import Logits, Step
from plugalign.algebra.steering import Steering
from plugalign.controller import Controller
from plugalign.controllers.dexperts import DExperts
from plugalign.controllers.self_debias import prompted
from plugalign.kernels.terms.extreme import Extreme
from plugalign.kernels.terms.term import Term, Weight

Model = Any  # a causal language model, a folder of a model or an adapter, or a hub id; None: base
Operation = Literal["model", "union", "intersection"]


@dataclass(frozen=True)
class Prompted:
    """The log-probabilities of a model (None for the base) behind a prompt (empty for none)."""

    model: Model = None
    prompt: str = ""


@dataclass(frozen=True)
class Summand:
    """``weight`` times the log-probabilities of one model, or their extreme over several."""

    weight: float
    operands: tuple[Prompted, ...]
    operation: Operation = "model"


@dataclass(frozen=True)
class Formula:
    """A weighted sum; made by `lm`, `union` and `intersection`, and by ``+ - * /`` of these."""

    summands: tuple[Summand, ...]

    @property
    def total(self) -> float:
        """W, the sum of the weights."""
        return math.fsum(summand.weight for summand in self.summands)

    def __add__(self, other: Formula) -> Formula:
        if not isinstance(other, Formula):
            return NotImplemented
        return Formula(self.summands + other.summands)

    def __sub__(self, other: Formula) -> Formula:
        if not isinstance(other, Formula):
            return NotImplemented
        return self + -other

    def __neg__(self) -> Formula:
        return -1 * self

    def __mul__(self, number: float) -> Formula:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            return NotImplemented
        if not math.isfinite(number):
            raise ValueError(f"a formula's weights must be finite, got {number}")
        return Formula(tuple(replace(s, weight=number * s.weight) for s in self.summands))

    __rmul__ = __mul__

    def __truediv__(self, number: float) -> Formula:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            return NotImplemented
        if number == 0:
            raise ValueError("a formula cannot be divided by 0")
        return self * (1 / number)


def lm(model: Model = None, *, prompt: str = "") -> Formula:
    """The log-probabilities of a model.

    Args:
        model: a causal language model with the base's tokenizer, a folder or hub id of one, a
            folder of a LoRA adapter of the base, or None for the base.
        prompt: text in front of what it reads, a system prompt say, as the model is to read it
            (a chat model's special tokens included).

    Raises:
        TypeError: for a model or prompt that is none.
    """
    if model is not None:
        check_model(model, "lm's model")
    if not isinstance(prompt, str):
        raise TypeError(f"a prompt is a text, got {type(prompt).__name__}")
    return Formula((Summand(1.0, (Prompted(model, prompt),)),))


def union(*formulas: Formula) -> Formula:
    """The largest log-probability of several: what any of the models would say.

    Args:
        formulas: two or more of `lm`.

    Raises:
        ValueError: for fewer, or something else.
    """
    return _extreme("union", formulas)


def intersection(*formulas: Formula) -> Formula:
    """The least log-probability of several: what all of the models would say. See `union`."""
    return _extreme("intersection", formulas)


def _extreme(operation: Operation, formulas: tuple[Formula, ...]) -> Formula:
    single = all(
        isinstance(f, Formula) and [(s.weight, s.operation) for s in f.summands] == [(1.0, "model")]
        for f in formulas
    )
    if len(formulas) < 2 or not single:
        raise ValueError(
            f"{operation} takes two or more of lm(...), neither sums nor multiples, got "
            f"{', '.join(map(repr, formulas)) or 'none'}"
        )
    return Formula((Summand(1.0, tuple(f.summands[0].operands[0] for f in formulas), operation),))


@dataclass(frozen=True, eq=False)
class LogExtreme(Shift):
    """``delta = max_k log p_k`` over sources (a union), or the least of them (an intersection)."""

    over: tuple[Logits, ...]
    least: bool = False

    @property
    def sources(self) -> tuple[Logits, ...]:
        return self.over

    def terms(self, step: Step, weight: Weight) -> Iterable[Term]:
        yield Extreme(tuple(step.read(source) for source in self.over), self.least, weight)


class LMArithmetic(Controller):
    """Decodes from a formula in place of the base.

    Args:
        formula: see `lm`, `union` and `intersection`. The sum of its weights must be positive; one
            below 1 sharpens the distribution as a temperature below 1 does.

    Raises:
        TypeError: for something else than a formula.
        ValueError: if its weights do not add up to more than 0.
    """

    name = "lm_arithmetic"

    def __init__(self, formula: Formula):
        if not isinstance(formula, Formula):
            raise TypeError(
                f"LMArithmetic needs a formula, lm(...) say, got {type(formula).__name__}"
            )
        if not formula.total > 0:
            raise ValueError(
                "a formula is divided by the sum of its weights, which must be positive, got "
                f"{formula.total:g}"
            )
        self.formula = formula

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """``1/W sum_i w_i f_i - log p``.

        Raises:
            ValueError: if a model has another tokenizer than the base; names both.
        """
        loaded = [loaded_logits(each, model, tokenizer) for each in self._models()]
        total = self.formula.total
        linear, shifts = [(-1.0, Logits())], list[Shift]()
        for summand in self.formula.summands:
            over = tuple(self._source(each, loaded, tokenizer) for each in summand.operands)
            weight = summand.weight / total
            if summand.operation == "model":
                linear.append((weight, over[0]))
            else:
                shifts.append(LogExtreme(over, summand.operation == "intersection", weight=weight))
        return Steering((LogLinear(tuple(linear)), *shifts))

    def _source(self, operand: Prompted, loaded: list[Logits], tokenizer: Any) -> Logits:
        if operand.model is None:
            return prompted(operand.prompt, tokenizer) if operand.prompt else Logits()
        source = loaded[self._number(operand.model)]
        if not operand.prompt:
            return source
        context = prompted(operand.prompt, tokenizer).context
        return replace(source, name=f"{source.name} behind {operand.prompt!r}", context=context)

    def _models(self) -> list[Model]:
        """All models but the base, each once."""
        found: list[Model] = []
        for summand in self.formula.summands:
            for operand in summand.operands:
                if operand.model is not None and not any(_is_same(operand.model, x) for x in found):
                    found.append(operand.model)
        return found

    def _number(self, model: Model) -> int:
        return next(i for i, x in enumerate(self._models()) if _is_same(model, x))

    def config(self) -> dict[str, Any]:
        summands = [
            {
                "weight": summand.weight,
                "operation": summand.operation,
                "operands": [
                    [None if x.model is None else self._number(x.model), x.prompt]
                    for x in summand.operands
                ],
            }
            for summand in self.formula.summands
        ]
        return {"summands": summands, "models": [hub_id(model) for model in self._models()]}

    def saved_parts(self) -> dict[str, Any]:
        models = enumerate(self._models())
        return {f"model_{i}": model for i, model in models if hub_id(model) is None}

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        named = enumerate(config["models"])
        models = [parts[f"model_{i}"] if name is None else name for i, name in named]
        summands = []
        for each in config["summands"]:
            pairs = each["operands"]
            over = (Prompted(None if i is None else models[i], prompt) for i, prompt in pairs)
            summands.append(Summand(each["weight"], tuple(over), each["operation"]))
        return cls.from_formula(Formula(tuple(summands)))

    @classmethod
    def from_formula(cls, formula: Formula) -> Self:
        """The controller of a formula that was saved."""
        return cls(formula)


def check_model(model: Model, who: str) -> None:
    """Refuses what cannot be a model beside the base.

    Raises:
        TypeError: naming ``who`` and what was given.
    """
    if not isinstance(model, (str, Path)) and not hasattr(model, "get_output_embeddings"):
        raise TypeError(
            f"{who} must be a causal language model, a folder or a hub id, got "
            f"{type(model).__name__}"
        )


def loaded_logits(model: Model, base: Any, tokenizer: Any, role: str = "the model") -> Logits:
    """A model beside the base: one that is given, a folder, a hub id or an adapter of the base.

    Raises:
        ValueError: if it has another tokenizer than the base; names both.
    """
    [shift] = DExperts(model, top_p=1.0).steer(base, tokenizer).shifts
    source = shift.sources[0]
    assert isinstance(source, Logits)
    return replace(source, name=f"{role} {source.name.removeprefix('expert ')}")


def hub_id(model: Model) -> str | None:
    """The id of a model that is named by one, else None: those are saved by their names."""
    return model if isinstance(model, str) and not Path(model).is_dir() else None


def _is_same(one: Model, other: Model) -> bool:
    paths = isinstance(one, (str, Path)) and isinstance(other, (str, Path))
    return Path(one) == Path(other) if paths else one is other
