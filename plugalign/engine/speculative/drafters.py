"""Drafters: the base, a smaller model or the text itself guesses the next tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from plugalign.algebra.identity import model_name
from plugalign.engine.batching.batched_base import BaseOutput, BatchedBase
from plugalign.engine.plan import Plan
from plugalign.engine.prefix import Prefix, prefix_of
from plugalign.engine.readers.heads import cut_off, fit_width
from plugalign.engine.readers.incremental import IncrementalModel
from plugalign.engine.selection import Selection
from plugalign.engine.speculative.drafts import BASE, PROMPT, Draft, Speculation
from plugalign.errors import Running
from plugalign.kernels import gumbel
from plugalign.kernels.head import full
from plugalign.kernels.mixture import Mixture

Check = Callable[[str, Tensor, Tensor], None]  # of a name, logits and ids: `SourceRunner.check`


class Drafter(Protocol):
    """Drafts tokens for a loop, incrementally."""

    def draft(self, ids: Tensor, mask: Tensor, count: int) -> Draft | None:
        """``count`` tokens behind ``ids`` ``(R, T)``, or None where there is nothing to propose.

        Args:
            mask: with columns for the draft too.
        """

    def check(self) -> None:
        """Checks the logits that the last draft was drawn from.

        Raises:
            FloatingPointError: if they were NaN or infinite.
        """

    def rewind(self, length: int) -> None:
        """Forgets what was read behind ``length`` columns."""

    def forget(self) -> None:
        """Frees keys and values."""


class DraftSampler:
    """Draws a draft's tokens one after the other, by the call's own selection.

    Args:
        name: of the model that gives the logits.
        check: raises for logits that are NaN or infinite.
        plan: of the controllers, who leave some tokens of the base possible and read the draft.
    """

    def __init__(self, name: str, check: Check, selection: Selection, plan: Plan):
        self._name, self._check = name, check
        self._selection, self._plan = selection, plan
        self._drawn: list[tuple[Tensor, Tensor, Tensor]] = []  # logits, texts and tokens

    def begin(self) -> None:
        """Starts a new draft."""
        self._drawn.clear()

    @property
    def failed(self) -> Tensor:
        """Whether no token was possible at some position of this draft, bool ``()``."""
        return torch.stack([(tokens < 0).any() for _, _, tokens in self._drawn]).any()

    def check(self) -> None:
        """See `Drafter.check`. Where the logits are finite, verification finds the reason."""
        for logits, ids, tokens in self._drawn:
            if bool((tokens < 0).any()):
                self._check(self._name, logits, ids)

    def draw(self, prefix: Prefix, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``(R, V)`` and tokens ``(R,)`` after a prefix, from logits ``(R, V)``."""
        selection, noise = self._selection, self._selection.noise
        known = cut_off(logits, self._plan.vocabulary)
        mixture = Mixture(selection.base(prefix, known))
        scores = selection.target(prefix, mixture, self._plan.truncation)
        tokens = gumbel.sample(
            scores[:, 0],
            seed=noise.seed,
            prompt=noise.prompt,
            sample=noise.sample,
            step=prefix.length - noise.start,
            temperature=selection.temperature,
        )
        self._drawn.append((logits, prefix.ids, tokens))
        return scores[:, 0], tokens.clamp_min(0)


class BaseDrafter:
    """Drafts with the base, without controllers. Verification need not run it again."""

    def __init__(self, base: BatchedBase, sampler: DraftSampler):
        self._base, self._sampler = base, sampler

    def draft(self, ids: Tensor, mask: Tensor, count: int) -> Draft:
        length, scores, outputs = ids.shape[1], [], []
        self._sampler.begin()
        for position in range(count + 1):
            prefix = prefix_of(ids, mask)
            outputs.append(self._base.read(prefix))
            if position < count:
                drawn_from, tokens = self._sampler.draw(prefix, outputs[-1].base)
                scores.append(drawn_from)
                ids = torch.cat([ids, tokens[:, None]], 1)
        states = [output.hidden for output in outputs if output.hidden is not None]
        base = torch.stack([output.base for output in outputs], 1).flatten(0, 1)
        hidden = torch.stack(states, 1).flatten(0, 1) if states else None
        lengths = torch.full((len(ids),), count, device=ids.device)
        output, failed = BaseOutput(base, hidden, {}), self._sampler.failed
        return Draft(ids[:, length:], torch.stack(scores, 1), lengths, output, failed)

    def check(self) -> None:
        self._sampler.check()

    def rewind(self, length: int) -> None:
        """Nothing: the loop rewinds its base itself."""

    def forget(self) -> None:
        """Nothing: the loop frees its base's cache itself."""


