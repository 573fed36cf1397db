"""One ``generate`` call as transformers has prepared it, before any model runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plugalign.engine.readers.incremental import can_repeat
from plugalign.engine.selection import Selection
from plugalign.engine.stopping import max_length_of


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of a function for ``custom_generate``.

    Attributes:
        ids: the prompts ``(R, T)``.
        repeats: how often each prompt stands behind itself, int64 ``(R',)``: equal ones are read
            once. None where no two neighbouring rows are equal, or the cache cannot repeat rows.
        cache: the base's, empty.
        selection: how tokens are chosen.
        criteria: a ``StoppingCriteriaList``.
        config: a ``GenerationConfig``.
    """

    model: Any
    ids: Tensor
    repeats: Tensor | None
    cache: Any
    selection: Selection
    criteria: Any
    config: Any

    @property
    def returns_dict(self) -> bool:
        """Whether ``generate`` returns a dictionary and not token ids alone."""
        return bool(self.config.return_dict_in_generate)

    @property
    def returns_logits(self) -> bool:
        """Whether the base's logits are returned."""
        return self.returns_dict and bool(self.config.output_logits)

    @property
    def max_new_tokens(self) -> int:
        """The number of tokens that may follow; 0 where the call sets no limit."""
        return max(0, (max_length_of(self.criteria) or 0) - self.ids.shape[1])


def prepared_call(
    model: Any,
    input_ids: Tensor,
    *,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    past_key_values: Any,
    **inputs: Any,
) -> Call:
    """The call of a function for ``custom_generate``, which is given these arguments."""
    selection = Selection(
        logits_processor,
        input_ids,
        copies=generation_config.num_return_sequences or 1,
        do_sample=bool(generation_config.do_sample),
        want_scores=bool(
            generation_config.return_dict_in_generate and generation_config.output_scores
        ),
    )
    mask = inputs.get("attention_mask")
    repeats = repeats_of(input_ids, mask) if can_repeat(past_key_values) else None
    return Call(
        model,
        input_ids,
        repeats,
        past_key_values,
        selection,
        stopping_criteria,
        generation_config,
    )


def repeats_of(ids: Tensor, mask: Tensor | None) -> Tensor | None:
    """How many neighbouring rows ``(R, T)`` are equal, int64 ``(R',)`` for R' runs of them; None
    where all differ from their neighbours."""
    texts = ids if mask is None else torch.cat([ids, mask.to(ids.dtype)], 1)
    _, counts = torch.unique_consecutive(texts, dim=0, return_counts=True)
    return counts if len(counts) < len(ids) else None
