"""Who guesses the next tokens of a text, for speculative decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from plugalign.algebra.identity import model_name
from plugalign.engine.batching.batched_base import BaseOutput, BatchedBase
from plugalign.engine.readers.heads import fit_width
from plugalign.engine.readers.incremental import IncrementalModel
from plugalign.engine.selection import Selection
from plugalign.errors import Running
from plugalign.kernels import gumbel
from plugalign.kernels.head import full
from plugalign.kernels.mixture import Mixture
from plugalign.kernels.truncation import Truncation

BASE, PROMPT = "base", "prompt"
MOST_DRAFTED = 32


@dataclass(eq=False)
class Speculation:
    """What drafts tokens for ``generate(..., speculation=...)``, and how it went.

    Each of a round's tokens is drafted from those before it; then all models that a controller
    asks for read the draft in one forward, and what the controlled distribution does not bear out
    is drawn anew (see `plugalign.kernels.spec_verify`). The text is distributed as without. Rows
    go on together, as far as the row with the fewest tokens that stay. Processors of the caller's
    must be functions of (ids, scores) alone: they are asked about texts that do not stay.

    Args:
        draft: "base", the model without controllers, which runs ahead of the others; "prompt", what
            followed the last tokens where they stood before; or a smaller causal language model
            with the same tokenizer.
        tokens: drafted in a round, in [1, 32].
        ngram: how many last tokens "prompt" looks for, and then for fewer, down to one.

    Attributes:
        rounds: of all calls, without the first step of each.
        drafted, accepted, emitted: tokens of rows that had not ended before the round.
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
        """The part of the drafted tokens that stayed; NaN before any was drafted."""
        return self.accepted / self.drafted if self.drafted else float("nan")

    @property
    def described(self) -> str:
        """Who drafts how much, in words."""
        who = self.draft if isinstance(self.draft, str) else f"'{model_name(self.draft)}'"
        return f"{self.tokens} tokens at a time by {who if who != BASE else 'the base'}"


@dataclass(frozen=True, eq=False)
class Draft:
    """Drafted tokens.

    Attributes:
        tokens: int64 ``(R, G)``.
        scores: ``(R, G, V)``, what they were drawn from, before division by the temperature; None
            where nothing was drawn.
        lengths: int64 ``(R,)``, how many are meant.
        base: what the base has told of all ``R * (G + 1)`` places, if it was run already.
        failed: whether no token was possible somewhere, a bool on the device ``()``; None where
            none was drawn. `Drafter.blame` says whose fault it is.
    """

    tokens: Tensor
    scores: Tensor | None
    lengths: Tensor
    base: BaseOutput | None = None
    failed: Tensor | None = None


Check = Callable[[str, Tensor, Tensor], None]  # of who, logits and ids, see `SourceRunner.check`


class Drafter(Protocol):
    """Drafts tokens, in step with a loop."""

    def draft(self, ids: Tensor, mask: Tensor, count: int) -> Draft | None:
        """``count`` tokens behind ``ids`` ``(R, T)``, whose mask is as wide as need be; None where
        nothing is to be guessed."""

    def blame(self) -> None:
        """Looks at what the last draft was drawn from.

        Raises:
            FloatingPointError: if it was NaN or infinite.
        """

    def rewind(self, length: int) -> None:
        """Forgets what was read behind so many columns."""

    def forget(self) -> None:
        """Frees keys and values."""


