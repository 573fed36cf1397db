"""When a decoding loop stops: transformers' criteria, evaluated no more often than needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StopStringCriteria,
)

NONE = 2**62
POLL = 8  # steps between two synchronisations with the device


class Stopping:
    """Which rows have ended, and whether all have.

    Length and end tokens are evaluated here, other criteria are called at every step. On a device
    other than the CPU the host waits for the device only at every ``POLL``-th step, so up to
    ``POLL - 1`` columns too many are written; `surplus` counts them. Tensors on the device change
    in place, so that a CUDA graph of a step can change them.

    Args:
        criteria: a ``StoppingCriteriaList``.
        ids: the prompts ``(R, T)``.
        pad_token_id: follows the end of a row.
        every_step: whether the host waits at every step, as for a streamer.
        captured: whether steps are replays of a CUDA graph, within which nothing can be read.
        max_columns: of a static cache, which may be fewer than the criteria allow.

    Attributes:
        live: the rows that have not ended, bool ``(R,)``.
        max_length: the columns at which all texts end, or None.
        deferred: whether the host waits at some steps only.
    """

    def __init__(
        self,
        criteria: Any,
        ids: Tensor,
        pad_token_id: Tensor | None,
        every_step: bool = False,
        captured: bool = False,
        max_columns: int | None = None,
    ):
        ends = [c.eos_token_id for c in criteria if type(c) is EosTokenCriteria]
        self._others = other_criteria(criteria)
        self._ends = torch.cat([end.to(ids.device) for end in ends]) if ends else None
        self.max_length = max_length_of(criteria, max_columns)
        self._pad = pad_token_id if any(hasattr(c, "eos_token_id") for c in criteria) else None
        self.live = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        self._length = torch.full((), ids.shape[1], device=ids.device)  # columns with a live row
        self.deferred = captured or not (ids.is_cpu or every_step or self._others)
        self._poll = 1 if every_step else POLL
        self._failed = torch.full((), NONE, device=ids.device)  # the first column without a token

    def remaining(self, ids: Tensor) -> int:
        """The number of tokens that may still follow ``ids`` ``(R, T)``."""
        return NONE if self.max_length is None else self.max_length - ids.shape[1]

    def padded(self, tokens: Tensor, column: Tensor | int) -> Tensor:
        """The tokens ``(R,)`` of a column, with padding where a row has ended. Where none was
        possible (-1) and the host does not look, some token stands, and `failed` reports it later.

        Args:
            column: of these tokens, an int or int64 ``()``.
        """
        if self._pad is not None:
            tokens = torch.where(self.live, tokens, self._pad)
        if self.deferred:
            here = torch.where((tokens < 0).any(), column, NONE)
            torch.minimum(self._failed, here, out=self._failed)
            tokens = tokens.clamp_min(0)
            self._length += self.live.any()
        return tokens

    def failed(self, ids: Tensor, done: bool) -> int | None:
        """The first column of ``ids`` ``(R, T)`` in which a row had no possible token, or None. The
        host waits for it when it waits for end tokens, and when all is ``done``."""
        if not self.deferred or (ids.shape[1] % self._poll and not done):
            return None
        column = int(self._failed)
        return None if column == NONE else column

    def __call__(self, ids: Tensor, tokens: Tensor, scores: Any) -> bool:
        """Whether ``ids`` ``(R, T)``, which end with ``tokens`` ``(R,)``, are complete."""
        self.note(tokens)
        for criterion in self._others:
            done = torch.as_tensor(criterion(ids, scores), device=self.live.device)
            self.live &= done.logical_not()  # some return a bool of Python, or numbers
        return self.is_over(ids)

    def note(self, tokens: Tensor) -> None:
        """Ends the rows whose tokens ``(R,)`` end a text."""
        if self._ends is not None:
            self.live &= (tokens[:, None] != self._ends).all(1)

    def is_over(self, ids: Tensor) -> bool:
        """Whether ``ids`` ``(R, T)`` are complete, as far as the host knows."""
        if self.max_length is not None and ids.shape[1] >= self.max_length:
            return True
        if self._ends is None and not self._others:
            return False
        if self.deferred and ids.shape[1] % self._poll:
            return False
        return not bool(self.live.any())

    def surplus(self, ids: Tensor) -> int:
        """The number of columns of ``ids`` ``(R, T)`` written after all rows had ended."""
        return ids.shape[1] - int(self._length) if self.deferred else 0


class LiveRows(StoppingCriteria):  # type: ignore[misc]
    """Which rows of transformers' own decoding have not ended, for a trace.

    transformers reports it to nobody, so this stands among its criteria: it ends what the caller's
    own end and notes what all end. It stands in the place of the caller's own criteria, which are
    asked once a step as before.

    Attributes:
        live: the rows that have not ended, bool ``(R,)``; None before the first token.
    """

    def __init__(self) -> None:
        self.live: Tensor | None = None
        self._asked: list[Any] = []

    def observed(
        self,
        criteria: Sequence[Any],
        ends: Sequence[int],
        stop_strings: Any = None,
        tokenizer: Any = None,
    ) -> list[Any]:
        """The criteria for a call, this one among them.

        Args:
            criteria: the caller's. Those of transformers' own classes stay in the list, because
                there they replace those that a call makes by itself.
            ends: ids of the end tokens of the call.
            stop_strings, tokenizer: of the call.
        """
        usual = (EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria, StopStringCriteria)
        kept = [criterion for criterion in criteria if type(criterion) in usual]
        others = [criterion for criterion in criteria if type(criterion) not in usual]
        by_row = [c for c in kept if type(c) in (EosTokenCriteria, StopStringCriteria)]
        kinds = {type(criterion) for criterion in by_row}
        if ends and EosTokenCriteria not in kinds:
            by_row.append(EosTokenCriteria(list(ends)))
        if stop_strings is not None and tokenizer is not None and StopStringCriteria not in kinds:
            by_row.append(StopStringCriteria(tokenizer, stop_strings))
        self._asked = [*by_row, *others]
        for criterion in others:  # by this name transformers knows that ended rows are padded
            if hasattr(criterion, "eos_token_id"):
                self.eos_token_id = criterion.eos_token_id
        return [*kept, self]

    def of(self, ids: Tensor) -> Tensor:
        """The rows of ``ids`` ``(R, T)`` that have not ended, a new bool ``(R,)``."""
        if self.live is None or len(self.live) != len(ids):
            return torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        return self.live.clone()

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Which rows of ``input_ids`` ``(R, T)`` end here, bool ``(R,)``."""
        over = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for criterion in self._asked:
            done = criterion(input_ids, scores, **options)
            over |= torch.as_tensor(done, dtype=torch.bool, device=over.device)
        self.live = self.of(input_ids) & ~over
        return over


def other_criteria(criteria: Any) -> list[Any]:
    """Those of a ``StoppingCriteriaList`` that are not evaluated by `Stopping` itself."""
    return [c for c in criteria if type(c) not in (EosTokenCriteria, MaxLengthCriteria)]


def max_length_of(criteria: Any, max_columns: int | None = None) -> int | None:
    """The columns at which all texts end, ``max_columns`` at most; None without a limit."""
    limits = [c.max_length for c in criteria if type(c) is MaxLengthCriteria]
    return min([*limits, *([] if max_columns is None else [max_columns])], default=None)
