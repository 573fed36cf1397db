"""How alike, how short and how broken a comparison's answers are."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from plugalign.evaluation.comparison.compare import compare

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("answers_alike")


def test_answers_to_one_prompt_that_begin_alike(script: Any) -> None:
    answers = [(1, 2, 3, 4, 5), (1, 2, 3, 4, 6), (1, 2, 3, 5, 5), (1, 2, 3), (1, 2, 3), ()]
    assert script.begin_alike(answers) == [True, True, False, True, True, False]


def test_a_line_for_each_row(script: Any, tmp_path: Path) -> None:
    """Beside what was generated, counted anew."""
    run = tmp_path / "run"
    compare(methods=["dexperts"], limit=12, samples=6, max_new_tokens=12, out=run)
    written = [json.loads(x) for x in (run / "generations.jsonl").read_text().splitlines()]
    rows = [line.strip("| ").split(" | ") for line in list(script.table(run))[2:]]
    for name, *cells in rows:
        mine = [each for each in written if f"`{each['method']}`" == name]
        begins = [(each["prompt"], *each["tokens"][:4]) for each in mine]
        alike = sum(begins.count(begin) > 1 for begin in begins)
        short = sum(len(each["tokens"]) < 10 for each in mine)
        one = sum(
            any(2 * each["tokens"].count(token) > len(each["tokens"]) for token in each["tokens"])
            for each in mine
        )
        assert len(mine) == 72
        assert cells[:3] == [f"{count / 72:.3f}" for count in (alike, one, short)]
    assert {"`base`", "`dexperts`"} <= {name for name, *_ in rows}
    assert any(cells[0] != "0.000" for _, *cells in rows)
    assert any(cells[2] != "0.000" for _, *cells in rows)
