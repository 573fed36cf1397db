"""Scores of which some are missing, made comparable between methods.

Letters here: P prompts, S samples per prompt.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from plugalign.evaluation.statistics.paired import FloatArray


def equal_numbers(scores: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Scores ``(P, S)`` of several methods, of each prompt equally many.

    A maximum grows with the number of samples, so a method whose scores are missing would look
    better. Of each prompt every method keeps its first k present scores, with k the least number
    that any method has there; a method without any is left out of the count.
    """
    counts = {name: (~np.isnan(s)).sum(axis=1) for name, s in scores.items()}
    present = np.stack([np.where(c > 0, c, np.iinfo(np.int64).max) for c in counts.values()])
    least = present.min(axis=0)[:, None]
    return {
        name: np.where(np.cumsum(~np.isnan(s), axis=1) <= least, s, np.nan)
        for name, s in scores.items()
    }


def common(first: FloatArray, second: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Two methods' scores ``(P, S)`` where both are present, NaN elsewhere."""
    both = ~np.isnan(first) & ~np.isnan(second)
    return np.where(both, first, np.nan), np.where(both, second, np.nan)
