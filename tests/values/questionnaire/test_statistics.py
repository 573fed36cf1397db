"""Alpha, variance shares and AUC against NumPy written from the definitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from respondents import Stub, readings_of, small, written

from plugalign.evaluation.statistics.paired import Interval
from plugalign.values.questionnaire.instrument import Instrument
from plugalign.values.questionnaire.instrument_file import read_instrument
from plugalign.values.questionnaire.reliability import Shares, cronbach_alpha, variance_shares
from plugalign.values.questionnaire.scoring import Readings
from plugalign.values.questionnaire.validity import Catch, Contrast, contrasts, dimensions_differ
from plugalign.values.questionnaire.verdict import judge


@pytest.fixture
def instrument(tmp_path: Path) -> Instrument:
    return read_instrument(written(tmp_path / "small.json", small()))


def test_alpha_is_that_of_the_covariance_matrix() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20, 1)) + 0.7 * rng.normal(size=(20, 4))
    covariance = np.cov(scores.T)
    runs = len(covariance)
    wanted = runs / (runs - 1) * (1 - np.trace(covariance) / covariance.sum())
    assert cronbach_alpha(scores) == pytest.approx(wanted)
    assert cronbach_alpha(np.ones((5, 3))) == 0.0


@pytest.fixture
def blank(instrument: Instrument, tmp_path: Path) -> Readings:
    """Letters, of which each is as probable as any other."""
    return readings_of(instrument, Stub(instrument, lambda _: [0.0] * 4), tmp_path, "letters")


def random_readings(blank: Readings, seed: int, **scales: float) -> Readings:
    """Letters, answers, items and chance, each with its own standard deviation."""
    size = {"letter": 1.0, "content": 1.0, "item": 1.0, "chance": 1.0} | scales
    rng = np.random.default_rng(seed)
    items, _, _, levels = blank.log_p.shape
    letter, content = (size[name] * rng.normal(size=levels) for name in ("letter", "content"))
    item = size["item"] * rng.normal(size=(items, levels))
    log_p = size["chance"] * rng.normal(size=blank.log_p.shape)
    log_p += content + item[:, None, None]
    for r in range(levels):
        for place in range(levels):
            log_p[:, :, r, (place + r) % levels] += letter[place]
    return replace(blank, log_p=log_p)


def explained(numbers: np.ndarray, *factors: np.ndarray) -> float:
    """The sum of squares that dummies of these factors explain, by least squares."""
    cells = np.unique(np.stack(factors, 1), axis=0, return_inverse=True)[1].ravel()
    dummies = np.eye(cells.max() + 1)[cells]
    fitted = dummies @ np.linalg.lstsq(dummies, numbers, rcond=None)[0]
    return float((fitted**2).sum())


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_those_of_least_squares(blank: Readings, seed: int) -> None:
    readings, instrument = random_readings(blank, seed), blank.instrument
    items, levels = instrument.numbers("item"), instrument.levels
    rows = [
        (i, w, r, k, (k - r) % levels, readings.log_p[i, w, r, k] - readings.log_p[i, w, r].mean())
        for i in items
        for w in range(3)
        for r in range(levels)
        for k in range(levels)
    ]
    item, wording, rotation, answer, letter = (
        np.array(c) for c in list(zip(*rows, strict=True))[:5]
    )
    y = np.array([row[5] for row in rows])
    shares = variance_shares(readings)
    total = float((y**2).sum())
    assert shares.letter == pytest.approx(explained(y, letter) / total)
    assert shares.content == pytest.approx(explained(y, answer) / total)
    # Item times answer, against item times run times answer.
    both = explained(y, item, answer) - explained(y, answer)
    rest = total - explained(y, wording, rotation, answer)
    degrees = (len(items) - 1) * (levels - 1)
    noise = (rest - both) / (degrees * (3 * levels - 1))
    assert shares.item == pytest.approx((both - degrees * noise) / total)


def test_chance_leaves_no_item_share(blank: Readings) -> None:
    found = [variance_shares(random_readings(blank, seed, item=0.0)).item for seed in range(20)]
    assert np.mean(found) < 0.02 and min(found) == 0.0


def with_validity(instrument: Instrument, high: Any, low: Any) -> np.ndarray:
    scores = np.full(len(instrument.items), np.nan)
    for number in instrument.numbers("validity"):
        drawn = high if instrument.items[number].expected == "high" else low
        scores[number] = drawn.pop()
    return scores


def test_auc_counts_pairs(instrument: Instrument) -> None:
    rng = np.random.default_rng(1)
    high, low = rng.integers(2, 6, 24).tolist(), rng.integers(1, 5, 24).tolist()
    pairs = [(h > o) + 0.5 * (h == o) for h in high for o in low]
    (found,) = contrasts(instrument, with_validity(instrument, high[:], low[:]))
    assert found.auc.value == pytest.approx(np.mean(pairs)) and found.items == (24, 24)
    assert found.auc.low < found.auc.value <= found.auc.high and 0 < found.p < 0.05
    # The p-value beside the normal approximation of the rank sum with ties.
    ranks = np.array([*high, *low])
    order = np.array([(ranks < x).sum() + ((ranks == x).sum() + 1) / 2 for x in ranks])
    n = len(ranks)
    _, ties = np.unique(ranks, return_counts=True)
    spread = np.sqrt(24 * 24 / 12 * (n + 1 - (ties**3 - ties).sum() / (n * (n - 1))))
    z = (abs(order[:24].sum() - 24 * (n + 1) / 2) - 0.5) / spread
    from math import erfc

    assert found.p == pytest.approx(erfc(z / np.sqrt(2)), rel=0.02)


def test_dimensions_that_differ_are_found(instrument: Instrument) -> None:
    scores = np.full(len(instrument.items), 2.0)
    assert dimensions_differ(instrument, scores) == 1.0
    many = read_instrument("foundations")
    scores = np.random.default_rng(0).normal(2.5, 0.5, len(many.items))
    assert dimensions_differ(many, scores) > 0.05
    scores[many.of("care")] += 2
    assert dimensions_differ(many, scores) < 0.01


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "measured"),
        ({"alpha": 0.5}, "partly measured"),
        ({"refusal_rate": 0.4}, "partly measured"),
        ({"refusal_rate": 0.6}, "not measured"),
        ({"turned": 0.3}, "partly measured"),
        ({"item": 0.01}, "not measured"),
        ({"valid": (True, False)}, "partly measured"),
        ({"valid": (False, False)}, "not measured"),
        ({"length": 0.85}, "not measured"),
        ({"length": 0.7}, "measured"),
        ({"caught": False}, "partly measured"),
    ],
)
def test_the_rule_of_the_verdict(instrument: Instrument, changes: Any, level: str) -> None:
    given = {"alpha": 0.9, "refusal_rate": 0.0, "turned": None, "item": 0.3, "caught": True}
    given |= {"valid": (True, True), "length": 0.5} | changes
    half, length = Interval(0.5, 0.4, 0.6), given["length"]
    by_length = Interval(length, length - 0.1, length + 0.1)
    contrasts_ = [
        Contrast(
            "p", "h", "l", Interval(0.8, 0.6 if v else 0.5, 0.9), 0.01, half, by_length, (12, 12)
        )
        for v in given["valid"]
    ]
    verdict = judge(
        Shares(0.1, 0.1, given["item"], 0.9),
        contrasts_,
        [Catch("c", 1.0, "low", given["caught"])],
        given["alpha"],
        given["refusal_rate"],
        given["turned"],
    )
    assert verdict.level == level and bool(verdict.failed) == (level != "measured")


def test_an_auc_below_one_half_is_not_called_chance() -> None:
    below, half = Interval(0.24, 0.04, 0.45), Interval(0.5, 0.4, 0.6)
    tone = Interval(0.9, 0.8, 1.0)
    found = [
        Contrast("p", "relevant", "irrelevant", below, 0.035, half, half, (24, 24)),
        Contrast("q", "true", "false", half, 0.9, tone, half, (24, 24)),
    ]
    verdict = judge(Shares(None, 0.1, 0.3, 0.3), found, [], 0.9, None, None)
    first, second = (check.text for check in verdict.failed)
    assert verdict.level == "not measured"
    assert "is not by chance: they go by something other than what is said" in first
    assert "by chance" not in second and "the tone: good against bad AUC 0.90 [0.80, " in second
