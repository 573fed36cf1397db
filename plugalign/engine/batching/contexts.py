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

    @property
    def columns(self) -> int:
        """P + W, so many stand in front of each text."""
        return self.depth + self.width

    def rows(self, context: Context, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The texts ``ids`` ``(R, T)`` in one context.

        Returns:
            Ids ``(R, W + T + A)``, A being the number of tokens that the context has behind the
            text, and the mask ``(R, P + W + T + A)``. Columns that the context does not use are
            masked, so positions run on without a gap, and what pads a text stands in front of its
            prompt, since a sliding window counts columns.
        """
        prefix, depth = context.ids, context.depth
        gap = self.width - len(prefix)
        before = ids.new_tensor([self.pad] * gap + list(prefix)).expand(len(ids), -1)
        behind = ids.new_tensor(context.after).expand(len(ids), -1)
        ones = [0] * (self.depth - depth) + [1] * depth + [0] * gap + [1] * len(prefix)
        shown = mask.new_tensor(ones).expand(len(ids), -1)
        text, trained, used = (
            torch.cat([before, ids], 1),
            shown[:, : self.depth],
            shown[:, self.depth :],
        )
        used = torch.cat([used, without_start(context, ids, mask)], 1)
        if prefix:
            text, used = self._placed(context, ids, mask, text, used)
        return torch.cat([text, behind], 1), torch.cat([trained, used, torch.ones_like(behind)], 1)

    def _placed(
        self, context: Context, ids: Tensor, mask: Tensor, text: Tensor, used: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Prompts and texts with their mask ``(R, W + T)``, each prompt moved to its text, or into
        its turn. There the start token is the text's own, not the prompt's."""
        if context.start_token is not None:
            used[:, self.width - len(context.ids)] *= insertion(context, ids, mask) == 0
        order = self.order(context, ids, mask)
        return text.gather(1, order), used.gather(1, order)

    def order(self, context: Context, ids: Tensor, mask: Tensor) -> Tensor:
        """The order ``(R, W + T)`` of the columns of prompt and text: padding first, then the text
        up to the prompt if one of its turns takes it, the prompt, and the rest."""
        place = torch.arange(self.width + ids.shape[1], device=ids.device).expand(len(ids), -1)
        if not context.ids:
            return place
        begun = (mask.cumsum(-1) > 0).long()  # what is masked further on keeps its place
        behind = place[:, : ids.shape[1]] >= insertion(context, ids, mask)[:, None]
        prompt = place[:, : self.width] >= self.width - len(context.ids)
        rank = torch.cat([prompt * 2, begun * (1 + behind * 2)], 1)
        return rank.argsort(dim=1, stable=True)

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
    if context.turn:  # a chat's own start stays in front
        first &= (insertion(context, ids, mask) == 0)[:, None]
    return mask.masked_fill(first & (ids == context.start_token), 0)


def insertion(context: Context, ids: Tensor, mask: Tensor) -> Tensor:
    """The column of each text before which the prompt stands, ``(R,)``: behind the opening of its
    first turn, 0 (in front of all) for a text without turns."""
    if not context.turn:
        return ids.new_zeros(len(ids))
    found = occurrences(context.turn, ids, mask).long()
    return (found.argmax(1) + 1) * found.amax(1)


def occurrences(piece: Sequence[int], ids: Tensor, mask: Tensor) -> Tensor:
    """At which columns of texts ``(R, T)`` a piece of tokens ends, bool ``(R, T)``."""
    size, ends = len(piece), torch.zeros_like(ids, dtype=torch.bool)
    if size <= ids.shape[1]:
        same = ids.unfold(1, size, 1) == ids.new_tensor(piece)
        ends[:, size - 1 :] = (same & mask.unfold(1, size, 1).bool()).all(-1)
    return ends
