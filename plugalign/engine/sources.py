"""Reads what formulas ask for: models in contexts, hidden states, and sources of other kinds.

Each model is asked through a reader that keeps keys and values: keyed by prefix, so that answers
are pure functions of the prefix whatever the caller does, or in step with a loop that only
appends. What is not finite, and an error inside a model, names the source and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from plugalign.algebra.identity import model_name
from plugalign.algebra.sources import (
    Candidates,
    CandidateValues,
    LastHidden,
    Logits,
    Reader,
    Source,
    Step,
    TextCandidateValues,
    TextLikelihood,
)
from plugalign.engine.batching.batched_base import split_rows
from plugalign.engine.batching.contexts import context_layout
from plugalign.engine.plan import Plan
from plugalign.engine.readers.candidates import CandidateReader, TextCandidateReader
from plugalign.engine.readers.heads import fit_width
from plugalign.engine.readers.hidden import HiddenWatch
from plugalign.engine.readers.likelihood import LikelihoodReader
from plugalign.engine.readers.prefix_cache import CachedModel
from plugalign.errors import Running
from plugalign.kernels.head import Logits as Scores
from plugalign.kernels.head import full

# Readers of the sources that come with the package and bring none of their own.
READERS: dict[type[Source], Callable[[Any, Any], Reader]] = {
    CandidateValues: lambda source, base: CandidateReader(source),
    TextCandidateValues: lambda source, base: TextCandidateReader(source),
    TextLikelihood: LikelihoodReader,
}


class ModelReader(Protocol):
    """A model with its cache."""

    def logits(self, ids: Tensor, mask: Tensor, written: int = 0) -> Scores:
        """Next-token logits ``(R, V)`` after ``ids`` ``(R, T)`` with their mask, of which the last
        columns were ``written`` behind the prompts."""

    def forget(self) -> None:
        """Frees keys and values."""

    def rewind(self, columns: int) -> None:
        """Forgets the last columns that were read."""

    def set_length(self, length: int) -> None:
        """Says that so many columns of ids were read, by a graph's replay."""


ReaderKind = Callable[[Any, Tensor | None], ModelReader]


class SourceRunner:
    """The sources of one ``generate`` call, with their caches.

    Args:
        watch: the base's hidden states; paused while the base runs for a source.
        pad_token_id: fills the front of shorter prompts.
        prompt_length: columns of the caller's prompts, to count steps from; 0 if not known.
        reader: makes a reader of a model behind an optional trained prefix, for sources that are
            read at every step.
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
        self._pad, self.prompt_length, self._reader = pad_token_id, prompt_length, reader
        self._models: dict[Hashable, ModelReader] = {}
        self._readers: dict[Hashable, Reader] = {}
        self._own: CachedModel | None = None

    def read(self, source: Source, step: Step) -> dict[Hashable, Any]:
        """A source's value at a step by its key, and the values that came with it: next-token
        logits ``(R, V)``, or what the source says that it gives."""
        if isinstance(source, LastHidden):
            return {source.key: self.hidden(step.ids, step.mask)}
        if not isinstance(source, Logits):
            return {source.key: self._value(source, step)}
        if source.is_base:
            return {source.key: step.base}
        width, found = step.base.shape[-1], self._logits(source, step.ids, step.mask)
        return {key: fit_width(x, width) for key, x in found.items()}

    def forget(self) -> None:
        """Frees the keys and values of all models."""
        for model in self._models.values():
            model.forget()
        for reader in self._readers.values():
            reader.forget()
        if self._own is not None:
            self._own.forget()

    def rewind(self, columns: int) -> None:
        """Forgets the last columns that all models have read."""
        for reader in self._models.values():
            reader.rewind(columns)

    def set_length(self, length: int) -> None:
        """Says that all models have read so many columns, by a graph's replay. None of them reads
        prompts: those are rows of the base, where a step is captured."""
        for reader in self._models.values():
            reader.set_length(length)

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

    def check_value(self, source: Source, value: Any, ids: Tensor) -> None:
        """`check` for what a source gave, if it gives logits or candidates' values."""
        if isinstance(value, Candidates):
            self.check(f"the source '{source.name}'", value.values, ids)
        elif isinstance(source, Logits):
            self.check(f"the source '{source.name}'", full(value), ids)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The base's last hidden state ``(R, D)``: watched if possible, else by our own forward."""
        seen = self._watch.find(ids)
        if seen is not None:
            return seen
        with self.blamed("the base's hidden state", ids):
            self._own = self._own or CachedModel(self._model)
            return self._own.hidden(ids, mask, self._written(ids))

    def _value(self, source: Source, step: Step) -> Any:
        reader = self._readers.get(source.key)
        if reader is None:
            make = READERS.get(type(source))
            own = source.reader(self._model) if make is None else make(source, self._model)
            reader = self._readers[source.key] = own
        with self.blamed(source.name, step.ids):
            value = reader.read(step)
        if not isinstance(value, Candidates):
            return value
        if value.values.is_cpu:
            self.check_value(source, value, step.ids)
            return value
        # To look would be to wait for the device, so a bad row has no token, and that is found out.
        return Candidates(value.ids, spoiled(value.values))

    def _logits(self, source: Logits, ids: Tensor, mask: Tensor) -> dict[Hashable, Scores]:
        """A model in one context, or behind several prompts: K * R rows of one forward."""
        group = self._plan.forward_group(source)
        contexts = [each.context for each in group]
        layout = context_layout(contexts, self._pad)
        rows = [layout.rows(context, ids, mask) for context in contexts]
        whole = torch.cat([own for own, _ in rows])
        shown = torch.cat([own[:, layout.depth :] for _, own in rows])
        with self.blamed(self._named(group), ids):
            written = self._written(ids) + len(source.context.after)
            logits = self._reader_of(group).logits(whole, shown, written)
        return dict(zip((x.key for x in group), split_rows(logits, len(group)), strict=True))

    def _written(self, ids: Tensor) -> int:
        """The columns of ``ids`` ``(R, T)`` behind the prompts, as far as is known."""
        return ids.shape[1] - self.prompt_length if self.prompt_length else 0

    def _reader_of(self, group: tuple[Logits, ...]) -> ModelReader:
        first = group[0]
        key = tuple(each.key for each in group)
        if key not in self._models:
            model = self._model if first.model is None else first.model
            steady = first.key in self._plan.always_read and not first.context.after
            kind = self._reader if steady else CachedModel
            self._models[key] = kind(model, first.context.keys_values)
        return self._models[key]

    def _named(self, group: tuple[Logits, ...]) -> str:
        if len(group) == 1:
            return group[0].name
        model = group[0].model
        return f"{'the base' if model is None else model_name(model)} under prompts"

    @contextmanager
    def blamed(self, name: str, ids: Tensor) -> Iterator[None]:
        """Errors inside the block say that they came from a source, and at which step."""
        outer, self._watch.paused = self._watch.paused, True
        try:
            with Running(f"the source '{name}' at {self.where(ids)}"):
                yield
        finally:
            self._watch.paused = outer  # a reader may read another source, and go on

    def where(self, ids: Tensor) -> str:
        """The step at which the next token of ``ids`` ``(R, T)`` is chosen, in words."""
        if self.prompt_length == 0:
            return f"prefix length {ids.shape[1]}"
        return f"step {ids.shape[1] - self.prompt_length}"


def spoiled(values: Tensor) -> Tensor:
    """The values ``(R, K)``, with NaN in all of a row of which one is NaN or infinite (but for
    -inf beside others), so that no token of it can be drawn. Nothing waits for a device."""
    return values + 0 * values.logsumexp(-1, keepdim=True)
