"""The base with what is batched with it: the base in other contexts, and experts, as extra rows.

One forward has ``(1 + K + G) R`` rows: the texts as they are, then the texts in each of K contexts,
then the texts again for each of G experts (`grouped`). On the left of all rows are P cache columns
for trained prefixes and W token columns for prompts; a row masks those that are not its own, and
its positions count what it sees.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from plugalign.algebra.sources import EMPTY, Context
from plugalign.engine.batching.contexts import context_layout
from plugalign.engine.batching.grouped import GroupedModels
from plugalign.engine.prefix import Prefix
from plugalign.engine.readers.cache_spec import COLUMNS, text_config, windows_of
from plugalign.engine.readers.heads import SplitModel
from plugalign.engine.readers.incremental import (
    IncrementalModel,
    can_repeat,
    fill,
    is_static,
)
from plugalign.engine.readers.prefix_hook import enlarge
from plugalign.kernels.head import Head, Logits, can_add, weighted_sum

Weights = frozenset[tuple[Hashable, float]]
FEW = 32  # rows


@dataclass(frozen=True, eq=False)
class BaseOutput:
    """What one forward of the base gives for a step.

    Attributes:
        base: the base's logits ``(R, V)``.
        hidden: what its head read ``(R, D)``, where that is known.
        logits: those of the sources batched with it, by their keys.
        sums: logits of weighted sums of sources, by their keys and weights.
    """

    base: Tensor
    hidden: Tensor | None
    logits: Mapping[Hashable, Logits]
    sums: Mapping[Weights, Logits] = field(default_factory=dict)


class BatchedBase:
    """The base of one ``generate`` call, and the sources that are rows of its forward.

    Args:
        contexts: in which the base runs too, by source key.
        grouped: the base and its experts as one model, whose rows follow those of the contexts;
            None without experts.
        cache: the base's, empty, as transformers has prepared it.
        split: the base's body and head where they may be run apart.
        repeats: how often each prompt stands behind itself, see `Call`.
        pad_token_id: pads rows on the left.
        all_positions: see `IncrementalModel`.
        linear: the weights of sources of which only the sum is wanted, see `Plan.linear`.
        exact: whether the base's logits are returned to the caller, and must equal the model's own:
            bit for bit where nothing is batched with it.

    Attributes:
        length: the columns of ids that have been read.
    """

    def __init__(
        self,
        model: Any,
        contexts: Mapping[Hashable, Context],
        grouped: GroupedModels | None = None,
        *,
        cache: Any,
        split: SplitModel | None,
        repeats: Tensor | None,
        pad_token_id: int,
        all_positions: bool = False,
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
        self._reader = IncrementalModel(
            model, split=split, cache=cache, repeats=repeats, all_positions=all_positions
        )
        self._layout = context_layout(contexts.values(), pad_token_id)
        if is_static(cache) and (more := self._layout.columns):
            enlarge(cache, text_config(model), more)
        self._has_one_head = grouped is None or grouped.has_one_head
        self._exact = exact
        self._linear = {key: w for key, w in (linear or {}).items() if key in self.batched_keys}
        self.length = 0

    @property
    def blocks(self) -> int:
        """1 + K + G: so many rows of the forward belong to each row of the call."""
        return 1 + len(self._contexts) + len(self._experts)

    @property
    def batched_keys(self) -> list[Hashable]:
        """The keys of the sources that are batched with the base."""
        return [*self._contexts, *self._experts]

    def read(self, prefix: Prefix) -> BaseOutput:
        """Reads the new columns of a prefix that begins with the one before it. The output is that
        of its last column, or with ``all_positions`` of each new one."""
        ids = prefix.ids
        if self.blocks == 1:
            answer = self._reader.logits(ids, prefix.mask)
        elif self.length:
            answer = self._reader.append(ids[:, self.length :].repeat(self.blocks, 1))
        else:
            answer = self._read_prompts(ids, prefix.mask)
        self.length = ids.shape[1]
        if isinstance(answer, Head):
            return self._evaluated(answer)
        first, *others = answer.chunk(self.blocks)
        return BaseOutput(first, None, dict(zip(self.batched_keys, others, strict=True)))

    def _evaluated(self, answer: Head) -> BaseOutput:
        """The output of a body's states under the head, evaluated as far as that is cheap."""
        base, *others = split_head(answer, self.blocks)
        heads = dict(zip(self.batched_keys, others, strict=True))
        if self._grouped is not None and not self._has_one_head:
            own = heads | self._grouped.under_own_heads(heads)
            return BaseOutput(base.full(), base.hidden, own)
        if self._exact or not is_cheap(answer):
            return BaseOutput(base.full(), base.hidden, heads)
        if len(self._linear) < 2 or base.bias is not None or not can_add(base):
            first, *each = answer.full().chunk(self.blocks)
            logits = dict(zip(self.batched_keys, each, strict=True))
            return BaseOutput(first, base.hidden, logits)
        return self._with_sum(base, heads)

    def _with_sum(self, base: Head, heads: dict[Hashable, Head]) -> BaseOutput:
        """The output by one product, with the sum of the sources of which only that is wanted in
        their place. Their own logits can still be asked for."""
        added = [heads[key] for key in self._linear]
        apart = [key for key in heads if key not in self._linear]
        evaluated = [base, *(heads[key] for key in apart)]
        evaluated.append(weighted_sum(added, list(self._linear.values())))
        states = torch.cat([head.hidden for head in evaluated])
        first, *others, total = replace(base, hidden=states).full().chunk(len(evaluated))
        return BaseOutput(
            first,
            base.hidden,
            heads | dict(zip(apart, others, strict=True)),
            {frozenset((key, w) for key, w in self._linear.items() if w != 0): total},
        )

    def _read_prompts(self, ids: Tensor, mask: Tensor) -> Logits:
        """Reads the call's prompts ``(R, T)``, each block in its context."""
        contexts = [EMPTY, *self._contexts.values(), *[EMPTY] * len(self._experts)]
        rows, masks = zip(*(self._layout.rows(c, ids, mask) for c in contexts), strict=True)
        if self._layout.depth:
            filled = self._layout.keys_values(contexts, self.model.dtype).to(self.model.device)
            fill(self.cache, filled.repeat_interleave(self._reader.distinct(len(ids)), 2))
        return self._reader.logits(torch.cat(rows), torch.cat(masks))

    def base_rows(self, seen: Tensor | None, rows: int) -> Tensor | None:
        """The base's own ``(R, D)`` of what a hook saw of all rows ``(R', D)``, where equal prompts
        may have been read once."""
        if seen is None:
            return None
        every: Tensor = seen if len(seen) == self.blocks * rows else self._reader.repeated(seen)
        return every[:rows]

    def restarted(self) -> BatchedBase:
        """The same, with nothing read yet and a cache of its own."""
        cache = DynamicCache(config=text_config(self.model))
        return BatchedBase(
            self.model,
            self._contexts,
            self._grouped,
            cache=cache,
            split=self.split,
            repeats=None,
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
        """Notes that so many columns have been read, by the replay of a CUDA graph."""
        self._reader.set_length(self._reader.length + length - self.length)
        self.length = length

    def keep_base_cache(self, rows: int) -> None:
        """Cuts the cache down to what a forward of the base alone would have left there."""
        if self.blocks == 1:
            return
        first, last = self._layout.columns, int(self.cache.get_seq_length())
        kept = [
            (layer.keys[:rows, :, first:last], layer.values[:rows, :, first:last])
            for layer in self.cache.layers
        ]
        if is_static(self.cache):
            length, config = self.cache.get_max_length() - first, text_config(self.model)
            self.cache.layers = StaticCache(config=config, max_cache_len=length).layers
            for layer, (keys, values) in zip(self.cache.layers, kept, strict=True):
                layer.update(keys, values)
        else:
            for layer, (keys, values) in zip(self.cache.layers, kept, strict=True):
                layer.keys, layer.values = keys.contiguous(), values.contiguous()
                if isinstance(layer, DynamicSlidingWindowLayer):
                    layer.cumulative_length -= first


def is_cheap(head: Head) -> bool:
    """Whether the logits of all rows cost little more than those of one: the product of few rows is
    bound by memory. Of many rows a head is better evaluated at the tokens that are kept, unless
    whole distributions are compared."""
    return head.float32 or not head.hidden.is_cpu or len(head.hidden) <= FEW


def takes_contexts(model: Any, cache: Any, columns: int | None) -> bool:
    """Whether the base's rows may stand behind contexts of their own in a batch that
    `takes_experts`. Where layers attend to a window, only as long as all columns are in it: a
    window counts the columns that a row masks, since they belong to another row's context. The last
    token is never read, so a layer that keeps one column less than its window keeps them all.

    Args:
        columns: of a row at the end of the call, contexts with it; None where there is no end.
    """
    windows = windows_of(model, cache)
    return not windows or (columns is not None and columns <= min(windows))


def takes_experts(cache: Any, captured: bool = False) -> bool:
    """Whether the base's forward may have more rows than the call: experts, over sliding windows
    too, since all rows have the base's own columns. With a static cache only where the whole step
    is captured: otherwise transformers compiles each model with a static cache by itself."""
    if is_static(cache):
        return captured
    return can_repeat(cache) and all(type(layer) in COLUMNS for layer in cache.layers)


def is_growing(cache: Any) -> bool:
    """Whether all layers of a cache grow, and keep every column."""
    return can_repeat(cache) and all(type(layer) is DynamicLayer for layer in cache.layers)


def split_rows(logits: Logits, count: int) -> list[Logits]:
    """``count`` equal blocks of rows."""
    if isinstance(logits, Head):
        return [*split_head(logits, count)]
    return [*logits.chunk(count)]


def split_head(head: Head, count: int) -> list[Head]:
    """``count`` equal blocks of rows, under the same head."""
    return [replace(head, hidden=hidden) for hidden in head.hidden.chunk(count)]
