"""Runs what shifts ask for: other models, the base under prompts or prefixes, candidate scores.

Each model is asked through a reader that keeps keys and values: keyed by prefix, so that answers
are pure functions of the prefix whatever the caller does, or in step with a loop that only
appends. What is not finite, and an error inside a model, names the source and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from plugalign.engine.auxiliary import CachedModel, CachedScorer
from plugalign.engine.fronts import Front
from plugalign.engine.hidden import HiddenWatch
from plugalign.engine.plan import Plan
from plugalign.engine.rows import split_rows
from plugalign.identity import model_name
from plugalign.kernels.head import Head
from plugalign.kernels.mixture import Logits, full
from plugalign.naming import Running
from plugalign.steering import BaseLogits, CandidateScores, ModelLogits, PrefixedLogits


class Reader(Protocol):
    """A model with its cache."""

    def logits(self, ids: Tensor, mask: Tensor) -> Logits:
        """Next-token logits ``(R, V)`` after ``ids`` ``(R, T)`` with their mask."""

    def forget(self) -> None:
        """Frees keys and values."""

    def rewind(self, columns: int) -> None:
        """Forgets the last columns that were read."""

    def at(self, length: int) -> None:
        """Says that so many columns of ids were read, by a graph's replay."""


ReaderKind = Callable[[Any, Tensor | None], Reader]


