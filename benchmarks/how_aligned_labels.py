"""What a few human labels and a judge say of a mean label (PPI++), where all labels are known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plugalign.evaluation.judging.load import Judge
from plugalign.evaluation.statistics.paired import FloatArray
from plugalign.evaluation.statistics.prediction_powered import prediction_powered
from plugalign.fitting.data import load_data

LABELLED, OTHERS, DRAWS = 60, 340, 2000


def few_labels(judges: Mapping[str, Judge], path: Path, count: int) -> dict[str, Any]:
    """How often intervals by a few labels hold the share that conforms, and how wide they are.

    Each draw takes texts with replacement, some of them with their label, so that the share of all
    texts is what is estimated.

    Args:
        judges: by name. path: of labelled texts, 1 for what breaks the value. count: of them.

    Returns:
        The share of texts that conform, and by judge what it says alone and with labels.
    """
    data = load_data(path, limit=count)
    conforms = np.array([float(label == "0") for label in data.labels])
    return {
        "texts": len(conforms),
        "labelled": LABELLED,
        "others": OTHERS,
        "draws": DRAWS,
        "share": float(conforms.mean()),
        "judges": {
            name: _drawn(conforms, 1 - judge(list(data.texts))) for name, judge in judges.items()
        },
    }


def _drawn(conforms: FloatArray, judged: FloatArray) -> dict[str, float]:
    """One judge.

    Args:
        conforms: 1 or 0 of n texts, ``(n,)``. judged: P(v | y), ``(n,)``.
    """
    rng, truth = np.random.default_rng(0), conforms.mean()
    held, wide, alone_held, alone_wide, weights = [], [], [], [], []
    for _ in range(DRAWS):
        known = rng.integers(len(conforms), size=LABELLED)
        others = rng.integers(len(conforms), size=OTHERS)
        found = prediction_powered(conforms[known], judged[known], judged[others])
        for interval, holds, width in (
            (found.mean, held, wide),
            (found.labels_alone, alone_held, alone_wide),
        ):
            holds.append(interval.low <= truth <= interval.high)
            width.append(interval.high - interval.low)
        weights.append(found.weight)
    return {
        "judge_alone": float(judged.mean()),
        "coverage": float(np.mean(held)),
        "width": float(np.mean(wide)),
        "coverage_of_labels_alone": float(np.mean(alone_held)),
        "width_of_labels_alone": float(np.mean(alone_wide)),
        "weight": float(np.mean(weights)),
    }
