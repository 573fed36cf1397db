"""Reads the sources that formulas declare: models in contexts, hidden states, and others.

Each model is read by a reader that keeps keys and values. A reader for any caller finds them by
prefix, so that what it gives is a pure function of the prefix; one for a loop that only appends
decodes incrementally. Errors inside a model, and logits that are not finite, name the source and
the step.
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
    """A model with its key/value cache."""

    def logits(self, ids: Tensor, mask: Tensor, written: int = 0) -> Scores:
        """Next-token logits ``(R, V)`` after ``ids`` ``(R, T)`` with their mask, of which the last
        columns were ``written`` behind the prompts."""

    def forget(self) -> None:
        """Frees keys and values."""

    def rewind(self, columns: int) -> None:
        """Forgets the last columns that were read."""

    def set_length(self, length: int) -> None:
        """Notes that so many columns of ids have been read, by the replay of a CUDA graph."""


ReaderKind = Callable[[Any, Tensor | None], ModelReader]


class SourceRunner:
    """The sources of one ``generate`` call, with their caches.

    Args:
        watch: the hidden states of the base's forwards; paused while the base runs for a source.
        pad_token_id: pads shorter prompts on the left.
        prompt_length: columns of the caller's prompts, to count steps from; 0 if not known.
        reader: makes a reader of a model behind an optional trained prefix, for sources that every
            step reads.
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
        self._base_reader: CachedModel | None = None

    def read(self, source: Source, step: Step) -> dict[Hashable, Any]:
        """A source's value at a step by its key, and those of the sources in the same forward:
        next-token logits ``(R, V)``, or whatever the source's reader gives."""
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
        if self._base_reader is not None:
            self._base_reader.forget()

    def rewind(self, columns: int) -> None:
        """Forgets the last columns that all models have read."""
        for reader in self._models.values():
            reader.rewind(columns)

    def set_length(self, length: int) -> None:
        """Notes that all models have read so many columns, by the replay of a CUDA graph. None of
        them reads prompts: in captured steps these are batched with the base."""
        for reader in self._models.values():
            reader.set_length(length)

    def check(self, name: str, logits: Tensor, ids: Tensor) -> None:
        """Refuses NaN and infinite logits: ``(R, V)``, or ``(R * n, V)`` at the last n columns of
        ``ids`` ``(R, T)``.

        Raises:
            FloatingPointError: with the ``name`` of what gave them, and the step.
        """
        bad = ~torch.isfinite(logits.logsumexp(-1))
        if bad.any():
            first, positions = int(bad.nonzero()[0, 0]), len(logits) // len(ids)
            kind = "NaN" if logits[first].isnan().any() else "infinite"
            row, position = divmod(first, positions)
            step = self.where(ids[:, : ids.shape[1] - positions + 1 + position])
            raise FloatingPointError(
                f"{name} gave {kind} logits at {step} (row {row}); "
                "try float32, or look at its weights"
            )

    def check_base(self, scores: Tensor, ids: Tensor) -> None:
        """`check` for the scores that the base itself gave."""
        self.check(f"the base model '{model_name(self._model)}'", scores, ids)

    def check_value(self, source: Source, value: Any, ids: Tensor) -> None:
        """`check` for the value of a source that gives logits or candidates."""
        if isinstance(value, Candidates):
            self.check(f"the source '{source.name}'", value.values, ids)
        elif isinstance(source, Logits):
            self.check(f"the source '{source.name}'", full(value), ids)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The base's last hidden state ``(R, D)``, from the forward that the caller has just made,
        or else by a forward of our own."""
        seen = self._watch.find(ids)
        if seen is not None:
            return seen
        with self._reading("the base's hidden state", ids):
            self._base_reader = self._base_reader or CachedModel(self._model)
            return self._base_reader.hidden(ids, mask, self._written(ids))

    def _value(self, source: Source, step: Step) -> Any:
        reader = self._readers.get(source.key)
        if reader is None:
            make = READERS.get(type(source))
            made = source.reader(self._model) if make is None else make(source, self._model)
            reader = self._readers[source.key] = made
        with self._reading(source.name, step.ids):
            value = reader.read(step)
        if isinstance(value, Tensor):
            _check_positions(source, value, step)
        if not isinstance(value, Candidates):
            return value
        if value.values.is_cpu:
            self.check_value(source, value, step.ids)
            return value
        # A check would wait for the device. So a bad row is left without a token, which is noticed.
        return Candidates(value.ids, nan_unless_finite(value.values))

    def _logits(self, source: Logits, ids: Tensor, mask: Tensor) -> dict[Hashable, Scores]:
        """The logits of all sources in the same forward, K * R rows, by key."""
        group = self._plan.forward_group(source)
        contexts = [each.context for each in group]
        layout = context_layout(contexts, self._pad)
        rows = [layout.rows(context, ids, mask) for context in contexts]
        all_ids = torch.cat([own for own, _ in rows])
        all_masks = torch.cat([own[:, layout.depth :] for _, own in rows])
        with self._reading(_forward_name(group), ids):
            written = self._written(ids) + len(source.context.after)
            logits = self._reader_of(group).logits(all_ids, all_masks, written)
        return dict(zip((x.key for x in group), split_rows(logits, len(group)), strict=True))

    def _written(self, ids: Tensor) -> int:
        """The columns of ``ids`` ``(R, T)`` behind the prompts, as far as is known."""
        return ids.shape[1] - self.prompt_length if self.prompt_length else 0

    def _reader_of(self, group: tuple[Logits, ...]) -> ModelReader:
        first = group[0]
        key = tuple(each.key for each in group)
        if key not in self._models:
            model = self._model if first.model is None else first.model
            incremental = first.key in self._plan.always_read and not first.context.after
            kind = self._reader if incremental else CachedModel
            self._models[key] = kind(model, first.context.keys_values)
        return self._models[key]

    @contextmanager
    def _reading(self, name: str, ids: Tensor) -> Iterator[None]:
        """Adds the source's name and the step to errors of the block. What the base does in it is
        not taken for a forward of the text itself."""
        outer, self._watch.paused = self._watch.paused, True
        try:
            with Running(f"the source '{name}' at {self.where(ids)}"):
                yield
        finally:
            self._watch.paused = outer  # a reader may read another source in between

    def where(self, ids: Tensor) -> str:
        """How messages call the step that chooses the next token of ``ids`` ``(R, T)``."""
        if self.prompt_length == 0:
            return f"prefix length {ids.shape[1]}"
        return f"step {ids.shape[1] - self.prompt_length}"


def _forward_name(group: tuple[Logits, ...]) -> str:
    if len(group) == 1:
        return group[0].name
    model = group[0].model
    return f"{'the base' if model is None else model_name(model)} under prompts"


def _check_positions(source: Source, value: Tensor, step: Step) -> None:
    """Refuses values for one position where a draft has several.

    Raises:
        ValueError: naming the source.
    """
    rows = len(step.base)
    if rows != len(step.ids) and value.shape[:1] != (rows,):
        raise ValueError(
            f"'{source.name}' gave {len(value)} values for {rows} rows, one for each position of a "
            "draft; a reader that reads one position at a time must not declare multi_position"
        )


def nan_unless_finite(values: Tensor) -> Tensor:
    """The values ``(R, K)``, all NaN in a row where one is NaN or +inf or all are -inf, so that no
    token of it can be drawn. Nothing waits for a device."""
    return values + 0 * values.logsumexp(-1, keepdim=True)
