"""Scorers of candidates: how probable it is that a text that goes on with a token has an attribute.

A scorer gives for each candidate t ``P(a | x, t)``. It is a controller that steers by such a
probability (`Fudge`, `FudgeHead`, `RAD`, or one of your own that declares the same kind of shift),
of which the probability alone is taken, or a `TokenTable`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import Identity, model_name, vocabulary_hash
from plugalign.algebra.shifts import CandidateShift, HeadAttribute, Shift
from plugalign.algebra.sources import Source, Step
from plugalign.algebra.steering import Steering, bind_gates
from plugalign.files.shown import listed
from plugalign.kernels.head import entries
from plugalign.kernels.terms.log_sigmoid import LogSigmoid


@dataclass(frozen=True, eq=False)
class TokenTable:
    """A number in [0, 1] for each token, whatever stands before it: of a principle how far the
    token violates it, of a feature how far it has it.

    Attributes:
        values: ``(V,)``, one for each token that the model can choose.
        vocabulary: the hash of the tokenizer whose ids these are, None for any of this size.

    Raises:
        ValueError: for another shape, or numbers outside [0, 1].
    """

    values: Tensor
    vocabulary: str | None = None

    def __post_init__(self) -> None:
        values = self.values
        if values.ndim != 1 or not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(
                f"a table of tokens holds numbers in [0, 1], (V,), got {tuple(values.shape)} from "
                f"{float(values.min()):g} to {float(values.max()):g}"
            )

    @classmethod
    def of_words(cls, words: Iterable[str], model: Any, tokenizer: Any) -> TokenTable:
        """1 for each token that is one of these words, a space before it or not, in any case.

        Raises:
            ValueError: if no token is one of them.
        """
        wanted = {word.strip().casefold() for word in words}
        values = torch.zeros(model.get_output_embeddings().weight.shape[0])
        for token in range(min(len(tokenizer), len(values))):
            if tokenizer.decode([token]).strip().casefold() in wanted:
                values[token] = 1.0
        if not bool(values.any()):
            raise ValueError(f"no token of the tokenizer is one of the words {listed(wanted)}")
        return cls(values, vocabulary_hash(tokenizer))


Scorer = Controller | TokenTable


def check_scorer(what: str, name: str, scorer: object) -> None:
    """Refuses a nameless scorer, and what is none.

    Args:
        what: for messages.

    Raises:
        ValueError, TypeError: naming it.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"a principle or feature needs a name, got {name!r}")
    if not isinstance(scorer, (Controller, TokenTable)):
        raise TypeError(
            f"{what} needs a scorer of candidates: a controller that steers by a probability "
            f"(Fudge, FudgeHead, RAD) or a TokenTable, got {type(scorer).__name__}"
        )


def check_one_tokenizer(scorers: Mapping[str, object]) -> None:
    """Refuses scorers (or controllers) that were fitted for the ids of different tokenizers.

    Args:
        scorers: by what messages call them.

    Raises:
        ValueError: naming two of them.
    """
    known = {what: found for what, each in scorers.items() if (found := _tokenizer_of(each))}
    for what, (vocabulary, name) in known.items():
        first, (wanted, other) = next(iter(known.items()))
        if vocabulary != wanted:
            raise ValueError(
                f"{first} reads the token ids of {other} and {what} those of {name}, which are "
                "others; fit both for one model"
            )


def _tokenizer_of(scorer: object) -> tuple[str, str] | None:
    """The hash of the tokenizer that a scorer was made for, and the name of its model."""
    if isinstance(scorer, TokenTable):
        return None if scorer.vocabulary is None else (scorer.vocabulary, "its table")
    fitted = getattr(scorer, "fitted_for", None)
    return (fitted.vocabulary, f"'{fitted.name}'") if isinstance(fitted, Identity) else None


def check_reference(what: str, controller: object) -> None:
    """Refuses a top-down controller that is none, or acts on more than the distribution.

    Args:
        what: for messages.

    Raises:
        TypeError, ValueError: naming it and the cure.
    """
    if not isinstance(controller, Controller):
        raise TypeError(f"{what} must be a Controller or None, got {type(controller).__name__}")
    for weight, part in controller.parts():
        beyond = [s for s in ("prompt", "attach", "revise") if part.overrides(s)]
        if weight != 0 and beyond:
            raise ValueError(
                f"{what}: {part.display_name} acts on {' and '.join(beyond)}; add it to the "
                "equilibrium (equilibrium + it), whose reference then is what it makes of the base"
            )


