"""Finds the subspace of hidden states in which a linear probe can read a label.

Everything here is float64 arrays: states ``(N, D)`` and labels ``(N,)`` of any kind.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.covariance import ledoit_wolf
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import Tensor

from plugalign.files.replacing import replacing
from plugalign.files.saved import read_tensors, writing_tensors
from plugalign.fitting.clock import Clock
from plugalign.fitting.progress import progress, say

Array = NDArray[np.float64]
HELD_OUT = 0.2
SVD_TOLERANCE = 0.01  # LEACE: what is correlated less with the label counts as uncorrelated
CONFIDENCE = 1.64  # standard errors above guessing within which a probe found nothing
NOTHING = "the hidden states do not show the labels, so there is nothing to remove"


class Split(NamedTuple):
    """States and labels to fit on, and others to judge by.

    Attributes:
        held_texts: how many texts the held-out states are of: states of one text are no
            independent evidence.
    """

    train: Array
    held: Array
    train_labels: Any
    held_labels: Any
    held_texts: int

    @property
    def guessing(self) -> float:
        """The accuracy of always naming the most frequent held-out label."""
        return float(np.unique(self.held_labels, return_counts=True)[1].max()) / len(self.held)

    @property
    def chance(self) -> float:
        """The highest held-out accuracy that is no better than guessing."""
        guess = self.guessing
        return guess + CONFIDENCE * float(np.sqrt(guess * (1 - guess) / self.held_texts))

    def without(self, basis: Array) -> Split:
        """The states projected on the orthogonal complement of a basis ``(D, r)``."""
        train, held = (x - (x @ basis) @ basis.T for x in (self.train, self.held))
        return self._replace(train=train, held=held)

    def probe(self) -> tuple[Array, float]:
        """A fresh linear classifier: its weights ``(C, D)`` and its accuracy on the held-out."""
        scale = float(self.train.std()) or 1.0
        with warnings.catch_warnings():  # a probe that stops early is still a linear probe
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(max_iter=200).fit(self.train / scale, self.train_labels)
        return model.coef_ / scale, float(model.score(self.held / scale, self.held_labels))


def split_by_text(states: Array, labels: Any, texts: Any, held: Any) -> Split:
    """All states of some texts are held out.

    Args:
        states: ``(N, D)``. labels: ``(N,)``. texts: whose each state is, ``(N,)``.
        held: the texts that are held out.
    """
    out = np.isin(texts, held)
    count = len(np.unique(texts[out]))
    return Split(states[~out], states[out], labels[~out], labels[out], count)


def held_out_texts(rows: Sequence[Sequence[int]], labels: Any, seed: int) -> Any:
    """The numbers of a fifth of the different texts of each label, and of all that are equal to
    one of them.

    Args:
        rows: token ids of N texts. labels: ``(N,)``.
    """
    first: dict[tuple[int, ...], int] = {}
    of = np.array([first.setdefault(tuple(row), i) for i, row in enumerate(rows)])
    different = np.unique(of)
    held = train_test_split(
        different, test_size=HELD_OUT, stratify=labels[different], random_state=seed
    )[1]
    return np.flatnonzero(np.isin(of, held))


def leace(states: Array, labels: Any, places: Any = None) -> tuple[Array, Array, Array]:
    """LEACE in closed form (Belrose et al. 2023, theorem 4.3) with a shrunken covariance.

    Args:
        states: ``(N, D)``. labels: ``(N,)``.
        places: what part of its text each state is of, ``(N,)``. Labels show in another direction
            at each place, so what is uncorrelated on the whole need not be so at any of them: the
            concept that is erased is the label at each place.

    Returns:
        ``removed`` ``(D, r)``, orthonormal, ``read`` ``(D, r)`` and the mean ``(D,)``: then
        ``x - removed read^T (x - mean)`` has no covariance with any label at any place.

    Raises:
        ValueError: if the states do not show the labels in the first place.
    """
    places = np.zeros(len(states)) if places is None else np.asarray(places)
    mean = states.mean(0)
    centred = states - mean
    covariance, _ = ledoit_wolf(centred, assume_centered=True)
    onehot = (labels[:, None] == np.unique(labels)).astype(np.float64)
    cross = np.concatenate(
        [
            centred[here].T @ (onehot[here] - onehot[here].mean(0)) / here.sum()
            for here in ([places == place for place in np.unique(places)])
        ],
        axis=1,
    )
    values, vectors = np.linalg.eigh(covariance)
    # Few different states span a subspace, in which everything takes place.
    spanned = values > values.max() * len(values) * np.finfo(np.float64).eps
    values, vectors = values[spanned], vectors[:, spanned]
    whiten = (vectors * values**-0.5) @ vectors.T
    unwhiten = (vectors * values**0.5) @ vectors.T
    left, singular, _ = np.linalg.svd(whiten @ cross, full_matrices=False)
    left = left[:, singular > SVD_TOLERANCE]
    if left.shape[1] == 0:
        raise ValueError(NOTHING)
    removed, triangle = np.linalg.qr(unwhiten @ left)  # an orthonormal basis of the same span
    return removed, (whiten @ left) @ triangle.T, mean


def inlp(
    splits: Sequence[Split], classifiers: int, path: Path, clock: Clock | None = None
) -> Array:
    """An orthonormal basis ``(D, r)`` of all directions that linear classifiers find, one after
    the other, each in what the ones before it left (Ravfogel et al. 2020, algorithm 1).

    Their null spaces intersect in its orthogonal complement. It ends when no classifier does better
    than guessing on the held-out states. The first column points to the label that sorts last.

    Args:
        splits: the states at each place of texts; each round trains one classifier for each.
        classifiers: how many rounds at most.
        path: keeps the basis of a run that is killed, and is continued from if it is there.
        clock: trains no more of them than its time allows, but one round.

    Raises:
        ValueError: if already the first classifier finds nothing, or the file is damaged.
    """
    width = splits[0].train.shape[1]
    saved = {"basis": torch.zeros(width, 0)}
    if path.is_file():
        saved = read_tensors(path, "remove it to start anew")
    basis: Array = saved["basis"].double().numpy()
    done, clock = int(saved.get("done", torch.tensor(0))), clock or Clock(None)
    with progress("linear classifiers", classifiers, done) as bar:
        for count in range(done, classifiers):
            if count and clock.left() <= 0:
                say(f"the time ended it behind {count} rounds of linear classifiers")
                break
            before = basis.shape[1]
            for split in splits:
                basis = _narrowed(split, basis)
            if basis.shape[1] == before:
                break
            write(path, {"basis": torch.from_numpy(basis), "done": torch.tensor(count + 1)})
            bar.advance(note=f"{basis.shape[1]} directions")
    if basis.shape[1] == 0:
        raise ValueError(NOTHING)
    return basis


def _narrowed(split: Split, basis: Array) -> Array:
    """The basis ``(D, r)`` with what one more classifier finds, if it finds anything."""
    weights, accuracy = split.without(basis).probe()
    if accuracy <= split.chance:
        return basis
    found = _row_space(weights, basis)
    wider: Array = np.concatenate([basis, found], axis=1)
    return wider if wider.shape[1] < len(basis) else basis


def principal_direction(differences: Array) -> Array:
    """The first principal direction ``(D,)`` of differences of pairs ``(N, D)``, pointing along
    them (Bolukbasi et al. 2016, section 5; a pair's two members lie opposite around its mean)."""
    direction: Array = np.linalg.svd(differences, full_matrices=False)[2][0]
    return direction if (differences @ direction).sum() >= 0 else -direction


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a file that is complete or not there."""
    with replacing(path) as half, writing_tensors(half):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, half)


def _row_space(weights: Array, basis: Array) -> Array:
    """An orthonormal basis ``(D, r)`` of the rows ``(C, D)``, orthogonal to what is removed
    already. What all rows of a softmax share decides nothing, so it is no direction."""
    rows = weights - weights.mean(0) if len(weights) > 1 else weights
    rows = rows - (rows @ basis) @ basis.T
    left, singular, found = np.linalg.svd(rows, full_matrices=False)
    real = singular > 1e-6 * singular[0]
    signs = np.where(left[-1] < 0, -1.0, 1.0)  # towards the last label
    directions: Array = (found * signs[:, None])[real].T
    return directions