class SourceRunner:
    """The sources of one ``generate`` call, with their caches.

    Args:
        watch: the base's hidden states; paused while the base runs for a source.
        pad_token_id: fills the front of shorter prompts.
        prompt_length: columns of the caller's prompts, to count steps from; 0 if not known.
        reader: makes a reader of a model behind an optional trained prefix.
    """

    def __init__(
        self,
        plan: Plan,
        model: Any,
        watch: HiddenWatch,
        pad_token_id: int,
        prompt_length: int,
        reader: ReaderKind = CachedModel,
    ):
        self._plan, self._model, self._watch = plan, model, watch
        self._pad, self._prompt_length, self._reader = pad_token_id, prompt_length, reader
        self._readers: dict[Hashable, Reader] = {}
        self._scorers: dict[Hashable, CachedScorer] = {}
        self._own: CachedModel | None = None

    def logits(
        self, ids: Tensor, mask: Tensor, base: Tensor, known: Mapping[Hashable, Logits]
    ) -> dict[Hashable, Logits]:
        """Logits ``(R, V)`` by source key after the prefixes ``ids`` ``(R, T)``.

        Args:
            base: the base's logits ``(R, V)``.
            known: logits of sources that need not run.
        """
        answers: dict[Hashable, Logits] = dict(known)
        for key, source in self._plan.sources.items():
            if key in known:
                continue
            match source:
                case BaseLogits():
                    answers[key] = base
                case ModelLogits():
                    answers[key] = self._ask(key, source.model, source.name, ids, mask)
                case PrefixedLogits():
                    front = source.keys_values
                    answers[key] = self._ask(key, self._model, source.name, ids, mask, front)
        if self._plan.prompts and not self._plan.prompts.keys() <= answers.keys():
            answers |= self._prompted(ids, mask)
        return {key: fit_width(x, base.shape[-1]) for key, x in answers.items()}

    def scores(
        self, source: CandidateScores, ids: Tensor, mask: Tensor, candidates: Tensor
    ) -> Tensor:
        """Logits of P(a | x, t), ``(R, K)``, for candidate ids ``(R, K)``."""
        scorer = self._scorers.get(source.key)
        if scorer is None:
            scorer = self._scorers[source.key] = CachedScorer(source.model)
        with self.blamed(source.name, ids):
            scores = scorer.scores(ids, mask, candidates)
        self.check_source(source.name, scores, ids)
        return scores

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The base's last hidden state ``(R, D)``: watched if possible, else by our own forward."""
        seen = self._watch.find(ids)
        if seen is not None:
            return seen
        with self.blamed("the base's hidden state", ids):
            self._own = self._own or CachedModel(self._model)
            return self._own.hidden(ids, mask)

    def forget(self) -> None:
        """Frees the keys and values of all models."""
        for reader in self._readers.values():
            reader.forget()
        for scorer in self._scorers.values():
            scorer.forget()
        if self._own is not None:
            self._own.forget()

    def rewind(self, columns: int) -> None:
        """Forgets the last columns that all models have read."""
        for reader in self._readers.values():
            reader.rewind(columns)

    def at(self, length: int) -> None:
        """Says that all models have read so many columns, by a graph's replay. None of them reads
        prompts: those are rows of the base, where a step is captured."""
        for reader in self._readers.values():
            reader.at(length)

    def check(self, who: str, logits: Tensor, ids: Tensor) -> None:
        """Refuses logits ``(R, V)``, or ``(R * n, V)`` behind the last n columns of ``ids``
        ``(R, T)``, that are NaN or infinite.

        Raises:
            FloatingPointError: naming who gave them and the step.
        """
        bad = ~torch.isfinite(logits.logsumexp(-1))
        if bad.any():
            first, places = int(bad.nonzero()[0, 0]), len(logits) // len(ids)
            kind = "NaN" if logits[first].isnan().any() else "infinite"
            row, place = divmod(first, places)
            step = self.where(ids[:, : ids.shape[1] - places + 1 + place])
            raise FloatingPointError(
                f"{who} gave {kind} logits at {step} (row {row}); "
                "try float32, or look at its weights"
            )

    def check_base(self, scores: Tensor, ids: Tensor) -> None:
        """`check` for the scores that the base itself gave."""
        self.check(f"the base model '{model_name(self._model)}'", scores, ids)

    def check_source(self, name: str, logits: Logits, ids: Tensor) -> None:
        """`check` for what a source gave."""
        self.check(f"the source '{name}'", full(logits), ids)

    def _ask(
        self,
        key: Hashable,
        model: Any,
        name: str,
        ids: Tensor,
        mask: Tensor,
        keys_values: Tensor | None = None,
    ) -> Logits:
        if key not in self._readers:
            self._readers[key] = self._reader(model, keys_values)
        with self.blamed(name, ids):
            return self._readers[key].logits(ids, mask)

    def _prompted(self, ids: Tensor, mask: Tensor) -> dict[Hashable, Logits]:
        """The base behind K prompts: K * R rows of one forward."""
        prompts = self._plan.prompts
        front = Front.of(prompts.values(), self._pad)
        many, masks = zip(*(front.row(p, ids, mask) for p in prompts.values()), strict=True)
        logits = self._ask(
            "prompts", self._model, "the base under prompts", torch.cat(many), torch.cat(masks)
        )
        return dict(zip(prompts, split_rows(logits, len(prompts)), strict=True))

    @contextmanager
    def blamed(self, name: str, ids: Tensor) -> Iterator[None]:
        """Errors inside the block say that they came from a source, and at which step."""
        self._watch.paused = True
        try:
            with Running(f"the source '{name}' at {self.where(ids)}"):
                yield
        finally:
            self._watch.paused = False

    def where(self, ids: Tensor) -> str:
        """The step at which the next token of ``ids`` ``(R, T)`` is chosen, in words."""
        if self._prompt_length == 0:
            return f"prefix length {ids.shape[1]}"
        return f"step {ids.shape[1] - self._prompt_length}"


def fit_width(logits: Logits, width: int) -> Logits:
    """Cuts or fills ``(R, V')`` to the base's ``V`` columns. Columns beyond the shorter head are
    padding that no tokenizer emits, so what fills them never decides anything."""
    have = logits.shape[-1]
    if have == width:
        return logits
    if have > width and isinstance(logits, Head):
        bias = None if logits.bias is None else logits.bias[:width]
        return replace(logits, weight=logits.weight[:width], bias=bias)
    logits = full(logits)
    if have > width:
        return logits[:, :width]
    floor = logits.amin(-1, keepdim=True).expand(-1, width - have)
    return torch.cat([logits, floor], dim=-1)
