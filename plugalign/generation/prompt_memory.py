"""What models have read of a prompt, kept for the next prompt that begins alike.

A questionnaire asks hundreds of questions behind one instruction, each with a few answers. Its
answers are the rows of a batch; what they have in common is read as one row, and of the next
question only what is new.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from plugalign.engine.readers.heads import SplitModel, last_logits
from plugalign.engine.readers.prefix_cache import PrefixCache


class PromptMemory:
    """One row of keys and values for each model and context, of the last prompt that was read.

    It belongs to one wrapped model.

    Attributes:
        columns: how many have been read so far, over all models; what was known does not count.
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, PrefixCache] = {}
        self.columns = 0

    @torch.no_grad()
    def held(
        self,
        key: Hashable,
        model: Any,
        split: SplitModel | None,
        ids: Tensor,
        mask: Tensor,
        limit: int,
        keys_values: Tensor | None = None,
    ) -> PrefixCache | None:
        """The columns that all rows begin with, read as one row.

        Args:
            key: of the source; None for the base.
            split: the model's body and head, where they may be run apart.
            ids, mask: ``(R, T)``. limit: at most so many columns.
            keys_values: a trained prefix in front, see `PrefixCache`.

        Returns:
            None where there is nothing, or the model keeps no columns apart.
        """
        same = ((ids == ids[:1]) & (mask == mask[:1])).all(0)[:limit]
        width = int(same.long().cumprod(0).sum())
        if key not in self._held:
            trained = None if keys_values is None else keys_values.to(model.device, model.dtype)
            self._held[key] = PrefixCache(model, trained)
        cache = self._held[key]
        if not (width and cache.spec.columns):
            return None
        row, shown = (x[:1, :width].to(model.device) for x in (ids, mask))
        first = cache.align(row, shown, spare=0)
        if first < width:
            _read(model, split, cache.inputs(row, shown, first))
        cache.commit(row, shown)
        self.columns += width - first
        return cache


def _read(model: Any, split: SplitModel | None, inputs: dict[str, Any]) -> None:
    """Fills the cache; no logits are wanted."""
    if split is not None:
        split.states(inputs)
        return
    last_logits(model, inputs, 1)
