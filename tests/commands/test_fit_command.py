"""``plugalign fit judge``: options that a judge has no use for are refused, not ignored."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from plugalign import cli


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--dtype", "float16"], "a judge is fitted in float32, got --dtype float16"),
        (["--chat", "on"], "a judge reads texts without a chat"),
        (["--system", "x"], "a judge reads texts without a chat"),
        (["--one-style"], "a judge reads texts as they are; leave --one-style out"),
        (["--set", "steps=3"], "a judge has no settings, got --set steps=3"),
        (["--minutes", "3"], "a TF-IDF judge takes seconds and has no --minutes, got 3"),
    ],
)
def test_a_judge_refuses_what_it_has_no_use_for(
    option: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a", "label": 0}\n')
    arguments = ["fit", "judge", "--data", str(tmp_path / "data.jsonl")]
    arguments += ["--out", str(tmp_path / "out"), *option]
    monkeypatch.setattr(sys, "argv", ["plugalign", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
