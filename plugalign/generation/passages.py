"""Models that read given texts, a block of columns at a time; what prompts begin with, once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from plugalign.engine.batching.batched_base import BaseOutput
from plugalign.engine.batching.contexts import context_layout, insertion
from plugalign.engine.readers.cache_spec import check_cache
from plugalign.engine.readers.heads import SplitModel, head_input
from plugalign.engine.readers.positions import packed
from plugalign.engine.readers.prefix_cache import PrefixCache
from plugalign.engine.run import Run
from plugalign.errors import Running
from plugalign.generation.prompt_memory import PromptMemory
from plugalign.kernels.backend import FLOATS
from plugalign.kernels.head import Logits, full


@dataclass(frozen=True, eq=False)
class Batch:
    """Texts to score.

    Attributes:
        ids, mask: ``(R, T)``. lengths: how many tokens of each row are scored.
        column: where these begin in every row; None where they end with the batch, which is then
            padded on the left.
    """

    ids: Tensor
    mask: Tensor
    lengths: list[int]
    column: int | None = None

    @property
    def start(self) -> int:
        """The first column behind which a token is scored."""
        first = self.ids.shape[1] - max(self.lengths) if self.column is None else self.column
        return first - 1

    @cached_property
    def first(self) -> Tensor:
        """The column of each row's first scored token, ``(R,)``."""
        lengths = torch.tensor(self.lengths, device=self.ids.device)
        if self.column is None:
            return self.ids.shape[1] - lengths
        return torch.full_like(lengths, self.column)

    @cached_property
    def wanted(self) -> Tensor:
        """Behind which columns a token is scored, bool ``(R, T - 1)``."""
        column = torch.arange(1, self.ids.shape[1], device=self.ids.device)
        lengths = torch.tensor(self.lengths, device=self.ids.device)
        return (column >= self.first[:, None]) & (column < (self.first + lengths)[:, None])

    def chosen(self, found: Tensor) -> list[Tensor]:
        """Of numbers behind columns ``(R, T - 1)`` those of each row's scored tokens."""
        begins = (self.first - 1).tolist()
        rows = zip(found, begins, self.lengths, strict=True)
        return [row[begin : begin + length] for row, begin, length in rows]


class Passage:
    """A model that reads whole texts from left to right, a block of columns at a time.

    Args:
        ids, mask: ``(R, T)``. keys_values: a trained prefix in front, see `PrefixCache`.
        front: so many first columns are no columns of the texts.
        held: what has been read of the columns that all rows begin with, as one row.
    """

    def __init__(
        self,
        model: Any,
        split: SplitModel | None,
        ids: Tensor,
        mask: Tensor,
        *,
        keys_values: Tensor | None = None,
        front: int = 0,
        held: PrefixCache | None = None,
    ):
        if keys_values is not None:
            keys_values = keys_values.to(model.device, model.dtype)
        self._prefix = PrefixCache(model, keys_values) if held is None else held.repeated(len(ids))
        self._held = 0 if held is None else held.length
        self._model, self._split = model, split
        check_cache(model)
        if not self._prefix.spec.columns:
            ids, mask = packed(ids, mask)
        self._ids, self._mask = ids.to(model.device), mask.to(model.device)
        self._front, self._read = front, 0
        self.hidden: Tensor | None = None

    def logits(self, stop: int, row: Tensor, column: Tensor) -> Logits:
        """The logits ``(N, V)`` behind some places ``(N,)`` before column ``stop``, which is behind
        that of the last call. What the head reads there, ``(N, D)``, is kept in ``hidden``."""
        device, stop = row.device, stop + self._front
        back = column.to(self._model.device) + self._front - stop  # counted from the end
        row, first = row.to(self._model.device), self._read
        if first == 0 or not self._prefix.spec.columns:  # then all is read again
            spare = stop - self._held
            first = self._prefix.align(self._ids[:, :stop], self._mask[:, :stop], spare=spare)
        self._read = stop
        inputs = self._prefix.inputs(self._ids[:, :stop], self._mask[:, :stop], first)
        if self._split is not None:
            states = self._split.states(inputs)
            head = self._split.head(states[row, back])
            self.hidden = head.hidden.to(device)
            return head if head.device == device else head.full().to(device)
        with head_input(self._model) as seen:
            whole = self._model(**inputs).logits
        self.hidden = seen[0][row, back].to(device)
        logits: Tensor = whole[row, back].to(device)
        return logits if logits.dtype in FLOATS else logits.float()


class Sources:
    """The base and all models that the plan's shifts ask for, on one batch of texts.

    Args:
        memory: holds what was read of earlier batches. All rows of this one then have the same
            prompt.
    """

    def __init__(self, run: Run, model: Any, batch: Batch, memory: PromptMemory | None = None):
        plan, (ids, mask) = run.plan, (batch.ids, batch.mask)
        if run.extra_positions:  # an attachment fills the base's caches itself
            memory = None
        self._base = _passage(run, memory, None, model, ids, mask, batch.start)
        self._others: dict[Hashable, Passage] = {}
        for key, source in plan.sequence_logits.items():
            other = model if source.model is None else source.model
            context = source.context
            layout = context_layout([context], run.pad)
            if context.turn:
                _check_behind(insertion(context, ids, mask), batch)
            behind, shown = layout.rows(context, ids, mask)
            self._others[key] = _passage(
                run,
                memory,
                key,
                other,
                behind,
                shown[:, layout.depth :],
                batch.start,
                keys_values=context.keys_values,
                front=layout.width,
            )
        self._names = {key: plan.sources[key].name for key in self._others}

    def read(self, stop: int, row: Tensor, column: Tensor) -> BaseOutput:
        """What all models give at these places; see `Passage.logits`."""
        base = self._base.logits(stop, row, column)
        known: dict[Hashable, Logits] = {}
        for key, passage in self._others.items():
            with Running(f"the source '{self._names[key]}' on given texts"):
                known[key] = passage.logits(stop, row, column)
        return BaseOutput(full(base), self._base.hidden, known)


def _passage(
    run: Run,
    memory: PromptMemory | None,
    key: Hashable,
    model: Any,
    ids: Tensor,
    mask: Tensor,
    start: int,
    *,
    keys_values: Tensor | None = None,
    front: int = 0,
) -> Passage:
    """A model on texts ``(R, T)``, of which the memory knows the columns in front of ``start``."""
    split, held = run.split_models.get(model), None
    if memory is not None:
        held = memory.held(key, model, split, ids, mask, start + front, keys_values)
    return Passage(model, split, ids, mask, keys_values=keys_values, front=front, held=held)


def _check_behind(start: Tensor, batch: Batch) -> None:
    """Refuses to score what stands in front of the place where a controller's text begins.

    Args:
        start: the column of each row before which that text stands, 0 in front of all, ``(R,)``.

    Raises:
        ValueError: naming the text.
    """
    for row, (column, length) in enumerate(zip(start.tolist(), batch.lengths, strict=True)):
        if column > batch.ids.shape[1] - length:
            raise ValueError(
                f"text {row} begins a chat, whose opening no controller that speaks inside it can "
                "score; give what stands in front of the answer as its prompt"
            )
