"""PPI++: coverage by simulation, and what a judge adds."""

from __future__ import annotations

import numpy as np
import pytest

from plugalign.evaluation.statistics.intervals import wilson
from plugalign.evaluation.statistics.prediction_powered import prediction_powered

TRUTH = 0.3


def draw_texts(draw: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and a judge that goes along with them but calls too many texts bad."""
    labels = (draw.random(count) < TRUTH).astype(float)
    return labels, np.clip(0.35 + 0.4 * labels + 0.15 * draw.normal(size=count), 0, 1)


def test_the_truth_is_covered_though_the_judge_is_biased() -> None:
    draw, held, narrower, naive = np.random.default_rng(0), [], [], []
    for _ in range(400):
        labels, judged = draw_texts(draw, 60)
        _, others = draw_texts(draw, 1000)
        found = prediction_powered(labels, judged, others)
        held.append(found.mean.low <= TRUTH <= found.mean.high)
        width, alone = (x.high - x.low for x in (found.mean, found.labels_alone))
        narrower.append(width < alone)
        naive.append(abs(others.mean() - TRUTH))
    assert np.mean(held) >= 0.92
    assert np.mean(narrower) > 0.99
    assert np.mean(naive) > 0.1  # what the judge alone is off by


def test_a_worthless_judge_counts_for_nothing() -> None:
    labels, _ = draw_texts(np.random.default_rng(1), 60)
    found = prediction_powered(labels, np.full(60, 0.7), np.full(1000, 0.7))
    assert found.weight == 0
    assert found.mean == found.labels_alone


def test_the_formula_by_hand() -> None:
    draw = np.random.default_rng(2)
    labels, judged = draw_texts(draw, 40)
    _, others = draw_texts(draw, 200)
    found = prediction_powered(labels, judged, others)
    covariance = np.cov(labels, judged)
    weight = covariance[0, 1] / ((1 + 40 / 200) * covariance[1, 1])
    assert found.weight == pytest.approx(np.clip(weight, 0, 1))
    theta = found.weight * others.mean() + np.mean(labels - found.weight * judged)
    assert found.mean.value == pytest.approx(theta)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_that_are_all_alike_are_no_certainty(label: float) -> None:
    _, judged = draw_texts(np.random.default_rng(3), 12)
    found = prediction_powered(np.full(12, label), judged, np.full(100, 0.5))
    wanted = wilson(label, 12)
    assert found.weight == 0 and found.labelled == 12
    assert found.mean == found.labels_alone == wanted
    assert wanted.high - wanted.low > 0.2


def test_few_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="10 labelled texts are needed, got 9"):
        prediction_powered(np.ones(9), np.ones(9), np.ones(5))
    with pytest.raises(ValueError, match="missing"):
        prediction_powered(np.ones(20), np.full(20, np.nan), np.ones(5))


def test_an_interval_of_labels_lies_where_labels_lie() -> None:
    """Nine of ten: Student's reaches 1.13."""
    found = prediction_powered([1.0] * 9 + [0.0], np.full(10, 0.5), [])
    assert found.labels_alone.value == pytest.approx(0.9) and found.labels_alone.high == 1.0
    assert found.labels_alone.low == pytest.approx(0.9 - 2.262157 * 0.1, abs=1e-6)
