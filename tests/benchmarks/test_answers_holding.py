"""What a comparison found, apart from answers that hold some text."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from plugalign import cli

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("answers_holding")


def test_more_than_half_is_mostly_one(script: Any) -> None:
    assert script.is_mostly_one((7, 7, 3)) and not script.is_mostly_one((7, 7, 3, 4))
    assert not script.is_mostly_one(())


def test_answers_that_hold_it_give_way_to_bases(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    typed = ["compare", "--methods", "base,dexperts", "--limit", "4", "--samples", "2"]
    monkeypatch.setattr(sys, "argv", ["plugalign", *typed, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code

    def rows(text: str) -> dict[str, list[str]]:
        lines = [line.strip("| ").split(" | ") for line in list(script.table(out, text))[2:]]
        return {name: cells for _, name, *cells in lines}

    every, none = rows(""), rows("no answer has this")
    assert every["`dexperts`"][0] == "1.000" and none["`dexperts`"][0] == "0.000"
    assert every["`dexperts`"][-1] == every["`base`"][-1], "base's answers in the place of all"
    assert none["`base`"][2] == none["`base`"][3], "base beside itself"
