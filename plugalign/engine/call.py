"""One ``generate`` call as transformers has prepared it, before any model runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from plugalign.engine.selection import Choice
from plugalign.engine.stopping import limit


@dataclass(frozen=True, eq=False)
class Call:
    """What a function for ``custom_generate`` is given.

    Attributes:
        ids: the prompts ``(R, T)``, each repeated ``copies`` times.
        cache: for the base, empty.
        choice: how tokens are chosen.
        criteria: a ``StoppingCriteriaList``.
        config: a ``GenerationConfig``.
    """

    model: Any
    ids: Tensor
    cache: Any
    choice: Choice
    criteria: Any
    config: Any

    @classmethod
    def of(
        cls,
        model: Any,
        input_ids: Tensor,
        *,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        past_key_values: Any,
        **_: Any,
    ) -> Call:
        """From arguments by the names that transformers gives them."""
        choice = Choice.of(logits_processor, input_ids, generation_config)
        return cls(model, input_ids, past_key_values, choice, stopping_criteria, generation_config)

    @property
    def copies(self) -> int:
        """How many neighbouring rows are equal."""
        return self.config.num_return_sequences or 1

    @property
    def whole(self) -> bool:
        """Whether more than token ids is returned."""
        return bool(self.config.return_dict_in_generate)

    @property
    def shows_logits(self) -> bool:
        """Whether the base's logits are returned."""
        return self.whole and bool(self.config.output_logits)

    @property
    def room(self) -> int:
        """Tokens that may follow, at most; 0 where the call sets no limit."""
        return max(0, (limit(self.criteria) or 0) - self.ids.shape[1])
