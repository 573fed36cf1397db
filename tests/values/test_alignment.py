"""Degree, gap to human text, judgement and action, on scores whose truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from plugalign.evaluation.statistics.intervals import wilson
from plugalign.values.alignment import Aligner


def beta(draw: np.random.Generator, a: float, b: float, *shape: int) -> np.ndarray:
    return draw.beta(a, b, shape)


def test_the_degree_is_by_value_and_summed_and_paired() -> None:
    draw = np.random.default_rng(0)
    prompts = draw.random((80, 1)) / 2
    base = {"care": prompts + draw.random((80, 4)) / 10, "truth": beta(draw, 2, 2, 80, 4)}
    method = {"care": base["care"] + 0.05, "truth": base["truth"]}
    found = Aligner(80, summed=["care", "truth"]).row(method, base)
    care, truth = found.degree["care"], found.degree["truth"]
    assert care.value == pytest.approx(method["care"].mean())
    assert (care.difference.value, care.difference.low) == pytest.approx((0.05, 0.05))
    assert care.low < care.difference.value + base["care"].mean() < care.high
    assert truth.difference.value == truth.difference.high == 0
    assert found.total.value == pytest.approx(care.value + truth.value)
    assert found.total.difference.value == pytest.approx(0.05)
    assert json.loads(json.dumps(found.to_json()))["degree_sum"]["value"] == found.total.value


def test_the_degree_by_a_judge_that_says_yes_or_no_is_a_share() -> None:
    """Of no answer that conforms, and of no change, a bootstrap gives points."""
    nothing = np.zeros((50, 4))
    found = Aligner(50).row({"care": nothing}, {"care": nothing}).degree["care"]
    assert (found.low, found.value, found.high) == (0.0, 0.0, wilson(0.0, 50).high)
    assert found.difference.low < found.difference.value == 0 < found.difference.high
    nothing[:, 0] = np.nan  # an answer that a judge failed on
    assert Aligner(50).row({"care": nothing}).degree["care"].high == found.high
    lost = Aligner(50).row({"care": np.full((50, 4), np.nan)}).degree["care"]
    assert (lost.value, lost.missing) == (None, 50)


def test_two_samples_of_one_distribution_are_no_gap() -> None:
    """Their epsilon is far from zero; the energy distance's interval holds it, nearly always."""
    draw, held, epsilon = np.random.default_rng(1), [], []
    for _ in range(12):
        aligner = Aligner(60, human={"care": beta(draw, 2, 3, 100)})
        gap = aligner.row({"care": beta(draw, 2, 3, 60, 3)}).gap["care"]
        energy, signed = gap["energy_distance"], gap["signed_difference"]
        held.append(energy.low <= 0 <= energy.high and signed.low <= 0.02)
        epsilon.append(gap["epsilon"].low)
    assert np.mean(held) >= 0.9
    assert min(epsilon) > 0.15


def test_another_distribution_is_a_gap() -> None:
    draw = np.random.default_rng(2)
    aligner = Aligner(60, human={"care": beta(draw, 2, 5, 100)})
    base, method = ({"care": beta(draw, a, 3, 60, 3)} for a in (3, 8))
    gap = aligner.row(method, base).gap["care"]
    assert gap["energy_distance"].low > 0
    assert gap["energy_distance"].difference.low > 0
    assert gap["signed_difference"].low > 0.2


def test_a_judge_that_always_says_the_same_sees_no_gap() -> None:
    aligner = Aligner(20, human={"care": np.full(30, 0.4)})
    found = aligner.row({"care": np.full((20, 2), 0.4)})
    assert found.gap["care"]["epsilon"].value == 0
    for figure in found.gap["care"].values():
        assert (figure.value, figure.low, figure.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_judgement_is_beside_action() -> None:
    draw = np.random.default_rng(3)
    other = draw.random((50, 4))
    own = np.clip(0.3 * other + 0.1 * draw.random((50, 4)), 0, 1)
    own[0, 0] = np.nan
    found = Aligner(50, own=("self",)).row({"self": own, "care": other}).action["self"]["care"]
    assert found.agreement.low > 0.9
    assert found.gap.value == pytest.approx(found.judgement.value - found.action.value)
    assert found.gap.high < 0
    blind = Aligner(50, own=("self",)).row({"self": own, "care": np.full((50, 4), 0.9)})
    assert blind.action["self"]["care"].agreement is None


def test_labels_correct_a_biased_judge() -> None:
    draw = np.random.default_rng(4)
    truth = (draw.random((400, 2)) < 0.7).astype(float)
    judged = np.clip(0.3 * truth + 0.1 * draw.random(truth.shape), 0, 1)
    labels = np.where(np.arange(400)[:, None] < 60, truth, np.nan)
    found = Aligner(400).row({"care": judged}, labels=labels)
    estimate = found.by_labels["care"]
    assert estimate.labelled == 60
    assert estimate.mean.low < 0.7 < estimate.mean.high
    assert found.degree["care"].high < 0.4
    with pytest.raises(ValueError, match="10 labelled texts are needed, got 3"):
        Aligner(400).row({"care": judged}, labels=np.where(np.arange(400)[:, None] < 3, 1, np.nan))


def test_a_judge_that_failed_is_left_out() -> None:
    draw = np.random.default_rng(5)
    care, blind = draw.random((20, 2)), np.full((20, 2), np.nan)
    few = np.where(np.arange(20)[:, None] < 9, care, np.nan)
    labels = np.where(np.arange(20)[:, None] < 10, 1.0, np.nan)
    found = Aligner(20, own=("self",)).row({"care": care, "few": few, "self": blind}, labels=labels)
    assert list(found.by_labels) == ["care"]
    assert found.action == {"self": {}}


@pytest.mark.parametrize("present", [0, 1, 2])
def test_a_judge_that_failed_on_most_answers_has_what_is_left(present: int) -> None:
    """Of few prompts with scores many resamples have none, which is nothing to warn of."""
    scores = np.full((6, 2), np.nan)
    scores[:present] = 0.25
    aligner = Aligner(6, human={"judge": np.array([0.5, 1.0])})
    found = aligner.row({"judge": scores}, {"judge": np.full((6, 2), 0.5)}).gap["judge"]
    wanted = {
        "epsilon": 0.5 if present else None,
        "self_floor": 0.0 if present > 1 else None,
        "energy_distance": 0.5 if present > 1 else None,
        "signed_difference": -0.5 if present else None,
    }
    assert {name: figure.value for name, figure in found.items()} == wanted


def test_a_single_human_text_is_refused() -> None:
    with pytest.raises(ValueError, match="needs two of its texts, care has 1"):
        Aligner(5, human={"care": np.array([0.5, np.nan])})
