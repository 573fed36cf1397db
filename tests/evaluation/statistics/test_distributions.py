"""Distances between sets of scores, against sums over all pairs of texts."""

from __future__ import annotations

import numpy as np
import pytest

from plugalign.evaluation.statistics.auc import auc_of
from plugalign.evaluation.statistics.distributions import (
    agreement_auc,
    gaps,
    on_one_support,
)


def pairs_apart(scores: np.ndarray) -> float:
    """E|b - b'| over pairs of texts of two prompts, prompts weighing alike."""
    found = []
    for p, first in enumerate(scores):
        for q, second in enumerate(scores):
            if p != q:
                both = np.abs(first[:, None] - second)
                found.append(np.nanmean(both))
    return float(np.mean(found))


def drawn(scores: np.ndarray, counts: np.ndarray) -> float:
    """The same of a resample: prompts by the number of times that they are in it."""
    total = weight = 0.0
    for p, first in enumerate(scores):
        for q, second in enumerate(scores):
            if p != q:
                total += counts[p] * counts[q] * np.nanmean(np.abs(first[:, None] - second))
                weight += counts[p] * counts[q]
    return total / weight


def sample(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    model, human = draw.random((7, 3)), draw.random((9, 1)) ** 2
    model[2, 1] = np.nan
    return model, human


def test_gaps_are_means_over_pairs() -> None:
    scores, human = sample()
    mine, theirs = on_one_support(scores, human)
    found = gaps(mine, theirs, np.ones((1, 7)), np.ones((1, 9)))
    across = np.mean([np.nanmean(np.abs(human[:, 0][:, None] - row)) for row in scores])
    floor, spread = pairs_apart(scores), pairs_apart(human)
    assert found["epsilon"][0] == pytest.approx(across)
    assert found["self_floor"][0] == pytest.approx(floor)
    assert found["energy_distance"][0] == pytest.approx(2 * across - floor - spread)
    mean = np.nanmean(scores, axis=1).mean() - human.mean()
    assert found["signed_difference"][0] == pytest.approx(mean)


def test_copies_of_a_prompt_in_a_resample_are_no_pair() -> None:
    scores, human = sample()
    counts = np.array([[2, 0, 1, 3, 0, 1, 0]], dtype=float)
    mine, _ = on_one_support(scores, human)
    assert mine.spread(counts)[0] == pytest.approx(drawn(scores, counts[0]))
    assert np.isnan(mine.spread(np.array([[7.0, 0, 0, 0, 0, 0, 0]]))[0])


def test_many_scores_are_rounded_by_less_than_a_thousandth() -> None:
    draw = np.random.default_rng(0)
    scores, human = draw.random((60, 20)), draw.random((300, 1))
    mine, theirs = on_one_support(scores, human)
    assert mine.support.size == 512
    found = gaps(mine, theirs, np.ones((1, 60)), np.ones((1, 300)))
    across = np.abs(scores.reshape(-1, 1) - human.reshape(1, -1)).mean()
    assert found["epsilon"][0] == pytest.approx(across, abs=1e-3)


def test_a_prompt_without_scores_counts_for_nothing() -> None:
    scores, human = sample()
    more = np.vstack([scores, np.full((1, 3), np.nan)])
    mine, theirs = on_one_support(scores, human)
    wider, _ = on_one_support(more, human)
    a = gaps(mine, theirs, np.ones((1, 7)), np.ones((1, 9)))
    b = gaps(wider, theirs, np.ones((1, 8)), np.ones((1, 9)))
    assert {k: v[0] for k, v in a.items()} == pytest.approx({k: v[0] for k, v in b.items()})


def test_the_auc_is_over_pairs_of_texts() -> None:
    draw = np.random.default_rng(3)
    above = (draw.random((6, 4)) < 0.4).astype(float)
    scores = np.round(draw.random((6, 4)), 1)
    above[0, 0] = np.nan
    high, low = scores[above == 1], scores[above == 0]
    wanted = np.mean((high[:, None] > low) + 0.5 * (high[:, None] == low))
    assert agreement_auc(above, scores, np.ones((1, 6)))[0] == pytest.approx(wanted)
    assert np.isnan(agreement_auc(np.zeros((6, 4)), scores, np.ones((1, 6)))[0])


def test_the_auc_of_many_scores_that_lie_close_together_is_no_coins() -> None:
    draw = np.random.default_rng(4)
    odds = draw.normal(-9, 1, (300, 3))
    above = (odds + draw.normal(0, 0.5, odds.shape) > -9).astype(float)
    scores = np.exp(odds)
    scores[0, 0] = 1.0
    wanted = auc_of(above.ravel() == 1, scores.ravel()).value
    assert wanted > 0.9
    assert agreement_auc(above, scores, np.ones((1, 300)))[0] == pytest.approx(wanted, abs=1e-3)
