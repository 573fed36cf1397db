"""Platt's scaling and verdict sets, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from plugalign.values.discriminator.head import calibrate, fewest_for, fit_head


def sample(count: int, draw: np.random.Generator, gap: float = 1.5):
    conforms = draw.random(count) < 0.6
    return draw.normal(size=count) + gap * conforms, conforms


def test_the_head_finds_a_planted_direction() -> None:
    draw = np.random.default_rng(0)
    conforms = np.arange(200) % 2 == 0
    states = draw.normal(size=(200, 30)) * 5 + 7
    states[:, 3] += 20 * conforms
    head = fit_head(states, conforms)
    assert np.abs(head.weights).argmax() == 3 and head.weights[3] > 0
    assert np.mean((head.margins(states) > 0) == conforms) > 0.95
    with pytest.raises(ValueError, match="texts that break the value"):
        fit_head(states, np.ones(200, dtype=bool))


def test_platt_is_the_most_likely_sigmoid_of_his_targets() -> None:
    margins, conforms = sample(300, np.random.default_rng(1))
    found = calibrate(margins, conforms, 0.9)
    n, m = conforms.sum(), (~conforms).sum()
    target = np.where(conforms, (n + 1) / (n + 2), 1 / (m + 2))

    def loss(x):
        p = expit(x[0] * margins + x[1])
        return -np.sum(target * np.log(p) + (1 - target) * np.log(1 - p))

    best = minimize(loss, [1.0, 0.0])
    assert (found.slope, found.shift) == pytest.approx(best.x, abs=1e-3)


@pytest.mark.parametrize("gap", [0.0, 1.5, 4.0])
def test_verdict_sets_hold_the_label_as_often_as_they_say(gap: float) -> None:
    """Over many calibrations; of a worthless head too, whose sets are then undecided."""
    draw, held = np.random.default_rng(2), []
    for _ in range(100):
        found = calibrate(*sample(64, draw, gap), 0.9)
        margins, conforms = sample(1000, draw, gap)
        verdicts = np.array(found.verdicts(margins))
        held.append(
            (verdicts == np.where(conforms, "conforms", "breaks")) | (verdicts == "undecided")
        )
    assert np.mean(held) > 0.89
    undecided = np.mean(verdicts == "undecided")
    assert undecided > 0.6 if gap == 0 else undecided < 0.6


def test_a_level_needs_enough_texts() -> None:
    assert [fewest_for(level) for level in (0.5, 0.8, 0.9, 0.95)] == [1, 4, 9, 19]
    margins = np.arange(20.0)
    with pytest.raises(ValueError, match="needs 19 texts to calibrate that conform, got 10"):
        calibrate(margins, margins >= 10, 0.95)
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        calibrate(margins, margins >= 10, 1.0)
