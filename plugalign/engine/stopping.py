"""When a decoding loop stops: transformers' criteria, asked no more often than they need be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import EosTokenCriteria, MaxLengthCriteria

NONE = 2**62
POLL = 8  # steps between two looks at a device that would have to be waited for


class Stopping:
    """Which rows have ended, and whether all have.

    Length and end tokens are decided here, other criteria are called at every step. On a device
    that is not the CPU the host looks only now and then, so up to ``POLL - 1`` columns too many
    are written; `surplus` says how many. What is kept on the device changes in place, and a graph
    of a step may change it.

    Attributes:
        live: which rows have not ended, ``(R,)``.

    Args:
        criteria: a ``StoppingCriteriaList``.
        ids: the prompts ``(R, T)``.
        pad_token_id: follows the end of a row.
        every_step: look at every step, as a streamer must.
        captured: steps are replayed, so nothing can be looked at within one.
        most: columns that fit a static cache; transformers lets a criterion ask for more.
    """

    def __init__(
        self,
        criteria: Any,
        ids: Tensor,
        pad_token_id: Tensor | None,
        every_step: bool = False,
        captured: bool = False,
        most: int | None = None,
    ):
        ends = [c.eos_token_id for c in criteria if type(c) is EosTokenCriteria]
        self._others = others(criteria)
        self._ends = torch.cat([end.to(ids.device) for end in ends]) if ends else None
        self.max_length = limit(criteria, most)
        self._pad = pad_token_id if any(hasattr(c, "eos_token_id") for c in criteria) else None
        self.live = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        self._length = torch.full((), ids.shape[1], device=ids.device)  # columns with a live row
        self.deferred = captured or not (ids.is_cpu or every_step or self._others)
        self._poll = 1 if every_step else POLL
        self._failed = torch.full((), NONE, device=ids.device)  # the first column without a token

    def remaining(self, ids: Tensor) -> int:
        """How many tokens may still follow ``ids`` ``(R, T)``."""
        return NONE if self.max_length is None else self.max_length - ids.shape[1]

    def padded(self, tokens: Tensor, column: Tensor | int) -> Tensor:
        """The tokens ``(R,)`` of a column: pad where a row has ended, and something readable where
        there is none (-1), which `failed` reports."""
        if self._pad is not None:
            tokens = torch.where(self.live, tokens, self._pad)
        if self.deferred:
            here = torch.where((tokens < 0).any(), column, NONE)
            torch.minimum(self._failed, here, out=self._failed)
            tokens = tokens.clamp_min(0)
            self._length += self.live.any()
        return tokens

    def failed(self, ids: Tensor, done: bool) -> int | None:
        """The first column of ``ids`` ``(R, T)`` that has no token where it should, if any; looked
        for when the end tokens are, and when all is done."""
        if not self.deferred or (ids.shape[1] % self._poll and not done):
            return None
        column = int(self._failed)
        return None if column == NONE else column

    def __call__(self, ids: Tensor, tokens: Tensor, scores: Any) -> bool:
        """Whether ``ids`` ``(R, T)``, which end with ``tokens`` ``(R,)``, are complete."""
        self.note(tokens)
        for criterion in self._others:
            done = torch.as_tensor(criterion(ids, scores), device=self.live.device)
            self.live &= done.logical_not()  # some say it with a bool of Python, or in numbers
        return self.is_over(ids)

    def note(self, tokens: Tensor) -> None:
        """Ends the rows whose tokens ``(R,)`` end a text."""
        if self._ends is not None:
            self.live &= (tokens[:, None] != self._ends).all(1)

    def is_over(self, ids: Tensor) -> bool:
        """Whether ``ids`` ``(R, T)`` are complete, as far as the host has looked."""
        if self.max_length is not None and ids.shape[1] >= self.max_length:
            return True
        if self._ends is None and not self._others:
            return False
        if self.deferred and ids.shape[1] % self._poll:
            return False
        return not bool(self.live.any())

    def surplus(self, ids: Tensor) -> int:
        """How many columns of ``ids`` ``(R, T)`` were written after the last row had ended."""
        return ids.shape[1] - int(self._length) if self.deferred else 0


def others(criteria: Any) -> list[Any]:
    """Those of a ``StoppingCriteriaList`` that are neither length nor end tokens."""
    return [c for c in criteria if type(c) not in (EosTokenCriteria, MaxLengthCriteria)]


def limit(criteria: Any, most: int | None = None) -> int | None:
    """The columns at which all texts end, if they do, ``most`` at most."""
    limits = [c.max_length for c in criteria if type(c) is MaxLengthCriteria]
    return min([*limits, *([] if most is None else [most])], default=None)
