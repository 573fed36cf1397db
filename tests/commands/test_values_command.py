"""``plugalign values``, as it is typed, on the pocket model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from respondents import small, written
from tiny_models import make_chat_model, make_chat_tokenizer

from plugalign import cli, pocket
from plugalign.generation.chat_format import ChatChoice
from plugalign.values.questionnaire.respondent import ModelRespondent

MODEL = str(pocket.parts() / "pocket")
CONTROLLER = f"nulls={pocket.parts() / 'controllers' / 'nullspace'}"
CRITIQUE = f"critique={pocket.parts() / 'controllers' / 'self_critique'}"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["plugalign", "values", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(written(tmp_path / "small.json", small()))


def test_base_and_steered_side_by_side(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    options = ["--instrument", file, "--formats", "options", "--out", str(out), "--threads", "1"]
    options += ["--controllers", CONTROLLER, "--set", "nulls.strength=1"]
    assert run(monkeypatch, MODEL, *options) == 0
    said = capsys.readouterr().out
    assert said.strip().startswith("pocket: small did NOT measure")
    assert "Change from the model itself" in said and str(out / "report.html") in said
    found = json.loads((out / "values.json").read_text())
    assert list(found["rows"]) == ["pocket", "pocket + nulls"]
    base, steered = found["rows"].values()
    assert base["reference"] is None and steered["reference"] == "pocket"
    assert base["differences"] == {} and set(steered["differences"]) == {"a", "b"}
    moved = steered["items"]["0"] - base["items"]["0"]
    assert moved != 0 and base["verdict"]["level"] == "not measured"
    assert "No profile is drawn" in (out / "report.html").read_text()
    assert run(monkeypatch, MODEL, *options) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert run(monkeypatch, MODEL, *options, "--resume", "--out", str(tmp_path / "owt")) == 2
    assert "owt' to continue; name its folder" in capsys.readouterr().err
    assert run(monkeypatch, MODEL, *options, "--resume") == 0
    assert json.loads((out / "values.json").read_text()) == found


@pytest.mark.parametrize(("chat", "used"), [("auto", True), ("off", False)])
def test_a_chat_model_is_asked_in_turns(
    chat: str, used: bool, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_chat_model().save_pretrained(tmp_path / "chats")
    make_chat_tokenizer().save_pretrained(tmp_path / "chats")
    found: list[ChatChoice] = []
    own = ModelRespondent.__init__
    monkeypatch.setattr(ModelRespondent, "__init__", lambda s, *a: found.append(a[1]) or own(s, *a))
    options = ["--instrument", file, "--formats", "options", "--out", str(tmp_path / "out")]
    typed = ["--chat", chat, *(["--system", "w7 w8"] if used else [])]
    assert run(monkeypatch, str(tmp_path / "chats"), *options, *typed) == 0
    assert [choice.format is not None for choice in found] == [used]
    if used:
        [choice] = found
        ids = make_chat_tokenizer()("w7 w8", add_special_tokens=False)["input_ids"]
        assert " ".join(map(str, ids)) in " ".join(map(str, choice.format.ids("w3")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Missing argument 'MODEL...'"),
        (["no-such-model"], "no-such-model"),
        ([MODEL, "--formats", "digits"], "formats are options and letters, got 'digits'"),
        ([MODEL, "--formats", "options,options"], "--formats names 'options' twice"),
        ([MODEL, "--instrument", "none.json"], "none.json: there is no such file"),
        ([MODEL, "--chat", "on"], "'pocket' has no chat template"),
        ([MODEL, "--system", "x"], "--system is a message of a chat"),
        ([MODEL, MODEL], "two models are called 'pocket'; name each once"),
        ([MODEL, "--controllers", "dexperts"], "--controllers takes NAME=FOLDER"),
        ([MODEL, "--controllers", "d=none"], "d=none"),
        ([MODEL, "--controllers", CRITIQUE], "critique revises finished answers"),
        ([MODEL, "--set", "d.alpha=1"], "is of the method 'd', which is not compared"),
        ([MODEL], "more than the context of"),
    ],
)
def test_errors_are_one_line_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    options: list[str],
    message: str,
) -> None:
    out = tmp_path / "out"
    assert run(monkeypatch, *options, "--out", str(out)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and message in said[0]
    assert not (out / "readings.jsonl").exists()
