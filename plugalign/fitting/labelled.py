"""Texts of two classes as token ids, in batches whose classes weigh the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, NamedTuple

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from plugalign.fitting.answers import PLAIN, Frame
from plugalign.fitting.data import encode, pad
from plugalign.fitting.held_out import set_apart
from plugalign.fitting.training import batches


class Batch(NamedTuple):
    """Right-padded texts.

    Attributes:
        ids, mask: ``(B, T)``.
        learnt: ``(B, T)``, the columns behind which something is learnt.
        label: ``(B,)`` float32, 1 for the desired class.
        weight: ``(B,)``, makes up for the classes' sizes.
    """

    ids: Tensor
    mask: Tensor
    learnt: Tensor
    label: Tensor
    weight: Tensor


class Examples:
    """Token ids of texts with their labels; both classes weigh the same, however many there are.

    Args:
        good: texts of the desired class. bad: all others.
        order: a permutation of good and bad texts together; None leaves them as they are.
        frame: what stands around each text.
    """

    def __init__(
        self,
        good: Sequence[Sequence[int]],
        bad: Sequence[Sequence[int]],
        order: Sequence[int] | None = None,
        frame: Frame = PLAIN,
    ):
        self.frame = frame
        rows, labels = [*good, *bad], [1.0] * len(good) + [0.0] * len(bad)
        order = range(len(rows)) if order is None else order
        self.rows, self.labels = [rows[i] for i in order], torch.tensor([labels[i] for i in order])
        share = [len(rows) / (2 * max(1, len(side))) for side in (bad, good)]
        self.weights = torch.tensor(share)[self.labels.long()]

    def __len__(self) -> int:
        return len(self.rows)

    def sides(self) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
        """The texts of the desired class, and all others."""
        pairs = list(zip(self.rows, self.labels.tolist(), strict=True))
        good, bad = ([row for row, label in pairs if label == y] for y in (1, 0))
        return good, bad

    def shuffled(self, seed: int) -> Examples:
        """The same texts in a random order, so that the first of them are a fair sample."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator).tolist()
        return Examples(*self.sides(), order, self.frame)

    def alternating(self) -> Examples:
        """The same texts, so that the first of them have both classes with the shares of all."""
        return Examples(*self.sides(), fair_order(self.sides()), self.frame)

    def up_to(self, count: int) -> Examples:
        """The first so many texts, in their order."""
        bad_last = (1 - self.labels[:count]).argsort(stable=True)
        rows = [self.rows[i] for i in bad_last.tolist()]
        good = int(self.labels[:count].sum())
        return Examples(rows[:good], rows[good:], bad_last.argsort().tolist(), self.frame)

    def first(self, count: int) -> Examples:
        """The first texts of both classes, so many with the shares that they have here, or one
        more."""
        good, bad = (side[: -(-count * len(side) // len(self))] for side in self.sides())
        return Examples(good, bad, frame=self.frame)

    def batch(self, texts: Sequence[int], device: torch.device) -> Batch:
        """Some of the texts."""
        ids, mask = pad([self.rows[i] for i in texts])
        parts = (ids, mask, self.frame.learnt(mask), self.labels[texts], self.weights[texts])
        return Batch(*(part.to(device) for part in parts))

    def picks(self, batch_size: int, seed: int, first: int | None = None) -> Callable[[int], Any]:
        """Maps a step to the texts of its batch, of the ``first`` so many texts alone."""
        lengths = [len(row) for row in self.rows[:first]]
        return batches(len(lengths), batch_size, seed, lengths)

    def in_order(self, batch_size: int) -> Iterator[list[int]]:
        """All texts, so many at a time, those of like length together."""
        order = sorted(range(len(self)), key=lambda i: len(self.rows[i]))
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]


def encoded(
    tokenizer: Any,
    sides: Sequence[Sequence[str]],
    max_length: int,
    seed: int,
    *,
    end: bool,
    least: int = 1,
    frame: Frame = PLAIN,
) -> tuple[Examples, Examples]:
    """Texts to learn from and such as are held out, see `set_apart`.

    Args:
        sides: texts of the desired class, and all others, see `Labelled.binary`.
        end: whether an end token stands behind a text that was not cut.
        least: leaves out texts with fewer tokens, with those in front of them.
        frame: what stands around each text.

    Raises:
        ValueError: if a class has no text of that length.
    """
    around: dict[str, Any] = {"context": frame.context, "closing": frame.end}
    cut = [encode(tokenizer, texts, max_length, end=end, **around) for texts in sides]
    rows = [[row for row in side if len(row) >= least] for side in cut]
    if not all(rows):
        raise ValueError(f"both classes need texts of {least} tokens at least")
    (good, bad), (good_held, bad_held) = set_apart(rows, seed)
    return Examples(good, bad, frame=frame), Examples(good_held, bad_held, frame=frame)


def fair_order(sides: Iterable[Sized]) -> list[int]:
    """The numbers of all sides' members, one side's behind the other's, in an order whose first so
    many have each side's share of all, and one of each at least."""
    place = [i / len(side) for side in sides for i in range(len(side))]
    return sorted(range(len(place)), key=place.__getitem__)


def end_tokens(model: Any, tokenizer: Any, frame: Frame = PLAIN) -> list[int]:
    """The tokens that end a text: the tokenizer's, those at which the model stops, and what closes
    an answer in a chat."""
    own = getattr(model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, (list, tuple)) else [own]
    every = (tokenizer.eos_token_id, frame.end, *own)
    return sorted({int(token) for token in every if token is not None})


def auc(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """How often the higher of two scores belongs to the desired class (area under the ROC curve).

    Args:
        scores, labels, weights: ``(N,)``.
    """
    weight = None if weights is None else weights.double().cpu().numpy()
    values = scores.double().cpu().numpy()
    return round(float(roc_auc_score(labels.cpu().numpy(), values, sample_weight=weight)), 4)