class ModelDrafter:
    """Drafts with a smaller model.

    Args:
        reader: of the model.
        vocab: V of the base.
    """

    def __init__(self, reader: IncrementalModel, sampler: DraftSampler, vocab: int):
        self._reader, self._sampler, self._vocab = reader, sampler, vocab
        self._last_id = reader.model.get_input_embeddings().weight.shape[0] - 1
        self._name = model_name(reader.model)

    def draft(self, ids: Tensor, mask: Tensor, count: int) -> Draft:
        length, scores = ids.shape[1], []
        self._sampler.begin()
        for _ in range(count):
            prefix = prefix_of(ids, mask)
            with Running(f"the draft model '{self._name}'"):
                # Ids beyond its vocabulary become some other token: a draft may be wrong.
                logits = self._reader.logits(ids.clamp_max(self._last_id), prefix.mask)
            drawn_from, tokens = self._sampler.draw(prefix, full(fit_width(logits, self._vocab)))
            scores.append(drawn_from)
            ids = torch.cat([ids, tokens[:, None]], 1)
        lengths = torch.full((len(ids),), count, device=ids.device)
        tokens = ids[:, length:]
        return Draft(tokens, torch.stack(scores, 1), lengths, failed=self._sampler.failed)

    def check(self) -> None:
        self._sampler.check()

    def rewind(self, length: int) -> None:
        self._reader.rewind(max(0, self._reader.length - length))

    def forget(self) -> None:
        self._reader.forget()
        self._sampler.begin()


class PromptDrafter:
    """Drafts what followed the last tokens of a text where they occurred before (prompt lookup).

    Args:
        ngram: the most last tokens that are looked for.
    """

    def __init__(self, ngram: int):
        self._ngram = ngram

    def draft(self, ids: Tensor, mask: Tensor, count: int) -> Draft | None:
        starts = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)  # 0: not found
        for width in range(min(self._ngram, ids.shape[1] - 1), 0, -1):
            match = last_match(ids, mask[:, : ids.shape[1]], width)
            starts = torch.where(starts > 0, starts, match)
        lengths = torch.where(starts > 0, ids.shape[1] - starts, 0).clamp_max(count)
        if not bool(lengths.any()):
            return None
        column = (starts[:, None] + torch.arange(count, device=ids.device)) % ids.shape[1]
        return Draft(ids.gather(1, column), None, lengths)

    def check(self) -> None:
        """Nothing: no model gave logits."""

    def rewind(self, length: int) -> None:
        """Nothing: it keeps nothing."""

    def forget(self) -> None:
        """Nothing: it keeps nothing."""


def last_match(ids: Tensor, mask: Tensor, width: int) -> Tensor:
    """The column ``(R,)`` behind the last earlier match of a row's last ``width`` tokens, or 0.

    Args:
        ids, mask: ``(R, T)``. Padding matches nothing.
    """
    windows, shown = ids.unfold(1, width, 1)[:, :-1], mask.unfold(1, width, 1)[:, :-1]
    same = (windows == ids[:, None, -width:]).all(-1) & shown.bool().all(-1)
    column = torch.arange(same.shape[1], device=ids.device) + width
    return torch.where(same, column, 0).amax(1)


def make_drafter(
    speculation: Speculation,
    base: BatchedBase,
    selection: Selection,
    plan: Plan,
    reader: Callable[[Any], IncrementalModel],
    check: Check,
) -> Drafter:
    """The drafter of one call.

    Args:
        plan, check: see `DraftSampler`.
        reader: makes a reader of a model.
    """
    if speculation.draft == PROMPT:
        return PromptDrafter(speculation.ngram)
    model = base.model if speculation.draft == BASE else speculation.draft
    kind = "base" if speculation.draft == BASE else "draft"
    sampler = DraftSampler(f"the {kind} model '{model_name(model)}'", check, selection, plan)
    if speculation.draft == BASE:
        return BaseDrafter(base, sampler)
    vocab = base.model.get_output_embeddings().weight.shape[0]
    return ModelDrafter(reader(model), sampler, vocab)
