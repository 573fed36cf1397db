"""What stands in front of texts: prompts, as tokens, and trained prefixes, as keys and values."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plugalign.engine.plan import Plan
from plugalign.steering import PrefixedLogits, PromptedLogits

Rider = PromptedLogits | PrefixedLogits


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
