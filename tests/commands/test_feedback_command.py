"""``plugalign feedback``, as it is typed, on the pocket world."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import plugalign as pa
from plugalign import cli, pocket

ROW = {"prompt": "The nurse was", "chosen": " kind", "rejected": " lazy"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model, tokenizer = pocket.load()
    rude = pa.TokenTable.of_words(["lazy"], model, tokenizer)
    kind = pa.TokenTable.of_words(["kind"], model, tokenizer)
    principles, preferences = [pa.Principle("rude", rude)], pa.Preferences({"kind": kind})
    pa.Equilibrium(None, principles, preferences, k=60).save_pretrained(tmp_path / "it")
    return tmp_path / "it"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["plugalign", "feedback", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_a_lesson_and_what_was_learned(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert run(monkeypatch, str(folder)) == 0
    assert "Nothing has been learned yet" in capsys.readouterr().out
    (tmp_path / "pairs.jsonl").write_text(json.dumps(ROW) + "\n")
    options = ["--add", str(tmp_path / "pairs.jsonl"), "--ridge", "2", "--threads", "1"]
    assert run(monkeypatch, str(folder), *options) == 0
    said = capsys.readouterr().out
    assert "standard error" in said and "acts at 0.95" in said
    assert "1 lesson; the last was pairs.jsonl (pairs 1, likes 0, edits 0)" in said
    assert float(pa.load(folder).preferences.theta) > 0  # type: ignore[attr-defined]
    assert run(monkeypatch, str(folder)) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ridge", "2"], "feedback without --add has no --ridge; leave it out"),
        (["--add", ""], "--add is empty, got ''; give a value or leave it out"),
        (["--add", "no.jsonl"], "no.jsonl: there is no such file"),
        (["--add", "no.txt"], "data must be a .jsonl or a .csv file"),
        (["--add", "no.jsonl", "--learner", "magic"], "a learner is one of map, gradient"),
        (["--add", "no.jsonl", "--keep", "2"], "lies in (0, 1], got 2"),
        (["--add", "no.jsonl", "--ridge", "x"], "got 'x'"),
        (["--add", "no.jsonl", "--texts", "nowhere"], "nowhere holds no prompts.jsonl"),
    ],
)
def test_bad_options_give_one_error(
    options: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    assert run(monkeypatch, str(folder), *options) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
