"""Speculative decoding as the caller asks for it, and drafts: guesses of a text's next tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from plugalign.algebra.identity import model_name
from plugalign.engine.batching.batched_base import BaseOutput

BASE, PROMPT = "base", "prompt"
MOST_DRAFTED = 32


@dataclass(eq=False)
class Speculation:
    """How ``generate(..., speculation=...)`` drafts tokens, and how many of them were accepted.

    Each token of a round is drafted from those before it. Then all models that the controllers need
    read the draft in one forward, and the first rejected token is drawn anew from the controlled
    distribution (see `plugalign.kernels.spec_verify`); the text is distributed as without drafts.
    All rows of a batch advance by the number of tokens that every one of them accepts. The caller's
    logits processors must be functions of (ids, scores) alone: they are given rejected texts too.

    Args:
        draft: "base", the model without controllers; "prompt", what followed the last tokens where
            they occurred before (prompt lookup); or a smaller causal language model with the same
            tokenizer.
        tokens: drafted in a round, in [1, 32].
        ngram: how many last tokens "prompt" looks for at most; if they are not found, fewer.

    Attributes:
        rounds: of all calls, without the first step of each.
        drafted, accepted, emitted: tokens, of rows that had not ended before the round.

    Raises:
        TypeError, ValueError: for an argument that is none of these.
    """

    draft: Any = BASE
    tokens: int = 4
    ngram: int = 3
    rounds: int = field(default=0, init=False)
    drafted: int = field(default=0, init=False)
    accepted: int = field(default=0, init=False)
    emitted: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.draft, str) and self.draft not in (BASE, PROMPT):
            raise ValueError(f'draft must be "base", "prompt" or a model, got {self.draft!r}')
        if not isinstance(self.draft, str) and not hasattr(self.draft, "get_output_embeddings"):
            raise TypeError(
                f'draft must be "base", "prompt" or a model, got {type(self.draft).__name__}'
            )
        if not isinstance(self.tokens, int) or not 1 <= self.tokens <= MOST_DRAFTED:
            raise ValueError(f"tokens must lie in [1, {MOST_DRAFTED}], got {self.tokens}")
        if not isinstance(self.ngram, int) or self.ngram < 1:
            raise ValueError(f"ngram must be at least 1, got {self.ngram}")

    @property
    def acceptance(self) -> float:
        """The share of the drafted tokens that were accepted; NaN before any was drafted."""
        return self.accepted / self.drafted if self.drafted else float("nan")

    @property
    def described(self) -> str:
        """How `explain` describes it."""
        name = self.draft if isinstance(self.draft, str) else f"'{model_name(self.draft)}'"
        return f"{self.tokens} tokens at a time by {name if name != BASE else 'the base'}"


@dataclass(frozen=True, eq=False)
class Draft:
    """Drafted tokens.

    Attributes:
        tokens: int64 ``(R, G)``.
        scores: ``(R, G, V)``, what they were drawn from, before division by the temperature; None
            where nothing was drawn.
        lengths: how many of a row's tokens were drafted, int64 ``(R,)``.
        base: the base's output at all ``R * (G + 1)`` positions, if drafting has run it.
        failed: whether no token was possible at some position, bool ``()`` on the device; None
            where none was drawn. `Drafter.check` then looks for the reason.
    """

    tokens: Tensor
    scores: Tensor | None
    lengths: Tensor
    base: BaseOutput | None = None
    failed: Tensor | None = None
