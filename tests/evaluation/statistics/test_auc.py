"""DeLong's AUC beside counted pairs, and its intervals beside redrawn texts."""

from __future__ import annotations

import numpy as np
import pytest

from plugalign.evaluation.statistics.auc import auc_difference, auc_of


def drawn(seed: int, m: int = 40, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and two sets of scores that go together."""
    rng = np.random.default_rng(seed)
    labels = np.array([1] * m + [0] * n)
    first = labels + rng.normal(size=m + n)
    return labels, first.round(1), (first + rng.normal(size=m + n)).round(1)


def counted(labels: np.ndarray, scores: np.ndarray) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    return float(np.mean(pairs))


def test_it_counts_pairs_and_ties() -> None:
    labels, scores, _ = drawn(0)
    found = auc_of(labels, scores)
    assert found.value == pytest.approx(counted(labels, scores))
    assert found.negative.mean() == pytest.approx(found.value)
    # The variance by its definition: of the placements, one pair at a time.
    kernel = np.array(
        [[(a > b) + 0.5 * (a == b) for b in scores[labels == 0]] for a in scores[labels == 1]]
    )
    wanted = kernel.mean(1).var(ddof=1) / 40 + kernel.mean(0).var(ddof=1) / 60
    assert found.variance == pytest.approx(wanted)


def test_intervals_hold_the_truth() -> None:
    truth, held, changed = 0.7602, 0, 0  # P(N(1, 1) > N(0, 1))
    for seed in range(200):
        labels, first, second = drawn(seed)
        one, other = auc_of(labels, first), auc_of(labels, second)
        interval = one.interval()
        held += interval.low <= truth <= interval.high
        difference, p = auc_difference(one, other, paired=True)
        loose, _ = auc_difference(one, other, paired=False)
        assert difference.high - difference.low < loose.high - loose.low
        assert (p < 0.05) == (difference.low > 0 or difference.high < 0)
        changed += p < 0.05
    assert 180 <= held <= 199 and changed > 50


def test_equal_scores_do_not_differ() -> None:
    labels, first, _ = drawn(1)
    one = auc_of(labels, first)
    assert auc_difference(one, one, paired=True)[1] == 1.0
    assert auc_of(labels, np.zeros(100)).interval().value == 0.5


def test_a_perfect_ranking_of_few_texts_proves_little() -> None:
    found = auc_of([1] * 12 + [0] * 12, np.arange(24)[::-1])
    interval = found.interval()
    assert (found.value, interval.high) == (1.0, 1.0) and 0.9 < interval.low < 0.93


def test_what_has_no_auc() -> None:
    with pytest.raises(ValueError, match="two texts of either kind or more, got 1 and 2"):
        auc_of([1, 0, 0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) came with scores of \(3,\)"):
        auc_of([1, 0], [1.0, 2.0, 3.0])
