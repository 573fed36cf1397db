"""How toxic the texts are that guides learn from: which are drawn, and what is said of them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_data import write_data

from plugalign.evaluation.judging.judge import Judge

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("guide_texts")


def test_at_most_a_thousand_different_texts_are_drawn(script: Any) -> None:
    texts = [str(i) for i in range(3000)]
    found = script.drawn(texts)
    assert len({*found}) == len(found) == 1000 and {*found} <= {*texts}
    assert found == script.drawn(texts[::-1] + texts) and found != sorted(found)[:1000]
    assert sorted(script.drawn(["a", "b", "a"])) == ["a", "b"]


def test_a_share_is_that_of_scores_from_a_half(script: Any) -> None:
    judge = Judge("j", lambda texts: np.array([float(text) for text in texts]))
    found = script.toxic_share(judge, ["0.1", "0.5", "0.9", "0.3"])
    assert found == {"texts": 4, "share": 0.5, "low": 0.15, "high": 0.85, "mean": 0.45}


def test_every_label_of_every_data_set_has_a_line_for_each_judge(
    script: Any, tmp_path: Path
) -> None:
    data = write_data(importlib.import_module("results_tools"), tmp_path)
    seen: list[str] = []

    def score(texts: Sequence[str]) -> Any:
        seen.extend(texts)
        return np.full(len(texts), 0.25)

    found = script.measured(data, {"one": Judge("one", score), "two": Judge("two", score)})
    assert found.keys() == {"paradetox", "davidson_tweets"}
    lines = [*script.table(found)][2:]
    assert len(lines) == 8 and all(line.endswith(" | 0.25 |") for line in lines)
    assert lines[0].startswith("| paradetox | desired | one | 0.00 [0.00, ")
    assert len(seen) == 2 * sum(
        each["one"]["texts"] for labels in found.values() for each in labels.values()
    )
