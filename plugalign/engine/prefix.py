"""The texts so far, as one step of decoding sees them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prefix:
    """The texts behind which a step chooses the next token.

    Attributes:
        ids: int64 ``(R, T)``, left-padded.
        mask: ``(R, T)``, 0 at padding.
        length: T. In a captured step it is int64 ``()`` on the device and grows from replay to
            replay, while ``ids`` and ``mask`` keep the shape that they were captured with: then
            only the last column of ``ids`` is up to date, and no model reads the mask any more.
    """

    ids: Tensor
    mask: Tensor
    length: int | Tensor


def prefix_of(ids: Tensor, mask: Tensor) -> Prefix:
    """The prefix of texts whose length the host knows. Further columns of the mask are cut off."""
    return Prefix(ids, mask[:, : ids.shape[1]], ids.shape[1])