def declared(controller: Controller | None, model: Any, tokenizer: Any) -> Steering:
    """What a controller or a sum declares for a model, in one; nothing for None.

    Raises:
        ValueError: from a part that cannot work with this model or tokenizer.
    """
    weighted = () if controller is None else controller.parts()
    steered = (part.steer(model, tokenizer).scaled(w) for w, part in weighted if w != 0)
    parts = bind_gates(steered, model, tokenizer)
    shifts = chain.from_iterable(part.shifts for part in parts)
    return Steering(tuple(shifts), tuple(chain.from_iterable(part.supports for part in parts)))


class Probability(ABC):
    """What a scorer says of the candidates of a step, for one model."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that it reads."""
        return ()

    @abstractmethod
    def at(self, step: Step, ids: Tensor) -> Tensor:
        """``P(a | x, t)`` of the base's best tokens ``ids`` ``(R, K)``, float64 ``(R, K)``."""


@dataclass(frozen=True, eq=False)
class OfTokens(Probability):
    """A number of each token.

    Attributes:
        values: float64 ``(V,)``.
    """

    values: Tensor

    def at(self, step: Step, ids: Tensor) -> Tensor:
        return self.values[ids]


@dataclass(frozen=True, eq=False)
class OfCandidates(Probability):
    """What a predictor or reward model says of the text that each candidate would make."""

    shift: CandidateShift

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.shift.sources

    def at(self, step: Step, ids: Tensor) -> Tensor:
        values: Tensor = step.read(self.shift.scores).values.double()
        return values.sigmoid() if self.shift.link == "logsigmoid" else values.clamp(0, 1)


@dataclass(frozen=True, eq=False)
class OfHead(Probability):
    """What a head on the base's hidden state says."""

    shift: HeadAttribute

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.shift.sources

    def at(self, step: Step, ids: Tensor) -> Tensor:
        [term] = self.shift.terms(step, 1.0)
        assert isinstance(term, LogSigmoid)
        row = torch.arange(len(ids), device=ids.device).repeat_interleave(ids.shape[1])
        return entries(term.logits, row, ids.flatten()).view(ids.shape).double().sigmoid()


def bound(scorer: Scorer, what: str, model: Any, tokenizer: Any, k: int) -> Probability:
    """A scorer for one model, which scores its k best tokens.

    Args:
        what: for messages.

    Raises:
        ValueError: naming it, if it was made for another model or tokenizer, or gives no
            probability.
    """
    try:
        if isinstance(scorer, TokenTable):
            return _of_tokens(scorer, model, tokenizer)
        scorer.check(model, tokenizer)
        return _of_shifts(scorer.display_name, scorer.steer(model, tokenizer).shifts, k)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _of_tokens(table: TokenTable, model: Any, tokenizer: Any) -> OfTokens:
    if table.vocabulary not in (None, vocabulary_hash(tokenizer)):
        raise ValueError(
            f"its table of tokens was made for another tokenizer than that of '{model_name(model)}'"
        )
    rows = model.get_output_embeddings().weight.shape[0]
    if len(table.values) != rows:
        raise ValueError(
            f"its table has {len(table.values)} tokens, but '{model_name(model)}' can choose {rows}"
        )
    return OfTokens(table.values.double().to(model.device))


def _of_shifts(name: str, shifts: Sequence[Shift], k: int) -> Probability:
    shift = shifts[0] if len(shifts) == 1 else None
    if isinstance(shift, HeadAttribute) and not shift.gates:
        return OfHead(shift)
    if isinstance(shift, CandidateShift) and shift.link != "identity" and not shift.gates:
        return OfCandidates(replace(shift, scores=replace(shift.scores, k=k)))
    raise ValueError(
        f"a {name} steers by no probability in [0, 1] of each candidate; take a Fudge, a "
        "FudgeHead, a RAD or a TokenTable"
    )
