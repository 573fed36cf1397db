"""Rows, not forwards: the base under prompts and behind prefixes rides with the base itself.

One batch of ``(1 + K + G) R`` rows: the texts as they are, then the texts behind each of K prompts
or trained prefixes, then the texts again for each of G experts (`plugalign.engine.grouped`). In
front of all stand P cache columns for the prefixes and W token columns for the prompts; a row masks
what is not its own, and positions count what it sees.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from plugalign.engine.grouped import Grouped
from plugalign.engine.heads import Split
from plugalign.engine.plan import Plan
from plugalign.engine.prefixing import enlarge
from plugalign.engine.streams import Stream, can_repeat, fill, is_static, text_config
from plugalign.kernels.head import Head
from plugalign.kernels.mixture import Logits, full
from plugalign.steering import PrefixedLogits, PromptedLogits

Rider = PromptedLogits | PrefixedLogits
FEW = 32  # rows


@dataclass(frozen=True)
class Front:
    """What stands in front of texts, the same number of columns for each.

    Attributes:
        depth: P, columns of trained keys and values, which are in a cache and have no token ids.
        width: W, columns of prompts.
        pad: the token that fills them.
    """

    depth: int
    width: int
    pad: int

    @classmethod
    def of(cls, riders: Iterable[Rider], pad: int) -> Front:
        """Room for the longest of each kind."""
        depths, widths = [0], [0]
        for rider in riders:
            match rider:
                case PrefixedLogits():
                    depths.append(rider.keys_values.shape[-2])
                case PromptedLogits():
                    widths.append(len(rider.prefix))
        return cls(max(depths), max(widths), pad)

    def row(self, rider: Rider | None, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ids ``(R, W + T)`` and mask ``(R, P + W + T)`` of the texts ``ids`` ``(R, T)`` behind a
        rider's front, or as they are. What a row does not use is masked, so positions run on
        without a gap."""
        prefix: tuple[int, ...] = ()
        depth = 0
        if isinstance(rider, PromptedLogits):
            prefix, mask = rider.prefix, without_start(rider, ids, mask)
        elif isinstance(rider, PrefixedLogits):
            depth = rider.keys_values.shape[-2]
        gap = self.width - len(prefix)
        front = ids.new_tensor([self.pad] * gap + list(prefix)).expand(len(ids), -1)
        ones = [0] * (self.depth - depth) + [1] * depth + [0] * gap + [1] * len(prefix)
        shown = mask.new_tensor(ones).expand(len(ids), -1)
        return torch.cat([front, ids], 1), torch.cat([shown, mask], 1)

    def keys_values(self, riders: Sequence[Rider | None], dtype: torch.dtype) -> Tensor:
        """``(layers, 2, K, H_kv, P, D_head)``: the prefixes right-aligned, zeros where masked."""
        shape = next(r.keys_values.shape for r in riders if isinstance(r, PrefixedLogits))
        layers, both, heads, _, size = shape
        whole = torch.zeros(layers, both, len(riders), heads, self.depth, size, dtype=dtype)
        for k, rider in enumerate(riders):
            if isinstance(rider, PrefixedLogits):
                first = self.depth - rider.keys_values.shape[-2]
                whole[:, :, k, :, first:] = rider.keys_values
        return whole


