"""Incremental decoding: models that read each column of a growing batch once.

A `prefix_cache.CachedModel` compares what it is asked for with what it has read. In a loop that
only appends nothing need be compared, so an `IncrementalModel` reads the new columns.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer
from transformers.utils.generic import is_flash_attention_requested

from plugalign.engine.readers.cache_spec import text_config
from plugalign.engine.readers.heads import SplitModel, last_logits
from plugalign.engine.readers.positions import position_ids
from plugalign.engine.readers.prefix_cache import on_device
from plugalign.engine.readers.prefix_hook import prefixes_in
from plugalign.kernels.backend import FLOATS
from plugalign.kernels.head import Head, Logits
from plugalign.kernels.product import one_row

MASK_GROWTH = 64  # columns


class IncrementalModel:
    """A causal language model that reads texts from left to right.

    Args:
        model: a Hugging Face causal language model.
        keys_values: optional trained prefix ``(layers, 2, H_kv, P, D_head)`` in front of every row.
        split: the model's body and head where they may be run apart; logits are then a `Head`.
        cache: where keys and values go; None makes a dynamic cache.
        repeats: how many neighbouring rows of the first call are equal, int64 ``(R',)``; these are
            read once. A call with several blocks of rows repeats in each of them.
        all_positions: whether later calls give the logits of each new column, not only the last.
        max_columns: makes the cache static, with so many columns behind those of the first call;
            only where no ``cache`` is given.

    Attributes:
        length: the columns of ids that have been read.
    """

    def __init__(
        self,
        model: Any,
        keys_values: Tensor | None = None,
        *,
        split: SplitModel | None = None,
        cache: Cache | None = None,
        repeats: Tensor | None = None,
        all_positions: bool = False,
        max_columns: int | None = None,
    ):
        self.model, self._split, self._all_positions = model, split, all_positions
        self._max_columns = max_columns if cache is None else None
        self.cache: Any = cache if cache is not None else DynamicCache(config=text_config(model))
        self._keys_values = keys_values
        self._repeats = repeats if can_repeat(self.cache) else None
        self.length = 0
        self._mask: Tensor | None = None  # None where nothing is masked: no model needs it then
        # Flash attention takes the length of a text from its mask, or without one from the cache.
        self._flash = is_flash_attention_requested(model.config)
        self._prefix_columns = 0  # of the cache, in front of those of ids
        self._position = torch.empty(0)
        self._weight = next(model.parameters())
        accepts = inspect.signature(model.forward).parameters
        self._positioned = "position_ids" in accepts
        self._options: dict[str, Any] = {"use_cache": True, "past_key_values": self.cache}

    @torch.no_grad()
    def logits(self, ids: Tensor, mask: Tensor, written: int = 0) -> Logits:
        """Next-token logits ``(R, V)`` after ``ids`` ``(R, T)``, which begin with those of the call
        before; with ``all_positions`` ``(R * n, V)`` of its n new columns.

        Args:
            mask: ``(R, T)``, read by the first call alone. It may begin with further columns, for
                what the cache holds already.
        """
        new = ids[:, self.length :].to(self.model.device)
        answer = self.append(new) if self.length else self._prefill(new, mask.to(self.model.device))
        self.length = ids.shape[1]
        return on_device(answer, ids.device)

    def append(self, ids: Tensor) -> Logits:
        """`logits` after n more columns of ids ``(R, n)``."""
        width = ids.shape[1]
        held = self._prefix_columns + self.length + width
        if self._mask is not None and self._mask.shape[1] < held:
            more = self._mask.new_ones(len(self._mask), max(MASK_GROWTH, width))
            self._mask = torch.cat([self._mask, more], 1)
        # In place, so that the replay of a CUDA graph continues from here.
        place = self._position.add_(1)
        if width > 1:
            place = place + torch.arange(width, device=place.device)
            self._position = place[:, -1:].clone()
        answer = self._forward(ids, place, held, width if self._all_positions else 1, further=True)
        self.length += width
        return answer

    def rewind(self, columns: int) -> None:
        """Forgets the last columns that were read."""
        if not columns:
            return
        if is_static(self.cache):  # later columns are masked
            for layer in self.cache.layers:
                layer.cumulative_length.sub_(columns)
        else:
            self.cache.crop(-columns)
        self.length, self._position = self.length - columns, self._position - columns

    def set_length(self, length: int) -> None:
        """Notes that so many columns of ids have been read, by the replay of a CUDA graph."""
        self.length = length

    def forget(self) -> None:
        """Frees keys and values; nothing can be read afterwards."""
        self.cache.layers.clear()

    def _prefill(self, ids: Tensor, mask: Tensor) -> Logits:
        """Reads the prompts ``(R, T)``."""
        if self._max_columns is not None:
            depth = 0 if self._keys_values is None else self._keys_values.shape[-2]
            width = mask.shape[1] + depth
            config = text_config(self.model)
            self.cache = StaticCache(config=config, max_cache_len=width + self._max_columns)
            self._options["past_key_values"], self._repeats = self.cache, None
        ids, mask = self._distinct_rows(ids), self._distinct_rows(mask)
        if self._keys_values is not None:
            trained = self._keys_values.to(self.model.device, self.model.dtype)
            fill(self.cache, trained[:, :, None].expand(-1, -1, len(ids), -1, -1, -1))
            mask = torch.cat([mask.new_ones(len(mask), trained.shape[-2]), mask], 1)
        place = position_ids(mask)[:, mask.shape[1] - ids.shape[1] :]
        held = mask.shape[1]
        self._prefix_columns = held - ids.shape[1]
        if not bool(mask.all()) or (self._flash and is_static(self.cache)):
            self._mask = mask
        answer = self._forward(ids, place, held)
        self._position = place[:, -1:].clone()
        if self._repeats is not None:
            rows = torch.arange(len(ids), device=ids.device)
            self.cache.batch_select_indices(self.repeated(rows))
            self._position, answer = self.repeated(self._position), self.repeated(answer)
            self._mask = None if self._mask is None else self.repeated(self._mask)
        if self._is_fixed:  # some models need a mask, and it keeps this shape
            columns = self.cache.get_max_length() - sum(prefixes_in(self.cache).values())
            mask = mask if self._mask is None else self._mask
            self._mask = torch.cat([mask, mask.new_ones(len(mask), columns - held)], 1)
        return answer

    def _forward(
        self, ids: Tensor, place: Tensor, held: int, positions: int = 1, further: bool = False
    ) -> Logits:
        """The logits ``(R * positions, V)`` of the last positions.

        Args:
            place: position ids ``(R, n)``.
            held: columns that the cache holds after the forward.
            further: whether it holds columns before, of these texts.
        """
        inputs = {"input_ids": ids, **self._options}
        if self._positioned:
            inputs["position_ids"] = place
        if self._mask is not None:
            fixed = further and self._is_fixed
            inputs["attention_mask"] = self._mask if fixed else self._mask[:, :held]
        if self._split is not None:
            return self._split.last(inputs, positions, further)
        with one_row(ids.numel(), self._weight):
            logits = last_logits(self.model, inputs, positions).flatten(0, 1)
        return logits if logits.dtype in FLOATS else logits.float()

    @property
    def _is_fixed(self) -> bool:
        """Whether every step reads keys, values and a mask of one shape."""
        return is_static(self.cache) and not self._flash

    def distinct(self, rows: int) -> int:
        """How many of the first call's rows are read."""
        return rows if self._repeats is None else len(self._repeats)

    def repeated(self, rows: Any) -> Any:
        """What was read of the first call's distinct rows ``(R', ...)``, for all its rows."""
        if isinstance(rows, Head):
            return replace(rows, hidden=self.repeated(rows.hidden))
        if self._repeats is None:
            return rows
        counts = self._repeats.to(rows.device)
        return rows.repeat_interleave(counts.repeat(len(rows) // len(counts)), 0)

    def _distinct_rows(self, rows: Tensor) -> Tensor:
        """The first of equal rows ``(R, T)``, in each block of the call."""
        if self._repeats is None:
            return rows
        counts = self._repeats.to(rows.device)
        counts = counts.repeat(len(rows) // int(counts.sum()))
        return rows[counts.cumsum(0) - counts]


def fill(cache: Any, keys_values: Tensor) -> None:
    """Puts keys and values ``(layers, 2, R, H_kv, P, D_head)`` into a cache."""
    for layer, (keys, values) in enumerate(keys_values):
        cache.update(keys, values, layer)


def is_static(cache: Any) -> bool:
    """Whether all layers of a cache have one fixed size."""
    layers = cache.layers if isinstance(cache, StaticCache) else ()
    return bool(layers) and all(type(layer) is StaticLayer for layer in layers)


def can_repeat(cache: Any) -> bool:
    """Whether the rows of a cache can be repeated after a forward has filled it."""
    return (
        isinstance(cache, DynamicCache)
        and not getattr(cache, "offloading", False)
        and all(isinstance(layer, DynamicLayer) for layer in cache.layers)
    )
