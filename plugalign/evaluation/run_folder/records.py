"""The records of a run: answers, their scores, and both together.

Records are checked where they are read: one that lacks a field, has one too many or holds a value
of another kind is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Key = tuple[str, int, int]
"""The address of an answer: its method, the number of its prompt, the number of its sample."""
Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Scores = dict[str, Annotated[float, Field(ge=0, le=1)] | None]
"""By judge, None where it failed."""


class Addressed(BaseModel):
    """A record of one answer."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    method: str
    prompt: Count
    sample: Count

    @property
    def key(self) -> Key:
        return self.method, self.prompt, self.sample

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON values, without what is at its default."""
        return self.model_dump(exclude_defaults=True)


class Revised(BaseModel):
    """What a controller that rewrites finished answers did to one.

    Attributes:
        controller: its class.
        faults: in each round the probability of a fault, None where none was asked for.
        draft: the answer as it was before, None if it was left alone.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    controller: str
    faults: tuple[Annotated[float, Field(ge=0, le=1)] | None, ...] = ()
    draft: str | None = None


class Generated(Addressed):
    """An answer.

    Attributes:
        text: the answer without special tokens.
        tokens: up to and including the end token.
        batch: the number of its batch; all methods share the batches.
        seconds: its share of the time that its batch took.
        revised: what each reviser did to it.
        revisions: what the revisers counted over all answers of its batch.
    """

    text: str
    tokens: tuple[Count, ...]
    batch: Count
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    revised: tuple[Revised, ...] = ()
    revisions: dict[str, Count] = {}


class Matched(BaseModel):
    """An answer beside base's, both cut to the shorter of the two.

    Attributes:
        tokens: the length of both, without end tokens.
        scores: of the answer.
        base: of the base's answer with the same prompt and noise.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    tokens: Count
    scores: Scores
    base: Scores


class Outside(BaseModel):
    """How likely an outside model finds an answer: see `Scored`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    nll: Finite | None
    tokens: Count


class Scored(Addressed):
    """The scores of an answer under the judges and the scoring model.

    Attributes:
        scores: by judge.
        nll: the negative log-likelihood in nats, None for an empty answer.
        scored_tokens: how many tokens that is the sum of.
        errors: by judge, why it failed.
        outside: the likelihood under an outside model, in its own tokens; None without one.
        answer: a hash of the answer, and of base's, that were scored.
        matched: the same of answers of equal length; None for base itself.
    """

    scores: Scores
    nll: Finite | None
    scored_tokens: Count
    errors: dict[str, str | None] = {}
    outside: Outside | None = None
    answer: str | None = None
    matched: Matched | None = None


@dataclass(frozen=True)
class Answer:
    """An answer with its scores."""

    generated: Generated
    scored: Scored

    def __post_init__(self) -> None:
        assert self.generated.key == self.scored.key


def answer_hash(*answers: Generated) -> str:
    """A hash of answers' token ids, by which a score knows what it was given."""
    digest = hashlib.sha256()
    for answer in answers:
        digest.update(repr(answer.tokens).encode())
    return digest.hexdigest()[:16]


def described(key: Key) -> str:
    """A key in words."""
    method, prompt, sample = key
    return f"{method!r}, prompt {prompt}, sample {sample}"


def keys_of(methods: Sequence[str], prompts: int, samples: int) -> set[Key]:
    """All answers of a run."""
    return {(m, p, s) for m in methods for p in range(prompts) for s in range(samples)}
