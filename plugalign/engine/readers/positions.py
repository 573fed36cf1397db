"""Where the tokens of padded texts stand."""

from __future__ import annotations

import torch
from torch import Tensor


def packed(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids ``(R, T)`` and their mask with all padding in front. A state takes in one token
    after the other, so none may stand between two that are read."""
    order = mask.argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def position_ids(mask: Tensor, written: int = 0) -> Tensor:
    """Position ids ``(R, T)`` as ``generate`` makes them: the first real token stands at 0, padding
    too, and the last columns, which were ``written`` behind the prompts, go on from the one before
    them. (Behind prompts that are padded on the right that is position 0.)"""
    place = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    if 0 < written < mask.shape[1]:
        further = torch.arange(1, written + 1, device=mask.device)
        place[:, -written:] = place[:, -written - 1, None] + further
    return place
