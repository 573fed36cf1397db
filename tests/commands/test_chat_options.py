"""``--chat`` and ``--system`` of `bench` and `fit`, as they are typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tiny_models import make_chat_model, make_chat_tokenizer

from plugalign import cli, pocket

CHAT = "has no chat template, which --chat on needs"
POCKET = str(pocket.parts() / "pocket")
REFUSED = [
    (["--chat", "on"], CHAT),
    (["--chat", "maybe"], "got 'maybe'"),
    (["--system", "x"], "has no chat template"),
]
BENCH = ["--methods", "none", "--batch", "1", "--rounds", "1", "--new-tokens", "3"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["plugalign", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def chat_model(tmp_path: Path) -> str:
    folder = tmp_path / "chats"
    make_chat_model().save_pretrained(folder)
    make_chat_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def fit(tmp_path: Path) -> list[str]:
    rows = [{"text": f"w{i % 9} w{i % 7}", "label": i % 2} for i in range(40)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    small = ["--set", "steps=1", "--set", "batch_size=2", "--dtype", "float32"]
    return ["fit", "dexperts_lora", "--data", str(data), "--out", str(tmp_path / "out"), *small]


@pytest.mark.parametrize(("options", "message"), REFUSED)
@pytest.mark.parametrize("command", ["bench", "fit"])
def test_what_a_model_without_chats_cannot_do_is_refused(
    command: str,
    options: list[str],
    message: str,
    fit: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed = ["bench", *BENCH] if command == "bench" else [*fit, "--model", POCKET]
    assert run(monkeypatch, *typed, *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("chat", "used"), [("auto", True), ("on", True), ("off", False)])
def test_a_guide_learns_chats_as_asked(
    chat: str,
    used: bool,
    fit: list[str],
    chat_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(monkeypatch, *fit, "--model", chat_model, "--chat", chat) == 0
    record = json.loads((tmp_path / "out" / "fit.json").read_text("utf-8"))
    assert record["chat"]["used"] is used


@pytest.mark.parametrize(("chat", "used"), [("auto", True), ("on", True), ("off", False)])
def test_costs_are_of_chats_as_asked(
    chat: str, used: bool, chat_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bench.json"
    typed = ["bench", *BENCH, "--model", chat_model, "--chat", chat, "--out", str(out)]
    assert run(monkeypatch, *typed) == 0
    assert [cost["chat"] for cost in json.loads(out.read_text("utf-8"))] == [used]
