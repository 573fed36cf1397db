"""Power of a paired comparison, against the noncentral t distribution, Cohen's table and draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from plugalign.evaluation.statistics.paired import sign_flip_test
from plugalign.evaluation.statistics.power import paired_power


def differences(mean: float, spread: float, count: int) -> np.ndarray:
    """Numbers with exactly this mean and sample standard deviation."""
    values = stats.norm.ppf((np.arange(count) + 0.5) / count)
    return mean + spread * (values - values.mean()) / values.std(ddof=1)


def exact_power(effect: float, pairs: int, level: float = 0.95) -> float:
    """Of the two-sided paired t-test, by the noncentral t distribution."""
    degrees, shift = pairs - 1, effect * math.sqrt(pairs)
    bar = stats.t.ppf((1 + level) / 2, degrees)
    found = stats.nct.sf(bar, degrees, shift) + stats.nct.cdf(-bar, degrees, shift)
    return float(found)


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_cohens_small_medium_and_large_effect(effect: float, pairs: int) -> None:
    """Cohen 1988, table 2.4.1, as one-sample tests of level .05 two-sided and power .80."""
    found = paired_power(differences(effect, 1.0, 60))
    assert found is not None and found.needed == pairs


@pytest.mark.parametrize("effect", [0.05, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("power", [0.8, 0.9])
def test_so_many_prompts_have_that_power_and_fewer_do_not(effect: float, power: float) -> None:
    found = paired_power(differences(-3 * effect, 3.0, 100), power=power)
    assert found is not None and found.needed is not None
    assert exact_power(effect, found.needed + 1) >= power
    assert exact_power(effect, found.needed - 2) < power


def test_the_smallest_change_is_found_as_often_as_promised():
    values = differences(0.01, 0.2, 80)
    found = paired_power(values)
    assert found is not None and found.detectable is not None and found.prompts == 80
    assert exact_power(found.detectable / 0.2, 80) == pytest.approx(0.8, abs=0.005)
    draws = np.random.default_rng(0).normal(found.detectable, 0.2, (4000, 80))
    shown = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    assert shown == pytest.approx(0.8, abs=0.02)


def test_prompts_that_no_permutation_test_can_decide_show_nothing():
    values = differences(0.5, 0.1, 6)
    assert sign_flip_test(values, np.zeros(6)) < 0.05 < sign_flip_test(values[:5], np.zeros(5))
    few, enough = paired_power(values[:5]), paired_power(values)
    assert few is not None and (few.needed, few.detectable) == (6, None)
    assert enough is not None and enough.needed == 6 and enough.detectable is not None
    strict = paired_power(values, level=0.99)
    assert strict is not None and (strict.needed, strict.detectable) == (8, None)


def test_what_has_no_answer_has_none():
    assert paired_power([np.nan, 1.0]) is None
    still = paired_power([0.0, 0.0, 0.0])
    assert still is not None and (still.needed, still.detectable) == (None, None)
    sure = paired_power([0.5, 0.5, 0.5, np.nan])
    assert sure is not None and (sure.prompts, sure.needed) == (3, 6)
    assert paired_power([0.1, -0.1, 0.0]).needed is None  # type: ignore[union-attr]
    for options in ({"power": 1.0}, {"level": 0.0}):
        with pytest.raises(ValueError, match="must lie strictly between 0 and 1"):
            paired_power([0.1, 0.2], **options)