class Drawn:
    """Tokens drawn one after the other, as the call itself would from other logits.

    Args:
        who: whose logits they are. check: refuses such as are NaN or infinite.
        support: which tokens of the base the controllers leave possible.
    """

    def __init__(self, who: str, check: Check, selection: Selection, support: Truncation):
        self._who, self._check, self._selection, self._support = who, check, selection, support
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []  # of one draft: logits, texts, tokens

    def begin(self) -> None:
        """Forgets the draft before."""
        self._seen.clear()

    @property
    def failed(self) -> Tensor:
        """Whether no token was possible somewhere in this draft, ``()``."""
        return torch.stack([(tokens < 0).any() for _, _, tokens in self._seen]).any()

    def blame(self) -> None:
        """See `Drafter.blame`. Where it is no model's fault, verification will say so."""
        for logits, ids, tokens in self._seen:
            if bool((tokens < 0).any()):
                self._check(self._who, logits, ids)

    def draw(self, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``(R, V)`` and tokens ``(R,)`` behind ``ids`` ``(R, T)``."""
        selection, noise = self._selection, self._selection.noise
        scores = selection.target(ids, Mixture(selection.base(ids, logits)), self._support)
        tokens = gumbel.sample(
            scores[:, 0],
            seed=noise.seed,
            prompt=noise.prompt,
            sample=noise.sample,
            step=ids.shape[1] - noise.start,
            temperature=selection.temperature,
        )
        self._seen.append((logits, ids, tokens))
        return scores[:, 0], tokens.clamp_min(0)


class BaseDrafter:
    """The base without controllers. What it has read need not be read again."""

    def __init__(self, base: BatchedBase, drawn: Drawn):
        self._base, self._drawn = base, drawn

    def draft(self, ids: Tensor, mask: Tensor, count: int) -> Draft:
        length, scores, reads = ids.shape[1], [], []
        self._drawn.begin()
        for place in range(count + 1):
            reads.append(self._base.read(ids, mask[:, : ids.shape[1]]))
            if place < count:
                some, tokens = self._drawn.draw(ids, reads[-1].base)
                scores.append(some)
                ids = torch.cat([ids, tokens[:, None]], 1)
        states = [known.hidden for known in reads if known.hidden is not None]
        base = torch.stack([known.base for known in reads], 1).flatten(0, 1)
        hidden = torch.stack(states, 1).flatten(0, 1) if states else None
        lengths = torch.full((len(ids),), count, device=ids.device)
        known, failed = BaseOutput(base, hidden, {}), self._drawn.failed
        return Draft(ids[:, length:], torch.stack(scores, 1), lengths, known, failed)

    def blame(self) -> None:
        self._drawn.blame()

    def rewind(self, length: int) -> None:
        """Nothing: the loop rewinds its base itself."""

    def forget(self) -> None:
        """Nothing, likewise."""


class ModelDrafter:
    """A smaller model."""

    def __init__(self, stream: IncrementalModel, drawn: Drawn, vocab: int):
        self._stream, self._drawn, self._vocab = stream, drawn, vocab
        self._last = stream.model.get_input_embeddings().weight.shape[0] - 1
        self._name = model_name(stream.model)

    def draft(self, ids: Tensor, mask: Tensor, count: int) -> Draft:
        length, scores = ids.shape[1], []
        self._drawn.begin()
        for _ in range(count):
            with Running(f"the draft model '{self._name}'"):
                # A token that it does not know is read as some other: it only guesses.
                known = ids.clamp_max(self._last)
                logits = self._stream.logits(known, mask[:, : ids.shape[1]])
            some, tokens = self._drawn.draw(ids, full(fit_width(logits, self._vocab)))
            scores.append(some)
            ids = torch.cat([ids, tokens[:, None]], 1)
        lengths = torch.full((len(ids),), count, device=ids.device)
        tokens = ids[:, length:]
        return Draft(tokens, torch.stack(scores, 1), lengths, failed=self._drawn.failed)

    def blame(self) -> None:
        self._drawn.blame()

    def rewind(self, length: int) -> None:
        self._stream.rewind(max(0, self._stream.length - length))

    def forget(self) -> None:
        self._stream.forget()
        self._drawn.begin()


class PromptDrafter:
    """What followed the last tokens of a text where they stood before (prompt lookup)."""

    def __init__(self, ngram: int):
        self._ngram = ngram

    def draft(self, ids: Tensor, mask: Tensor, count: int) -> Draft | None:
        places = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)  # 0: not found
        for width in range(min(self._ngram, ids.shape[1] - 1), 0, -1):
            seen = last_place(ids, mask[:, : ids.shape[1]], width)
            places = torch.where(places > 0, places, seen)
        lengths = torch.where(places > 0, ids.shape[1] - places, 0).clamp_max(count)
        if not bool(lengths.any()):
            return None
        column = (places[:, None] + torch.arange(count, device=ids.device)) % ids.shape[1]
        return Draft(ids.gather(1, column), None, lengths)

    def blame(self) -> None:
        """Nothing: no model drew."""

    def rewind(self, length: int) -> None:
        """Nothing: it keeps nothing."""

    def forget(self) -> None:
        """Nothing, likewise."""


def last_place(ids: Tensor, mask: Tensor, width: int) -> Tensor:
    """The column ``(R,)`` behind the last earlier place of a row's last ``width`` tokens, 0 where
    there is none."""
    windows, shown = ids.unfold(1, width, 1)[:, :-1], mask.unfold(1, width, 1)[:, :-1]
    same = (windows == ids[:, None, -width:]).all(-1) & shown.bool().all(-1)
    column = torch.arange(same.shape[1], device=ids.device) + width
    return torch.where(same, column, 0).amax(1)


def make_drafter(
    speculation: Speculation,
    base: BatchedBase,
    selection: Selection,
    support: Truncation,
    stream: Callable[[Any], IncrementalModel],
    check: Check,
) -> Drafter:
    """What drafts for one call.

    Args:
        support, check: see `Drawn`. stream: makes a reader of a model.
    """
    if speculation.draft == PROMPT:
        return PromptDrafter(speculation.ngram)
    model = base.model if speculation.draft == BASE else speculation.draft
    kind = "base" if speculation.draft == BASE else "draft"
    drawn = Drawn(f"the {kind} model '{model_name(model)}'", check, selection, support)
    if speculation.draft == BASE:
        return BaseDrafter(base, drawn)
    vocab = base.model.get_output_embeddings().weight.shape[0]
    return ModelDrafter(stream(model), drawn, vocab)
