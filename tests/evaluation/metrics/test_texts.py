"""Diversity and length against worked examples and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugalign.evaluation.metrics.texts import distinct_n, mean_length


def test_distinct_n_of_worked_examples() -> None:
    samples = [["a b a b", "a b c"], ["x"], ["", " "]]
    one, two = distinct_n(samples, 1), distinct_n(samples, 2)
    np.testing.assert_allclose(one[:2], [3 / 7, 1.0])
    np.testing.assert_allclose(two[:2], [3 / 7, 0.0])  # ab, ba, bc; none across samples
    assert math.isnan(one[2]) and math.isnan(two[2])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        distinct_n(samples, 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab ", max_size=12), min_size=1, max_size=4), st.integers(1, 4))
def test_distinct_n_equals_a_plain_loop(samples: list[str], n: int) -> None:
    grams, words = [], 0
    for text in samples:
        tokens = [t for t in text.split(" ") if t]
        words += len(tokens)
        for i in range(len(tokens)):
            if i + n <= len(tokens) and tokens[i : i + n] not in grams:
                grams.append(tokens[i : i + n])
    (found,) = distinct_n([samples], n)
    assert found == len(grams) / words if words else math.isnan(found)


def test_mean_length_counts_empty_answers() -> None:
    found = mean_length([[[5, 6], []], [[7]], []])
    np.testing.assert_array_equal(found, [1.0, 1.0, math.nan])
