"""Texts that are not learnt from: when to stop, which parameters were best, what they are worth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plugalign.files.fingerprint import fingerprint

Row = tuple[int, ...]
SHARE, MOST, FEWEST = 0.1, 256, 10  # of each class
LOOKS = 10  # in a whole training


def set_apart(
    sides: Sequence[Sequence[Sequence[int]]], seed: int
) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
    """A tenth of each class's different rows, and not more than 256, is held out; none where there
    are few. What is held out of a class is learnt from in none.

    Args:
        sides: the rows of token ids of each class.

    Returns:
        For each class those to learn from, as often as they are there, and those that are held out,
        once; each in a random order, equal ones together.
    """
    counts = [Counter(tuple(row) for row in side) for side in sides]
    parts = [_drawn(list(count), seed) for count in counts]
    never = {row for _, held in parts for row in held}
    learnt = [
        [list(row) for row in left if row not in never for _ in range(count[row])]
        for (left, _), count in zip(parts, counts, strict=True)
    ]
    apart = [[list(row) for row in held] for _, held in parts]
    if not all((*learnt, *apart)):  # too few to spare any
        return [[list(row) for row in side] for side in sides], [[] for _ in sides]
    return learnt, apart


def _drawn(rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to learn from, and such as are held out, in a random order."""
    generator = torch.Generator().manual_seed(int(fingerprint("held out", seed)[:15], 16))
    order = torch.randperm(len(rows), generator=generator).tolist()
    count = 0 if len(rows) < FEWEST else min(MOST, round(SHARE * len(rows)))
    return [rows[i] for i in order[count:]], [rows[i] for i in order[:count]]


class HeldOut:
    """Looks at a loss now and then, keeps the parameters with the least, and ends a training that
    has become no better for some looks (early stopping). A loss that is not finite is never the
    least.

    Args:
        loss: the mean loss of the held-out texts under the parameters as they are.
        looks: how often in a whole training.
        patience: looks without a better one after which it is over.
        epoch: steps in which the texts are learnt from once. Few texts are soon known by heart: if
            an epoch ends before the first look, there is one behind it, and behind 2, 4, 8, ... of
            them up to there.

    Attributes:
        losses: by the steps done.
    """

    def __init__(
        self,
        loss: Callable[[], float],
        looks: int = LOOKS,
        patience: int = 3,
        epoch: int | None = None,
    ):
        self._loss, self._looks, self._patience, self._epoch = loss, looks, patience, epoch
        self.losses: dict[int, float] = {}
        self._best: dict[str, Tensor] = {}

    @property
    def is_over(self) -> bool:
        """Whether the last looks were no better than one before them."""
        if len(self.losses) <= self._patience:
            return False
        last = list(self.losses)[-self._patience :]
        return self._least is None or self._least not in last

    @property
    def best(self) -> dict[str, float | int]:
        """The least loss, and behind how many steps it was.

        Raises:
            FloatingPointError: if no loss was finite.
        """
        step = self._checked()
        return {"loss": round(self.losses[step], 6), "step": step}

    def _checked(self) -> int:
        """`_least`, where there is one."""
        if (least := self._least) is None:
            seen = ", ".join(f"{loss} at step {step}" for step, loss in self.losses.items())
            raise FloatingPointError(
                f"the loss of the held-out texts was never finite ({seen}), so no parameters are "
                "worth keeping; try a smaller lr"
            )
        return least

    @property
    def _least(self) -> int | None:
        """The step of the least finite loss, the first of several."""
        finite = [step for step, loss in self.losses.items() if math.isfinite(loss)]
        return min(finite, key=lambda step: self.losses[step], default=None)

    def every(self, steps: int) -> int:
        """Behind how many steps to look again, out of all."""
        return max(1, -(-steps // self._looks))

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to look behind so many steps, out of all."""
        if step >= (every := self.every(steps)) or self._epoch is None:
            return step % every == 0
        epochs, rest = divmod(step, self._epoch)
        return rest == 0 and epochs.bit_count() == 1

    @torch.no_grad()
    def look(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Notes the loss behind so many steps."""
        self.losses[step] = self._loss()
        if self._least == step:
            self._best = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def restore(self, parameters: Mapping[str, Tensor]) -> None:
        """Puts the best parameters back.

        Raises:
            FloatingPointError: if no loss was finite.
        """
        if self.losses:
            self._checked()
        for name, value in self._best.items():
            parameters[name].copy_(value)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"losses": self.losses, "best": self._best}

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.losses, self._best = dict(state["losses"]), dict(state["best"])
