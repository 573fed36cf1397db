"""Who changed which token: every controller's contribution to every chosen token."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from plugalign.algebra.revisions import Revision


@dataclass
class Trace:
    """Filled while ``steered.generate(..., trace=trace)`` runs.

    Attributes:
        names: the steering controllers, in the order of the columns below.
        contributions: per step ``(R, K)``: each controller's weighted ``log p'`` change at the
            chosen token, after renormalising that controller's shift alone on the base.
        changed: per step ``(R,)`` bool: whether the most probable token is not the base's.
        revisions: per revising controller what it did to the finished answers.
    """

    names: tuple[str, ...] = ()
    contributions: list[Tensor] = field(default_factory=list)
    changed: list[Tensor] = field(default_factory=list)
    revisions: list[Revision] = field(default_factory=list)
    _pending: tuple[int, list[Tensor]] | None = field(default=None, repr=False)

    def record(self, length: int, base: Tensor, alone: list[Tensor], steered: Tensor) -> None:
        """Notes one step in log-probabilities ``(R, V)``: the base's, each controller's shift
        alone on the base, and what all did together."""
        self._pending = (length, [log_p - base for log_p in alone])
        self.changed.append(base.argmax(-1) != steered.argmax(-1))

    def chosen(self, ids: Tensor) -> None:
        """Completes the last step once its token is known; ``ids`` ``(R, T)`` hold it."""
        if self._pending is None or ids.shape[1] <= self._pending[0]:
            return
        length, shifts = self._pending
        if not shifts or shifts[0].shape[0] != ids.shape[0]:
            return
        token = ids[:, length, None]
        self.contributions.append(torch.cat([s.gather(-1, token) for s in shifts], dim=-1))
        self._pending = None
