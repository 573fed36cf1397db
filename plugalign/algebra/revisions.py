"""What becomes of finished answers that a controller rewrites, and what that cost."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Report:
    """What revising did to a batch, in answers and in tokens. Reports add up.

    Attributes:
        critiqued: verdicts asked for, in all rounds.
        faulted: verdicts that found a fault.
        refined: revisions made.
        too_long: answers left as they were because the next step did not fit the context.
        empty: revisions without a word, or that are a verdict alone; they leave the answer as it
            was.
        encoded_tokens: tokens that the model read beyond those of the drafts.
        generated_tokens: tokens that it generated beyond those of the drafts.
    """

    critiqued: int = 0
    faulted: int = 0
    refined: int = 0
    too_long: int = 0
    empty: int = 0
    encoded_tokens: int = 0
    generated_tokens: int = 0

    def __add__(self, other: Report) -> Report:
        return Report(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, eq=False)
class Revision:
    """What a reviser returns.

    Attributes:
        ids: the answers ``(B, T'')``, right-padded to the longest; rows without a fault hold their
            drafts.
        report: what it did and what that cost.
        faults: per round the probability of a fault ``(rounds, B)``, NaN where none was asked for.
    """

    ids: Tensor
    report: Report = field(default_factory=Report)
    faults: Tensor | None = None


def replaced(answers: Tensor, rows: Tensor, new: Tensor, pad_token_id: int) -> Tensor:
    """Answers ``(B, T')`` with those of ``rows (R,)`` replaced by ``new (R, n)``, padded."""
    width = max(answers.shape[1], new.shape[1])
    old, new = (pad(x, (0, width - x.shape[1]), value=pad_token_id) for x in (answers, new))
    return old.index_copy(0, rows, new)