class BaseRows:
    """The base of one ``generate`` call, with its riders.

    Args:
        riders: by source key, see `riders`.
        grouped: the base with experts, whose rows follow those of the riders; None without.
        cache: what transformers has prepared for the base, empty.
        split: the base's body and head where they may be run apart.
        copies: so many neighbouring rows are equal in the first call.
        pad_token_id: fills the front of rows.
        every: see `Stream`.

    Attributes:
        length: the columns of ids that were read.
    """

    def __init__(
        self,
        model: Any,
        riders: dict[Hashable, Rider],
        grouped: Grouped | None = None,
        *,
        cache: Any,
        split: Split | None,
        copies: int,
        pad_token_id: int,
        every: bool = False,
    ):
        self.model, self._riders = model, riders
        self._grouped, self._experts = grouped, grouped.heads if grouped else {}
        if grouped is not None:
            split = grouped.split
        self.split, self.cache = split, cache
        self._stream = Stream(model, split=split, cache=cache, copies=copies, every=every)
        self._front = Front.of(riders.values(), pad_token_id)
        if is_static(cache) and (more := self._front.depth + self._front.width):
            enlarge(cache, text_config(model), more)
        self._has_one_head = grouped is None or grouped.has_one_head
        self.length = 0

    @property
    def count(self) -> int:
        """The rows of the forward for each row of the call."""
        return 1 + len(self._riders) + len(self._experts)

    @property
    def aboard(self) -> list[Hashable]:
        """The keys of the sources that are read with the base."""
        return [*self._riders, *self._experts]

    def read(
        self, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor | None, dict[Hashable, Logits]]:
        """What is known after ``ids`` ``(R, T)``, which begin with those of the call before.

        Returns:
            The base's logits ``(R, V)``, what its head read ``(R, D)`` where that is at hand, and
            the riders' and experts' logits by source key; for each new column where every one is
            wanted.
        """
        if self.count == 1:
            answer = self._stream.logits(ids, mask)
        elif self.length:
            answer = self._stream.append(ids[:, self.length :].repeat(self.count, 1))
        else:
            answer = self._begin(ids, mask)
        self.length = ids.shape[1]
        hidden = None
        if isinstance(answer, Head):
            hidden = answer.hidden[: len(answer.hidden) // self.count]
            if self._has_one_head and is_cheap(answer):
                answer = answer.full()
        parts = split_rows(answer, self.count)
        known = dict(zip(self.aboard, parts[1:], strict=True))
        if self._grouped is not None and not self._has_one_head:
            known |= self._grouped.under_own_heads(known)
        return full(parts[0]), hidden, known

    def _begin(self, ids: Tensor, mask: Tensor) -> Logits:
        """Reads the prompts of the call, behind what each row has in front of them."""
        rows = [None, *self._riders.values(), *[None] * len(self._experts)]
        whole, masks = zip(*(self._front.row(r, ids, mask) for r in rows), strict=True)
        if self._front.depth:
            filled = self._front.keys_values(rows, self.model.dtype).to(self.model.device)
            fill(self.cache, filled.repeat_interleave(len(ids) // self._stream.copies, 2))
        return self._stream.logits(torch.cat(whole), torch.cat(masks))

    def own_rows(self, seen: Tensor | None, rows: int) -> Tensor | None:
        """The texts' own of what a forward showed for all rows ``(R', D)``, each once."""
        if seen is None:
            return None
        return seen.repeat_interleave(self.count * rows // len(seen), 0)[:rows]

    def afresh(self) -> BaseRows:
        """The same rows, with nothing read yet."""
        cache = DynamicCache(config=text_config(self.model))
        return BaseRows(
            self.model, self._riders, self._grouped, cache=cache, split=self.split, copies=1,
            pad_token_id=self._front.pad,
        )  # fmt: skip

    def forget(self) -> None:
        """Frees keys and values."""
        self._stream.forget()

    def rewind(self, columns: int) -> None:
        """Forgets the last columns that were read."""
        self._stream.rewind(columns)
        self.length -= columns

    def at(self, length: int) -> None:
        """Says that so many columns were read, by a graph's replay."""
        self._stream.at(self._stream.length + length - self.length)
        self.length = length

    def own_cache(self, rows: int) -> None:
        """Leaves in the cache what a forward of the base alone would have left there."""
        if self.count == 1:
            return
        first, last = self._front.depth + self._front.width, int(self.cache.get_seq_length())
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


def riders(plan: Plan) -> dict[Hashable, Rider]:
    """The plan's sources that are the base itself with something in front of the texts."""
    return {
        k: s for k, s in plan.sources.items() if isinstance(s, (PromptedLogits, PrefixedLogits))
    }


def without_start(rider: PromptedLogits, ids: Tensor, mask: Tensor) -> Tensor:
    """The mask ``(R, T)`` without the start token that a row's own text begins with, where the
    prompt in front of it begins with one."""
    if rider.start_token is None:
        return mask
    first = (mask.cumsum(-1) == 1) & mask.bool()
    return mask.masked_fill(first & (ids == rider.start_token), 0)


def split_rows(logits: Logits, count: int) -> list[Logits]:
    """``count`` equal blocks of rows."""
    if isinstance(logits, Head):
        blocks = logits.hidden.chunk(count)
        return [Head(hidden, logits.weight, logits.bias) for hidden in blocks]
    return list(logits.chunk(count))
