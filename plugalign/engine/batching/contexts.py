"""What stands in front of texts: prompts, as tokens, and trained prefixes, as keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plugalign.algebra.sources import Context


@dataclass(frozen=True)
class ContextLayout:
    """What stands in front of texts, the same number of columns for each.

    Attributes:
        depth: P, columns of trained keys and values, which are in a cache and have no token ids.
        width: W, columns of prompts.
        pad: the token that fills them.
    """

    depth: int
    width: int
    pad: int

    def rows(self, context: Context, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ids ``(R, W + T + A)`` and mask ``(R, P + W + T + A)`` of the texts ``ids`` ``(R, T)`` in
        a context with A tokens behind them. What a row does not use is masked, so positions run on
        without a gap."""
        prefix, depth, mask = context.ids, context.depth, without_start(context, ids, mask)
        gap = self.width - len(prefix)
        front = ids.new_tensor([self.pad] * gap + list(prefix)).expand(len(ids), -1)
        behind = ids.new_tensor(context.after).expand(len(ids), -1)
        ones = [0] * (self.depth - depth) + [1] * depth + [0] * gap + [1] * len(prefix)
        shown = mask.new_tensor(ones).expand(len(ids), -1)
        return torch.cat([front, ids, behind], 1), torch.cat([shown, mask, behind * 0 + 1], 1)

    def keys_values(self, contexts: Sequence[Context], dtype: torch.dtype) -> Tensor:
        """``(layers, 2, K, H_kv, P, D_head)``: the prefixes right-aligned, zeros where masked."""
        trained = [context.keys_values for context in contexts]
        shape = next(each.shape for each in trained if each is not None)
        layers, both, heads, _, size = shape
        whole = torch.zeros(layers, both, len(contexts), heads, self.depth, size, dtype=dtype)
        for k, each in enumerate(trained):
            if each is not None:
                whole[:, :, k, :, self.depth - each.shape[-2] :] = each
        return whole


def context_layout(contexts: Iterable[Context], pad: int) -> ContextLayout:
    """The layout in which the longest prefix and the longest prompt of ``contexts`` fit."""
    lengths = [(context.depth, len(context.ids)) for context in contexts]
    depths, widths = zip((0, 0), *lengths, strict=True)
    return ContextLayout(max(depths), max(widths), pad)


def without_start(context: Context, ids: Tensor, mask: Tensor) -> Tensor:
    """The mask ``(R, T)`` without the start token that a row's own text begins with, where the
    prompt in front of it begins with one."""
    if context.start_token is None:
        return mask
    first = (mask.cumsum(-1) == 1) & mask.bool()
    return mask.masked_fill(first & (ids == context.start_token), 0)
