"""Whether a head is better than TF-IDF: by the interval of the paired difference."""

from __future__ import annotations

import numpy as np
import pytest

from plugalign.evaluation.statistics.paired import Interval
from plugalign.values.discriminator.measuring import auc_gain
from plugalign.values.discriminator.sheet import HeldOut, Sheet

CONFORMS = np.arange(120) % 2 == 0


def scored(noise: float, seed: int) -> np.ndarray:
    return CONFORMS + noise * np.random.default_rng(seed).normal(size=CONFORMS.size)


def finding(ours: np.ndarray, plain: np.ndarray) -> str:
    gain = auc_gain(ours, plain, CONFORMS)
    half = Interval(0.9, 0.8, 1.0)
    held_out = HeldOut(
        texts=120,
        auc=half,
        tfidf=half,
        over_tfidf=gain,
        coverage=half,
        decided=half,
        correct=None,
    )
    return Sheet(statement="s", model="m", held_out=held_out).finding


def test_a_little_more_on_few_texts_is_not_better() -> None:
    plain = scored(0.7, 4)
    ours = plain + scored(0.2, 2) - 0.99 * CONFORMS
    gain = auc_gain(ours, plain, CONFORMS)
    assert gain.low < 0 < gain.value
    assert "not better than TF-IDF (0.900 [0.800, 1.000]; difference 0.026" in finding(ours, plain)


def test_much_more_is_better_and_less_is_not() -> None:
    assert "TF-IDF" not in finding(scored(0.2, 1), scored(3.0, 2))
    assert "not better than TF-IDF" in finding(scored(3.0, 2), scored(0.2, 1))


def test_pairs_show_what_two_intervals_would_hide() -> None:
    """Each text a little better ranked: the difference is sure, though the AUCs overlap."""
    plain = scored(1.5, 5)
    ours = plain + 0.35 * CONFORMS
    assert auc_gain(ours, plain, CONFORMS).low > 0 and "TF-IDF" not in finding(ours, plain)


def test_a_sheet_of_before_claims_nothing_over_tfidf() -> None:
    old = Interval(0.9, 0.8, 1.0)
    held_out = {"texts": 9, "auc": old, "tfidf": old, "coverage": old, "decided": old}
    sheet = Sheet.model_validate(
        {"statement": "s", "model": "m", "held_out": {**held_out, "correct": None}}
    )
    assert "not better than TF-IDF (0.900 [0.800, 1.000])" in sheet.finding


@pytest.mark.parametrize("seed", range(3))
def test_equal_scores_differ_by_nothing(seed: int) -> None:
    scores = scored(1.0, seed)
    gain = auc_gain(scores, scores, CONFORMS)
    assert gain.value == 0 and gain.low < 0 < gain.high
