"""The script that times fits, on the pocket model."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from results_data import write_data
from typer import BadParameter

from plugalign import pocket
from plugalign.catalogue import FITTERS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("fit_times")


def test_fits_are_timed_once_and_say_what_they_learnt(script: Any, tmp_path: Path) -> None:
    data = write_data(importlib.import_module("results_tools"), tmp_path / "data")
    out = tmp_path / "times.json"
    run: dict[str, Any] = {
        "model": str(pocket.PARTS / pocket.MODEL),
        "data": data,
        "work": tmp_path / "work",
        "out": out,
        "methods": "fudge_head,value",
        "minutes": 0.01,
        "threads": 1,
    }
    with pytest.raises(BadParameter, match=r"fudgy is none; there are args, .*, value"):
        script.main(**run | {"methods": "fudgy"})
    script.main(**run)
    found = json.loads(out.read_text())
    assert list(found) == ["fudge_head", "value"]
    assert all(fit["seconds"] > 0 and fit["minutes"] == 0.01 for fit in found.values())
    assert found["fudge_head"]["steps"] >= 1 and found["value"]["texts"] >= 128
    assert all(0 <= fit["held_out"]["auc"] <= 1 for fit in found.values())
    before = out.read_bytes()
    script.main(**run)  # nothing is left to do
    assert out.read_bytes() == before


def test_a_judge_is_timed_where_there_is_an_encoder(script: Any, tmp_path: Path) -> None:
    data, model = tmp_path / "data", str(pocket.PARTS / pocket.MODEL)
    write_data(importlib.import_module("results_tools"), data)
    given = model, data, tmp_path, 1.0, "off"
    assert list(script.fits(given[0], None, *given[1:])) == [*FITTERS, "value"]
    assert list(script.fits(given[0], "minilm", *given[1:])) == [*FITTERS, "value", "judge"]
