"""Batches the base, the base in contexts and experts as extra rows of one forward.

One batch of ``(1 + K + G) R`` rows: the texts as they are, then the texts behind each of K prompts
or trained prefixes, then the texts again for each of G experts (`grouped`). In
front of all stand P cache columns for the prefixes and W token columns for the prompts; a row masks
what is not its own, and positions count what it sees.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from plugalign.algebra.sources import EMPTY, Context
from plugalign.engine.batching.contexts import context_layout
from plugalign.engine.batching.grouped import GroupedModels
from plugalign.engine.readers.heads import SplitModel
from plugalign.engine.readers.incremental import (
    IncrementalModel,
    can_repeat,
    fill,
    is_static,
    text_config,
)
from plugalign.engine.readers.prefix_hook import enlarge
from plugalign.kernels.head import Head, Logits, can_add, weighted_sum

Weights = frozenset[tuple[Hashable, float]]
FEW = 32  # rows


@dataclass(frozen=True, eq=False)
class BaseOutput:
    """What one forward tells of a step.

    Attributes:
        base: the base's logits ``(R, V)``.
        hidden: what its head read ``(R, D)``, where that is at hand.
        logits: other sources' logits by their keys.
        sums: logits of weighted sums of sources, by their keys and weights.
    """

    base: Tensor
    hidden: Tensor | None
    logits: Mapping[Hashable, Logits]
    sums: Mapping[Weights, Logits] = field(default_factory=dict)


class BatchedBase:
    """The base of one ``generate`` call, as it is, in contexts, and with experts beside it.

    Args:
        contexts: in which the base runs too, by source key.
        grouped: the base with experts, whose rows follow those of the contexts; None without.
        cache: what transformers has prepared for the base, empty.
        split: the base's body and head where they may be run apart.
        copies: so many neighbouring rows are equal in the first call.
        pad_token_id: fills the front of rows.
        every: see `IncrementalModel`.
        linear: the weights of sources whose sum is all that is asked for, see `Plan.linear`.
        exact: the base's logits are shown, so they shall be the model's own: bit for bit where
            nothing rides with it.

    Attributes:
        length: the columns of ids that were read.
    """

    def __init__(
        self,
        model: Any,
        contexts: Mapping[Hashable, Context],
        grouped: GroupedModels | None = None,
        *,
        cache: Any,
        split: SplitModel | None,
        copies: int,
        pad_token_id: int,
        every: bool = False,
        linear: Mapping[Hashable, float] | None = None,
        exact: bool = False,
    ):
        self.model, self._contexts = model, contexts
        self._grouped, self._experts = grouped, grouped.heads if grouped else {}
        if grouped is not None:
            split = grouped.split
        if exact and split is not None:
            split = split.exactly()
        self.split, self.cache = split, cache
        self._reader = IncrementalModel(model, split=split, cache=cache, copies=copies, every=every)
        self._layout = context_layout(contexts.values(), pad_token_id)
        if is_static(cache) and (more := self._layout.depth + self._layout.width):
            enlarge(cache, text_config(model), more)
        self._has_one_head = grouped is None or grouped.has_one_head
        self._exact = exact
        self._linear = {key: w for key, w in (linear or {}).items() if key in self.batched_keys}
        self.length = 0

    @property
    def count(self) -> int:
        """The rows of the forward for each row of the call."""
        return 1 + len(self._contexts) + len(self._experts)

    @property
    def batched_keys(self) -> list[Hashable]:
        """The keys of the sources that are read with the base."""
        return [*self._contexts, *self._experts]

    def read(self, ids: Tensor, mask: Tensor) -> BaseOutput:
        """What is known after ``ids`` ``(R, T)``, which begin with those of the call before; for
        each new column where every one is wanted."""
        if self.count == 1:
            answer = self._reader.logits(ids, mask)
        elif self.length:
            answer = self._reader.append(ids[:, self.length :].repeat(self.count, 1))
        else:
            answer = self._begin(ids, mask)
        self.length = ids.shape[1]
        if isinstance(answer, Head):
            return self._under_heads(answer)
        first, *others = answer.chunk(self.count)
        return BaseOutput(first, None, dict(zip(self.batched_keys, others, strict=True)))

    def _under_heads(self, answer: Head) -> BaseOutput:
        base, *others = split_head(answer, self.count)
        known = dict(zip(self.batched_keys, others, strict=True))
        if self._grouped is not None and not self._has_one_head:
            own = known | self._grouped.under_own_heads(known)
            return BaseOutput(base.full(self._exact), base.hidden, own)
        if self._exact or not is_cheap(answer):
            return BaseOutput(base.full(self._exact), base.hidden, known)
        if len(self._linear) < 2 or base.bias is not None or not can_add(base):
            first, *each = answer.full().chunk(self.count)
            return BaseOutput(first, base.hidden, dict(zip(self.batched_keys, each, strict=True)))
        return self._added_up(base, known)

    def _added_up(self, base: Head, known: dict[Hashable, Head]) -> BaseOutput:
        """All logits by one product, where of the sources that are only added up the sum is enough.
        What each of them would have given can still be asked for."""
        added = [known[key] for key in self._linear]
        apart = [key for key in known if key not in self._linear]
        heads = [base, *(known[key] for key in apart)]
        heads.append(weighted_sum(added, list(self._linear.values())))
        states = torch.cat([head.hidden for head in heads])
        first, *others, total = replace(base, hidden=states).full().chunk(len(heads))
        return BaseOutput(
            first,
            base.hidden,
            known | dict(zip(apart, others, strict=True)),
            {frozenset(self._linear.items()): total},
        )

    def _begin(self, ids: Tensor, mask: Tensor) -> Logits:
        """Reads the prompts of the call, behind what each row has in front of them."""
        rows = [EMPTY, *self._contexts.values(), *[EMPTY] * len(self._experts)]
        whole, masks = zip(*(self._layout.rows(r, ids, mask) for r in rows), strict=True)
        if self._layout.depth:
            filled = self._layout.keys_values(rows, self.model.dtype).to(self.model.device)
            fill(self.cache, filled.repeat_interleave(len(ids) // self._reader.copies, 2))
        return self._reader.logits(torch.cat(whole), torch.cat(masks))

    def base_rows(self, seen: Tensor | None, rows: int) -> Tensor | None:
        """The texts' own of what a forward showed for all rows ``(R', D)``, each once."""
        if seen is None:
            return None
        return seen.repeat_interleave(self.count * rows // len(seen), 0)[:rows]

    def restarted(self) -> BatchedBase:
        """The same rows, with nothing read yet."""
        cache = DynamicCache(config=text_config(self.model))
        return BatchedBase(
            self.model,
            self._contexts,
            self._grouped,
            cache=cache,
            split=self.split,
            copies=1,
            pad_token_id=self._layout.pad,
            linear=self._linear,
            exact=self._exact,
        )

    def forget(self) -> None:
        """Frees keys and values."""
        self._reader.forget()

    def rewind(self, columns: int) -> None:
        """Forgets the last columns that were read."""
        self._reader.rewind(columns)
        self.length -= columns

    def set_length(self, length: int) -> None:
        """Says that so many columns were read, by a graph's replay."""
        self._reader.set_length(self._reader.length + length - self.length)
        self.length = length

    def keep_base_cache(self, rows: int) -> None:
        """Leaves in the cache what a forward of the base alone would have left there."""
        if self.count == 1:
            return
        first, last = self._layout.depth + self._layout.width, int(self.cache.get_seq_length())
        parts = [
            (layer.keys[:rows, :, first:last], layer.values[:rows, :, first:last])
            for layer in self.cache.layers
        ]
        if is_static(self.cache):
            room, config = self.cache.get_max_length() - first, text_config(self.model)
            self.cache.layers = StaticCache(config=config, max_cache_len=room).layers
            for layer, (keys, values) in zip(self.cache.layers, parts, strict=True):
                layer.update(keys, values)
        else:
            for layer, (keys, values) in zip(self.cache.layers, parts, strict=True):
                layer.keys, layer.values = keys.contiguous(), values.contiguous()


def is_cheap(head: Head) -> bool:
    """Whether all rows' logits cost little more than one row's: a product of few rows waits for
    the weights. Where there are many, a head is better evaluated at the tokens that stay."""
    return not head.hidden.is_cpu or len(head.hidden) <= FEW


def takes_rows(cache: Any, captured: bool = False) -> bool:
    """Whether rows can be added to what transformers has prepared for the base: not to sliding
    windows, and to a static cache only where the whole step is captured. Else each model with a
    static cache is compiled, which cannot be said of several models as rows of one."""
    return (captured and is_static(cache)) or is_growing(cache)


def is_growing(cache: Any) -> bool:
    """Whether all layers of a cache keep every column that they were ever given."""
    return can_repeat(cache) and all(type(layer) is DynamicLayer for layer in cache.layers)


def split_rows(logits: Logits, count: int) -> list[Logits]:
    """``count`` equal blocks of rows."""
    if isinstance(logits, Head):
        return [*split_head(logits, count)]
    return [*logits.chunk(count)]


def split_head(head: Head, count: int) -> list[Head]:
    """``count`` equal blocks of rows, under the same head."""
    return [replace(head, hidden=hidden) for hidden in head.hidden.chunk(count)]
