"""``plugalign compare``'s own options, as they are typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from plugalign import cli
from plugalign.evaluation.comparison.spec import read_spec


@pytest.fixture
def arguments(tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Options for a small run, with a judge of its own module."""
    tiny().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("w1 w2\nw3\nw4 w5\n")
    source = "def words(texts):\n    return [min(1.0, len(t.split()) / 6) for t in texts]\n"
    (tmp_path / "command_judge.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("web", "news"):
        rows = [{"text": "w1 " * n, "score": n / 6} for n in range(1, 7)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return [
        "compare",
        "--model",
        str(tmp_path / "model"),
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--judge",
        "command_judge:words",
        "--methods",
        "self_debias",
        "--samples",
        "2",
        "--max-new-tokens",
        "6",
        "--out",
        str(tmp_path / "out"),
    ]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["plugalign", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_a_least_length_and_several_reference_sets_are_typed(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    sets = [x for name in ("web", "news") for x in ("--agreement", str(tmp_path / f"{name}.jsonl"))]
    assert run(monkeypatch, *arguments, "--min-new-tokens", "3", *sets[:2]) == 0
    said = capsys.readouterr().out
    assert "against web.jsonl: AUC 1.00" in " ".join(said.split()) and "self_debias" in said
    for line in (tmp_path / "out" / "generations.jsonl").read_text().splitlines():
        assert len([t for t in json.loads(line)["tokens"] if t != 1]) >= 3
    assert run(monkeypatch, *arguments, "--min-new-tokens", "3", "--resume", *sets) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "against web.jsonl: AUC" in said and "against news.jsonl: AUC" in said
    assert run(monkeypatch, *arguments, "--resume") == 2
    assert "min_new_tokens was 3 and is now 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--min-new-tokens", "-1"], "min_new_tokens: input should be greater than or equal to 0"),
        (["--min-new-tokens", "7"], "min_new_tokens must lie between 0 and max_new_tokens (6)"),
        (["--agreement", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    more: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, *arguments, *more) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and message in said[0]
    assert not (tmp_path / "out").exists()


def test_a_file_as_out_is_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "out").write_text("")
    assert run(monkeypatch, *arguments) == 2
    assert "out is a file, and a folder is needed" in capsys.readouterr().err


def test_a_spec_may_name_one_reference_set_or_several(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("agreement: web.jsonl\nmin_new_tokens: 2\n")
    assert read_spec(tmp_path / "s.yaml", {}) == {"agreement": "web.jsonl", "min_new_tokens": 2}
    (tmp_path / "s.yaml").write_text("agreement: [web.jsonl, news.jsonl]\n")
    assert read_spec(tmp_path / "s.yaml", {})["agreement"] == ["web.jsonl", "news.jsonl"]
