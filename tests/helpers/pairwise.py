"""Fewer tests than the full product of factors: no pair of two factors' levels is left out, or no
level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(**factors: Sequence[Any]) -> pytest.MarkDecorator:
    """``@pairwise(architecture=…, mode=…, rows=…)`` in the place of a parametrize of each."""
    return pytest.mark.parametrize(list(factors), covering(factors), ids=_name)


def each_level(**factors: Sequence[Any]) -> pytest.MarkDecorator:
    """As many tests as the longest factor has levels, in which the others' levels take turns: for
    factors that meet pair by pair in another test of the file."""
    count = max(map(len, factors.values()))
    rows = [tuple(levels[i % len(levels)] for levels in factors.values()) for i in range(count)]
    return pytest.mark.parametrize(list(factors), rows, ids=_name)


def _name(level: Any) -> str:
    return str(getattr(level, "__name__", level))


def covering(factors: Mapping[str, Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Rows of the product of two or more factors in which any levels of two factors meet.

    Greedy and always the same: the next row is the first that adds most pairs.
    """
    rows = list(product(*(range(len(levels)) for levels in factors.values())))
    pairs = [set(combinations(enumerate(row), 2)) for row in rows]
    missing, chosen = set().union(*pairs), []
    while missing:
        best = max(range(len(rows)), key=lambda i: len(pairs[i] & missing))
        missing -= pairs[best]
        chosen.append(rows[best])
    columns = list(factors.values())
    return [tuple(column[i] for column, i in zip(columns, row, strict=True)) for row in chosen]
