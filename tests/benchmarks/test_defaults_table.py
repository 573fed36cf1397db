"""The table of defaults: what studies chose, what holds today, and the page that says so."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("defaults_table")


def test_the_page_has_the_table(script: Any) -> None:
    page = (BENCHMARKS / "results" / "README.md").read_text("utf-8").splitlines()
    lines = list(script.table())
    assert len(lines) > 10 and not {*lines} - {*page}


def test_defaults_are_what_all_studies_chose_where_they_agree(script: Any) -> None:
    agreed = 0
    for name, setting, found, default in script.rows():
        tuned = [each for each in found if each is not None]
        chosen = {*tuned}
        if len(chosen) > 1 or chosen == {"none"} or not default or len(tuned) < 2:
            assert name not in script.KEPT
            continue
        agreed += 1
        assert (chosen == {default}) == (name not in script.KEPT), (name, setting)
    assert agreed > len(script.KEPT)


def test_a_choice_is_read_from_its_study(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trials = [{"settings": {"alpha": 4.0}}]
    tuned = {
        "dexperts": {"chosen": {"alpha": 4.0}, "trials": trials},
        "fudge": {"chosen": None, "trials": [{"settings": {"weight": 2}}]},
    }
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "tuning.json").write_text(json.dumps(tuned))
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    monkeypatch.setattr(script, "STUDIES", ("one",))
    assert script.chosen("one", "gedi") is None
    assert list(script.rows()) == [
        ("dexperts", "alpha", ["4"], "2"),
        ("fudge", "weight", ["none"], "8"),
    ]
