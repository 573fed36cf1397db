"""Contexts of one batch: prompts, as tokens, and trained prefixes, as keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plugalign.algebra.sources import Context


@dataclass(frozen=True)
class ContextLayout:
    """The columns on the left of texts, the same number for every context of a batch.

    Attributes:
        depth: P, columns of trained keys and values, which are in a cache and have no token ids.
        width: W, columns of prompts.
        pad: the token that pads shorter prompts on the left.
    """

    depth: int
    width: int
    pad: int

    def rows(self, context: Context, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The texts ``ids`` ``(R, T)`` in one context.

        Returns:
            Ids ``(R, W + T + A)``, A being the number of tokens that the context has behind the
            text, and the mask ``(R, P + W + T + A)``. Columns that the context does not use are
            masked, so positions run on without a gap.
        """
        prefix, depth, mask = context.ids, context.depth, without_start(context, ids, mask)
        gap = self.width - len(prefix)
        before = ids.new_tensor([self.pad] * gap + list(prefix)).expand(len(ids), -1)
        behind = ids.new_tensor(context.after).expand(len(ids), -1)
        ones = [0] * (self.depth - depth) + [1] * depth + [0] * gap + [1] * len(prefix)
        shown = mask.new_tensor(ones).expand(len(ids), -1)
        own_mask = torch.cat([shown, mask, torch.ones_like(behind)], 1)
        return torch.cat([before, ids, behind], 1), own_mask

    def keys_values(self, contexts: Sequence[Context], dtype: torch.dtype) -> Tensor:
        """The trained prefixes of K contexts, right-aligned, with zeros where they are masked:
        ``(layers, 2, K, H_kv, P, D_head)``."""
        trained = [context.keys_values for context in contexts]
        shape = next(each.shape for each in trained if each is not None)
        layers, both, heads, _, size = shape
        filled = torch.zeros(layers, both, len(contexts), heads, self.depth, size, dtype=dtype)
        for k, each in enumerate(trained):
            if each is not None:
                filled[:, :, k, :, self.depth - each.shape[-2] :] = each
        return filled


def context_layout(contexts: Iterable[Context], pad: int) -> ContextLayout:
    """The layout in which the longest prefix and the longest prompt of ``contexts`` fit."""
    lengths = [(context.depth, len(context.ids)) for context in contexts]
    depths, widths = zip((0, 0), *lengths, strict=True)
    return ContextLayout(max(depths), max(widths), pad)


def without_start(context: Context, ids: Tensor, mask: Tensor) -> Tensor:
    """The mask ``(R, T)``, without the start token of a row's own text where the context's prompt
    begins with one."""
    if context.start_token is None:
        return mask
    first = (mask.cumsum(-1) == 1) & mask.bool()
    return mask.masked_fill(first & (ids == context.start_token), 0)
