"""Statistics against scipy, plain loops and worked examples."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from plugalign.evaluation.statistics.paired import (
    Interval,
    PairedBootstrap,
    adjust,
    maximum,
    mean_score,
    missing,
    sign_flip_test,
)

NAN = math.nan


def test_per_prompt_numbers_leave_missing_scores_out() -> None:
    scores = [[0.2, 0.6, 0.1], [0.4, NAN, 0.2], [NAN, NAN, NAN], [0.5, NAN, NAN], [0, 0, 0]]
    np.testing.assert_array_equal(maximum(scores), [0.6, 0.4, NAN, 0.5, 0])
    np.testing.assert_allclose(mean_score(scores), [0.3, 0.3, NAN, 0.5, 0])
    assert missing(scores) == 6 and missing(maximum(scores)) == 1


cells = st.one_of(st.just(NAN), st.floats(0, 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6))
def test_per_prompt_numbers_equal_plain_loops(scores: list[tuple[float, ...]]) -> None:
    for row, high, mean in zip(scores, maximum(scores), mean_score(scores), strict=True):
        there = [s for s in row if not math.isnan(s)]
        if not there:
            assert math.isnan(high) and math.isnan(mean)
            continue
        assert high == max(there)
        assert mean == pytest.approx(sum(there) / len(there))


@pytest.mark.parametrize("scores", [[], [[]], [0.1, 0.2], np.zeros((0, 3))])
def test_scores_need_a_prompt_and_a_sample(scores: object) -> None:
    for reduce in (maximum, mean_score):
        with pytest.raises(ValueError, match="at least one of each"):
            reduce(scores)  # type: ignore[arg-type]


def data(prompts: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    base = rng.gamma(2.0, 0.2, prompts)
    return base * rng.uniform(0.4, 1.1, prompts), base


def near(found: Interval, value: float, low: float, high: float, rel: float) -> None:
    assert found.value == pytest.approx(value)
    assert (found.low, found.high) == pytest.approx((low, high), rel=rel)


def test_intervals_are_those_of_scipy() -> None:
    values, base = data()
    bootstrap = PairedBootstrap(40, resamples=20_000)
    options = {"method": "percentile", "n_resamples": 20_000, "rng": np.random.default_rng(5)}
    for found, sample in [
        (bootstrap.mean(values), values),
        (bootstrap.difference(values, base), values - base),
    ]:
        expected = stats.bootstrap((sample,), np.mean, **options)
        low, high = expected.confidence_interval
        near(found, float(sample.mean()), low, high, rel=0.01)


def test_intervals_equal_a_plain_loop_over_the_same_resamples() -> None:
    values, base = data(7)
    values[2], base[4] = NAN, NAN
    counts = np.random.default_rng(3).multinomial(7, np.full(7, 1 / 7), size=500)
    means, changes = [], []
    for row in counts:
        drawn = [i for i in range(7) for _ in range(row[i])]
        one = [i for i in drawn if i != 2]
        both = [i for i in one if i != 4]
        if one:
            means.append(sum(values[i] for i in one) / len(one))
        if both:
            changes.append(sum(values[i] - base[i] for i in both) / len(both))
    bootstrap = PairedBootstrap(7, resamples=500, level=0.9, seed=3)
    near(bootstrap.mean(values), np.nanmean(values), *np.quantile(means, [0.05, 0.95]), rel=1e-9)
    found, value = bootstrap.difference(values, base), np.nanmean(values - base)
    near(found, value, *np.quantile(changes, [0.05, 0.95]), rel=1e-9)


def test_resamples_are_shared_and_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    values = data()[0]
    found = PairedBootstrap(40, resamples=999, seed=1).mean(values)
    assert PairedBootstrap(40, resamples=999, seed=1).mean(values) == found
    assert PairedBootstrap(40, resamples=999, seed=2).mean(values) != found
    # The same resamples: a shifted method has exactly the shifted interval.
    both = PairedBootstrap(40)
    one, other = both.mean(values), both.mean(values + 1)
    assert (other.low - one.low, other.high - one.high) == pytest.approx((1.0, 1.0))
    assert both.difference(values + 1, values).low == pytest.approx(1.0)
    monkeypatch.setattr("plugalign.evaluation.statistics.paired.BLOCK", 64)
    in_blocks = PairedBootstrap(40, resamples=999, seed=1).mean(values)
    assert (in_blocks.low, in_blocks.high) == pytest.approx((found.low, found.high))


def test_a_mean_at_the_bound_keeps_a_defined_interval() -> None:
    assert PairedBootstrap(5).mean([1.0] * 5) == Interval(1.0, 1.0, 1.0)
    assert PairedBootstrap(1).mean([0.3]) == Interval(0.3, 0.3, 0.3)


def test_bad_input_of_the_bootstrap_is_named() -> None:
    for arguments, message in [
        ({"prompts": 0}, "no prompts"),
        ({"prompts": 3, "resamples": 10}, "at least 100, got 10"),
        ({"prompts": 3, "level": 1.0}, "got 1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            PairedBootstrap(**arguments)
    bootstrap = PairedBootstrap(2)
    with pytest.raises(ValueError, match="all 2 prompts are missing"):
        bootstrap.mean([NAN, NAN])
    with pytest.raises(ValueError, match="all 2 prompts are missing"):
        bootstrap.difference([NAN, 1.0], [1.0, NAN])
    with pytest.raises(ValueError, match=r"each of 2 prompts, got shape \(3,\)"):
        bootstrap.mean([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="infinite"):
        bootstrap.mean([1.0, math.inf])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([-0.5, -0.1, 0.0, 0.1, 0.3, 1.0]), min_size=1, max_size=8))
def test_few_prompts_are_tested_exactly(differences: list[float]) -> None:
    exceeding = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        >= abs(sum(differences)) - 1e-9
        for signs in product((1, -1), repeat=len(differences))
    ]
    found = sign_flip_test(differences, np.zeros(len(differences)))
    assert found == pytest.approx(np.mean(exceeding))


def test_many_prompts_are_tested_as_scipy_does() -> None:
    base = data(30)[1]
    values = base + np.random.default_rng(9).normal(0.05, 0.2, 30)
    found = sign_flip_test(values, base, permutations=20_000)
    expected = stats.permutation_test(
        (values - base,),
        np.mean,
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
        axis=0,
    ).pvalue
    assert 0.01 < expected < 0.99
    assert found == pytest.approx(expected, abs=0.02)
    assert sign_flip_test(values, base, permutations=20_000) == found
    assert sign_flip_test(base, values, permutations=20_000) == found


def test_a_drawn_p_value_is_never_zero() -> None:
    values = np.linspace(1, 2, 60)
    assert sign_flip_test(values, np.zeros(60), permutations=999) == 1 / 1000


def test_p_values_are_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(0)
    found = [
        sign_flip_test(rng.normal(size=25), np.zeros(25), permutations=999) for _ in range(300)
    ]
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_sign_flips_use_complete_pairs_only() -> None:
    full = sign_flip_test([0.1, 0.5, 0.2, 0.9], [0.0, 0.1, 0.3, 0.2])
    padded = sign_flip_test([0.1, NAN, 0.5, 0.2, 0.9, 7], [0.0, 3, 0.1, 0.3, 0.2, NAN])
    assert full == padded
    assert sign_flip_test([0.3, 0.3], [0.3, 0.3]) == 1.0
    with pytest.raises(ValueError, match="no prompt has a value of both"):
        sign_flip_test([NAN, 1.0], [1.0, NAN])
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        sign_flip_test([1, 2], [1, 2, 3])


def test_adjusting_follows_benjamini_and_hochberg() -> None:
    p_values = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5}
    # By hand: p * m / rank, then the running minimum from the largest p down.
    expected = {"a": 0.04, "b": 0.16 / 3, "c": 0.16 / 3, "d": 0.5}
    assert adjust(p_values) == pytest.approx(expected)
    assert adjust({}) == {}
    with pytest.raises(ValueError, match="'b' must lie in"):
        adjust({"a": 0.5, "b": NAN})


def test_what_rounding_made_of_equal_numbers_is_no_difference() -> None:
    summed, written = np.full(30, 0.1 + 0.2), np.full(30, 0.3)
    assert (summed != written).all()
    assert sign_flip_test(summed, written) == 1.0
    assert sign_flip_test(1e-9 * summed, np.zeros(30)) < 0.001
