"""Which tokens of growing texts are padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PromptMask:
    """What a call knows of its prompts' padding.

    Attributes:
        given: the prompts' mask ``(B, T)``; None infers left padding from the pad token.
        pad: the token that pads rows.
        infer: whether leading pad tokens mean padding when there is no mask; None: nobody can tell.
    """

    given: Tensor | None
    pad: int
    infer: bool | None

    def of(self, ids: Tensor) -> Tensor:
        """The mask of texts ``(R, T)``: the prompt's, repeated over beams or samples, then ones.

        Raises:
            ValueError: if the prompts' mask is of other texts, or there is none and a row begins
                with a token that may be padding or text.
        """
        rows, length = ids.shape
        if self.given is not None:
            if rows % len(self.given) or length < self.given.shape[1]:
                raise ValueError(
                    f"the attention_mask of shape {tuple(self.given.shape)} is of other prompts "
                    f"than texts of shape {tuple(ids.shape)}; make a processor for each call"
                )
            prompt = self.given.to(ids.device).repeat_interleave(rows // len(self.given), 0)
            tail = prompt.new_ones(rows, length - prompt.shape[1])
            return torch.cat([prompt, tail], 1)
        begins = ids[:, 0] == self.pad
        if self.infer:
            return (ids != self.pad).long().cumsum(-1).clamp_max(1)
        if self.infer is None and bool(begins.any()):
            raise ValueError(
                f"row {int(begins.long().argmax())} begins with token {self.pad}, which both pads "
                "and ends texts; pass attention_mask= to tell padding from text"
            )
        return torch.ones_like(ids)
