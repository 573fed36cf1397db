"""How often answers copy their prompt: what counts, and the table of a run."""

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
    return importlib.import_module("copied_prompts")


@pytest.mark.parametrize(
    ("answer", "copied"),
    [
        ("He said: one Two three four", True),
        ("two three four five and no more", True),
        ("one two three five", False),
        ("one two three", False),
        ("", False),
    ],
)
def test_four_words_in_a_row_are_a_copy(answer: str, copied: bool, script: Any) -> None:
    assert script.copies("Continue: one two three four five", answer) is copied


def test_a_run_has_a_line_for_each_row(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    typed = ["compare", "--methods", "base", "--limit", "2", "--samples", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["plugalign", *typed, "--max-new-tokens", "4"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    capsys.readouterr()
    script.main(out)
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("| `base` | 0.00 |  | ")  # four tokens are no four words of a prompt
    assert len(rows) >= 1
