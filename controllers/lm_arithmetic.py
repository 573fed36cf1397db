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

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from plugalign.algebra.shifts import LogLinear, Shift
from plugalign.algebra.sources import Logits, Step
from plugalign.algebra.steering import Steering
from plugalign.controllers.self_debias import prompted
from plugalign.controllers.with_models import (
    Model,
    ModelSettings,
    WithModels,
    check_model,
    loaded_logits,
)
from plugalign.generation.chat import chat_of, encode
from plugalign.kernels.terms.extreme import Extreme
from plugalign.kernels.terms.term import Term, Weight

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
        prompt: text in front of what it reads; in a chat the beginning of what the user says first.
            One with special tokens of the chat template, as a system turn written out has, stands
            in front of the chat.

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


class SummandSettings(BaseModel):
    """A `Summand`, whose operands are pairs of a model's name (None for the base) and a prompt."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    weight: float
    operation: Operation
    operands: list[tuple[str | None, str]] = Field(min_length=1)


class FormulaSettings(ModelSettings):
    """A formula, and the models in it."""

    summands: list[SummandSettings]


class LMArithmetic(WithModels):
    """Decodes from a formula in place of the base.

    Args:
        formula: see `lm`, `union` and `intersection`. The sum of its weights must be positive; one
            below 1 sharpens the distribution as a temperature below 1 does.
        trust_remote_code: whether code that comes with a model's folder or hub id may run.

    Raises:
        TypeError: for something else than a formula.
        ValueError: if its weights do not add up to more than 0.
    """

    name = "lm_arithmetic"
    settings = FormulaSettings

    def __init__(self, formula: Formula, *, trust_remote_code: bool = False):
        if not isinstance(formula, Formula):
            raise TypeError(
                f"LMArithmetic needs a formula, lm(...) say, got {type(formula).__name__}"
            )
        if not formula.total > 0:
            raise ValueError(
                "a formula is divided by the sum of its weights, which must be positive, got "
                f"{formula.total:g}"
            )
        self.formula, self.trust_remote_code = formula, trust_remote_code

    def steer(self, model: Any, tokenizer: Any) -> Steering:
        """``1/W sum_i w_i f_i - log p``.

        Raises:
            ValueError: if a model cannot be loaded, or has another tokenizer than the base; names
                it.
        """
        loaded = {
            name: loaded_logits(
                each, model, tokenizer, "the model", trust_remote_code=self.trust_remote_code
            )
            for name, each in self.models().items()
        }
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

    def _source(self, operand: Prompted, loaded: dict[str, Logits], tokenizer: Any) -> Logits:
        if operand.model is None:
            return behind(operand.prompt, tokenizer) if operand.prompt else Logits()
        source = loaded[self._name(operand.model)]
        if not operand.prompt:
            return source
        context = behind(operand.prompt, tokenizer).context
        return replace(source, name=f"{source.name} behind {operand.prompt!r}", context=context)

    def models(self) -> dict[str, Model]:
        """All models but the base, each once."""
        found: list[Model] = []
        for summand in self.formula.summands:
            for operand in summand.operands:
                if operand.model is not None and not any(is_same(operand.model, x) for x in found):
                    found.append(operand.model)
        return {f"model_{i}": model for i, model in enumerate(found)}

    def _name(self, model: Model) -> str:
        return next(name for name, x in self.models().items() if is_same(model, x))

    def config(self) -> dict[str, Any]:
        summands = [
            {
                "weight": summand.weight,
                "operation": summand.operation,
                "operands": [
                    [None if x.model is None else self._name(x.model), x.prompt]
                    for x in summand.operands
                ],
            }
            for summand in self.formula.summands
        ]
        return {**super().config(), "summands": summands}

    @classmethod
    def build(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> Self:
        summands = []
        for each in config["summands"]:
            for name, _ in each["operands"]:
                if name is not None and name not in parts:
                    raise ValueError(f"its formula has a model '{name}' that is none of its parts")
            over = tuple(Prompted(parts.get(name), prompt) for name, prompt in each["operands"])
            if (each["operation"] == "model") != (len(over) == 1):
                raise ValueError(f"its formula has the {each['operation']} of {len(over)} models")
            summands.append(Summand(each["weight"], over, each["operation"]))
        formula = Formula(tuple(summands))
        loaded = cls.from_formula(formula, config["trust_remote_code"])
        if loaded.formula != formula:
            raise ValueError(f"its formula is none of {cls.__name__}")
        return loaded

    @classmethod
    def from_formula(cls, formula: Formula, trust_remote_code: bool) -> Self:
        """The controller of a formula that was saved."""
        return cls(formula, trust_remote_code=trust_remote_code)


def behind(prompt: str, tokenizer: Any) -> Logits:
    """The base behind a prompt: `prompted`, but in front of a chat where the prompt has special
    tokens of its template, since it then brings turns of its own."""
    source, chat = prompted(prompt, tokenizer), chat_of(tokenizer)
    if chat is None:
        return source
    added = tokenizer.added_tokens_decoder
    special = {i for i in (*chat.user, *chat.reply) if i in added and added[i].special}
    if special.isdisjoint(encode(tokenizer, prompt)):
        return source
    return replace(source, context=replace(source.context, turn=()))


def is_same(one: Model, other: Model) -> bool:
    """Whether two are one model: the same object, or the same folder or hub id."""
    paths = isinstance(one, (str, Path)) and isinstance(other, (str, Path))
    return Path(one) == Path(other) if paths else one is other
