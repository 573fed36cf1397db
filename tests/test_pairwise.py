"""`pairwise` of the tests' helpers: few rows, and no pair of levels left out."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from pairwise import covering, pairwise

FACTORS = [
    {"a": "xy", "b": "z"},
    {"a": range(4), "b": range(9), "c": range(6)},
    {"a": range(13), "b": range(2), "c": range(3), "d": range(4)},
]


def pairs(rows):
    return {pair for row in rows for pair in combinations(enumerate(row), 2)}


@pytest.mark.parametrize("factors", FACTORS)
def test_every_pair_of_levels_occurs(factors):
    rows, every = covering(factors), list(product(*factors.values()))
    assert set(rows) <= set(every) and len(set(rows)) == len(rows)
    assert pairs(rows) == pairs(every)


def test_rows_are_few_and_always_the_same():
    rows = covering(FACTORS[1])
    assert 9 * 6 <= len(rows) < 1.2 * 9 * 6  # two levels want a row for each of their pairs
    assert rows == covering(FACTORS[1])


@pairwise(mode=("greedy", "sample"), architecture=("a", "b"), rows=(1, 2))
def test_a_test_gets_its_row(mode, architecture, rows):
    assert (mode, architecture, rows) in set(product(("greedy", "sample"), "ab", (1, 2)))
