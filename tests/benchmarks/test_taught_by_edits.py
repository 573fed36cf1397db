"""Edits as feedback: which pairs teach an equilibrium, and how."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from results_data import lines

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROWS = [
    {"toxic": "he is  a damned fool .", "neutral": ["He is a fool.", "other"]},
    {"toxic": "you are all fools", "neutral": ["Everybody is wrong"]},  # begins otherwise
    {"toxic": "go away now", "neutral": ["go away now please"]},  # nothing follows
    {"toxic": "it is so bad", "neutral": ["it is so  bad"]},  # the same
    {"toxic": "it is so bad", "neutral": []},
    {"toxic": "this is the damned end", "neutral": ["this is the end"]},
]


def test_edits_stand_behind_the_words_that_both_begin_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script: Any = importlib.import_module("taught_by_edits")
    lines(tmp_path / "pairs.jsonl", ROWS)
    assert [*script.edits(tmp_path / "pairs.jsonl", str.upper, " ")] == [
        {"prompt": "HE IS A", "text": " damned fool .", "edited": " fool."},
        {"prompt": "THIS IS THE", "text": " damned end", "edited": " end"},
    ]
    _, last = script.edits(tmp_path / "pairs.jsonl", lambda text: [text], "")
    assert last == {"prompt": ["this is the"], "text": "damned end", "edited": "end"}
