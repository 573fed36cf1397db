"""Score intervals against published examples, scipy, and a likelihood maximised by search."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from plugalign.evaluation.statistics.intervals import (
    median_interval,
    paired_share_interval,
    share_interval,
    tango,
    wilson,
)

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.mark.parametrize(
    ("events", "count", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_newcombes_examples(events: int, count: int, low: float, high: float) -> None:
    found = wilson(events / count, count)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys(count: int, part: float, level: float) -> None:
    events = round(part * count)
    expected = stats.binomtest(events, count).proportion_ci(level, method="wilson")
    found = wilson(events / count, count, level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_tango_gives_a_published_example() -> None:
    # Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33:2850: airway
    # hyper-responsiveness of 21 children before and after; 1 pair gained, 7 lost.
    found = tango(1, 7, 21)
    assert found.value == pytest.approx(-6 / 21)
    assert (found.low, found.high) == pytest.approx((-0.517, -0.026), abs=5e-4)


def score_by_search(gained: int, lost: int, pairs: int, difference: float) -> float:
    """The score statistic with the likelihood under a difference maximised by plain search."""

    def minus_likelihood(q: float) -> float:
        shares = (q + difference, q, 1 - 2 * q - difference)
        counts = (gained, lost, pairs - gained - lost)
        return -sum(n * math.log(max(p, 1e-300)) for n, p in zip(counts, shares, strict=True) if n)

    ends = (max(0.0, -difference), (1 - difference) / 2)
    best = optimize.minimize_scalar(
        minus_likelihood, bounds=ends, method="bounded", options={"xatol": 1e-12}
    )
    variance = pairs * (2 * best.x + difference - difference**2)
    return float((gained - lost - pairs * difference) / math.sqrt(variance))


@pytest.mark.parametrize(
    ("gained", "lost", "pairs"), [(1, 7, 21), (0, 3, 50), (9, 4, 40), (30, 60, 400), (5, 5, 12)]
)
def test_tangos_limits_are_where_the_score_test_just_rejects(
    gained: int, lost: int, pairs: int
) -> None:
    found = tango(gained, lost, pairs)
    z = stats.norm.ppf(0.975)
    assert score_by_search(gained, lost, pairs, found.low) == pytest.approx(z, rel=1e-4)
    assert score_by_search(gained, lost, pairs, found.high) == pytest.approx(-z, rel=1e-4)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 200), st.data())
def test_tango_is_antisymmetric_inside_its_range_and_never_a_point(pairs: int, data: Any) -> None:
    gained = data.draw(st.integers(0, pairs))
    lost = data.draw(st.integers(0, pairs - gained))
    found, turned = tango(gained, lost, pairs), tango(lost, gained, pairs)
    assert -1 <= found.low <= found.value <= found.high <= 1 and found.low < found.high
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-6)


def test_no_event_in_a_hundred_has_an_upper_end() -> None:
    nothing = np.zeros(100)
    found = share_interval(nothing)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(wilson(0.0, 100).high) == pytest.approx(0.037, abs=5e-4)
    assert share_interval(nothing + 1).low == pytest.approx(1 - found.high)
    both = paired_share_interval(nothing, nothing)
    assert (both.low, both.high) == pytest.approx((-0.037, 0.037), abs=5e-4)
    # Of 10 answers to each prompt none: the prompts may still be what varies.
    assert share_interval(nothing, samples=10).high == pytest.approx(found.high)


def test_the_effective_size_lies_between_prompts_and_answers() -> None:
    rng = np.random.default_rng(0)
    alike = (rng.random(200) < 0.3).astype(float)
    spread = rng.binomial(10, 0.3, 200) / 10
    one, many = (x.high - x.low for x in (share_interval(alike, 10), share_interval(spread, 10)))
    assert one == pytest.approx(share_interval(alike).high - share_interval(alike).low)
    bounds = [wilson(float(spread.mean()), n) for n in (200, 2000)]
    assert bounds[1].high - bounds[1].low < many < bounds[0].high - bounds[0].low


def test_missing_prompts_are_left_out() -> None:
    values, base = [1, 0, math.nan, 1, 0], [0, 0, 1, math.nan, 0]
    assert share_interval(values) == share_interval([1, 0, 1, 0])
    assert paired_share_interval(values, base) == tango(1, 0, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(1.2, 5), "lies in"),
        (lambda: wilson(0.5, 0), "at least one observation"),
        (lambda: wilson(0.5, 5, level=1.0), "strictly between"),
        (lambda: tango(3, 3, 5), "cannot be among 5"),
        (lambda: tango(-1, 0, 5), "cannot be among 5"),
        (lambda: share_interval([math.nan]), "all 1 prompts are missing"),
        (lambda: share_interval([1.5]), "a share lies in"),
        (lambda: paired_share_interval([math.nan], [1.0]), "no prompt has a value of both"),
        (lambda: paired_share_interval([1.5], [0.0]), "a share lies in"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_differences_of_shares_of_answers_are_as_though_two_prompts_more_were_found() -> None:
    values, base = np.array([0.1, 0.0, 0.4, 0.2]), np.array([0.3, 0.0, 0.5, 0.0])
    more = np.array([*(values - base), 1.0, -1.0])
    reach = 1.959964 * np.sqrt(np.mean((more - more.mean()) ** 2) / 6)
    found = paired_share_interval(values, base)
    assert found.value == pytest.approx(np.mean(values - base))
    assert (found.low, found.high) == pytest.approx((more.mean() - reach, more.mean() + reach))
    rare = np.zeros(100)
    rare[0] = 0.1  # one answer of a thousand
    found = paired_share_interval(rare, rare)
    assert found.value == 0.0 and 0.01 < found.high == -found.low < 0.05


@pytest.mark.parametrize(
    "kind", ["share", "share of answers", "difference, coupled", "difference, of answers"]
)
def test_intervals_cover_the_truth_where_the_bootstrap_does_not(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    coverage = importlib.import_module("interval_coverage")
    for prompts, share in ((50, 0.01), (50, 0.02), (100, 0.05)):
        cell = coverage.simulate(kind, prompts, share, runs=400)
        assert cell.coverage >= 0.88  # 400 prompt sets: a standard error of .015 below .90
    assert coverage.simulate(kind, 50, 0.01, runs=100).bootstrap < 0.88


@pytest.mark.parametrize("count", [6, 7, 15, 40])
def test_a_medians_interval_is_the_narrowest_pair_of_order_statistics_that_covers(
    count: int,
) -> None:
    """Against the binomial count of numbers below the median, summed by hand."""
    values = np.random.default_rng(count).permutation(np.arange(count) ** 2.0)
    found = median_interval(values)
    assert found is not None and found.value == np.median(values)
    ordered, below = np.sort(values), [math.comb(count, k) / 2**count for k in range(count + 1)]

    def tail(k: int) -> float:
        return sum(below[: k + 1])

    outer = max(k for k in range(count) if tail(k) <= 0.025)
    assert (found.low, found.high) == (ordered[outer], ordered[count - 1 - outer])


def test_few_numbers_have_no_interval_of_their_median():
    for count in range(1, 6):
        assert median_interval(np.arange(count) + 1.0) is None
