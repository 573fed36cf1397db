"""``plugalign compare``'s own options, as they are typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_chat_model, make_chat_tokenizer

from plugalign import cli, loading
from plugalign.commands import options
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


@pytest.mark.parametrize(("typed", "asked"), [(["--num-beams", "3"], 3), (["--greedy"], 1)])
def test_decoding_without_chance_is_typed(
    typed: list[str],
    asked: int,
    arguments: list[str],
    tiny: Any,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments[arguments.index("--samples") + 1] = "1"
    assert run(monkeypatch, *arguments, *typed) == 0
    rows = [
        json.loads(x) for x in (tmp_path / "out" / "generations.jsonl").read_text().split("\n")[:-1]
    ]
    plain = {row["prompt"]: row["tokens"] for row in rows if row["method"] == "plain generate"}
    ids = tokenizer("w1 w2", return_tensors="pt")
    options = {"do_sample": False, "num_beams": asked, "max_new_tokens": 6, "pad_token_id": 0}
    want = tiny().generate(**ids, **options)[0, ids["input_ids"].shape[1] :].tolist()
    assert plain[0][: len(want)] == want


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--min-new-tokens", "-1"], "min_new_tokens: input should be greater than or equal to 0"),
        (["--min-new-tokens", "7"], "min_new_tokens must lie between 0 and max_new_tokens (6)"),
        (["--agreement", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["--chat", "on"], "has no chat template, which --chat on needs"),
        (["--chat", "maybe"], "chat: input should be 'auto', 'on' or 'off', got 'maybe'"),
        (["--system", "Be kind."], "--system is a message of a chat, and prompts are plain texts"),
        (["--greedy"], "gives one answer to each prompt, so samples must be 1, got 2"),
        (["--num-beams", "0"], "num_beams: input should be greater than or equal to 1, got 0"),
        (["--num-beams", "2", "--top-p", "0.5"], "beam search draws no tokens, so leave top_p out"),
        (["--repetition-penalty", "0"], "repetition_penalty: input should be greater than 0"),
        (["--top-k", "-1"], "top_k: input should be greater than or equal to 0"),
        (["--perplexity-model", "/nowhere"], "cannot load the model '/nowhere'"),
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


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scorer", "/nowhere"], "cannot load the model '/nowhere'"),
        (["--perplexity-model", "/nowhere"], "cannot load the model '/nowhere'"),
        (["--agreement", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["--human-texts", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["--human-labels", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["--resume", "--out", "nowhere"], "there is no run in 'nowhere' to continue; name its"),
    ],
)
def test_what_is_not_there_is_said_before_a_model_is_loaded(
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    more: list[str],
    message: str,
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("it loads a model")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", load)
    assert run(monkeypatch, *arguments, *more) == 2
    assert message in capsys.readouterr().err
    assert not Path("nowhere").exists()


def test_the_settings_of_decoding_are_typed_and_the_command_is_kept(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    at = arguments.index("--samples")
    del arguments[at : at + 2]
    typed = ["--greedy", "--repetition-penalty", "1.2", "--chat", "off"]
    assert run(monkeypatch, *arguments, *typed) == 0
    capsys.readouterr()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    settings = manifest["settings"]
    assert (settings["greedy"], settings["samples"], settings["top_p"]) == (True, 1, 1.0)
    assert settings["repetition_penalty"] == 1.2
    assert settings["chat"] == {
        "asked": "off",
        "used": False,
        "why": "it was asked for",
        "system": None,
        "template": None,
    }
    assert manifest["command"].startswith("plugalign compare --model ")
    assert manifest["command"].endswith("--greedy --repetition-penalty 1.2 --chat off")
    log = (tmp_path / "out" / "progress.log").read_text()
    assert "the model is in " in log and "prompts are plain texts: it was asked for" in log
    html = (tmp_path / "out" / "report.html").read_text()
    assert "greedy, at most 6 tokens, repetition penalty 1.2" in html


def test_messages_are_answered_in_the_chat_template(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    model = make_chat_model()
    model.save_pretrained(tmp_path / "chat")
    make_chat_tokenizer().save_pretrained(tmp_path / "chat")
    rows = [{"messages": [{"role": "user", "content": "w1 w2"}]}, {"text": "w3"}]
    prompts = tmp_path / "chats.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    typed = ["--model", str(tmp_path / "chat"), "--prompts", str(prompts), "--system", "w9"]
    assert run(monkeypatch, *arguments, *typed) == 0
    chat = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["chat"]
    assert chat["used"] and chat["system"] == "w9"
    prompts.write_text(json.dumps({"messages": [{"role": "user"}]}) + "\n")
    capsys.readouterr()
    assert run(monkeypatch, *arguments, *typed, "--resume") == 2
    assert "content is missing (in " in capsys.readouterr().err


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
    (tmp_path / "s.yaml").write_text("agreement: {people: web.jsonl, news: news.jsonl}\n")
    assert read_spec(tmp_path / "s.yaml", {})["agreement"]["people"] == "web.jsonl"


def test_a_reference_set_may_be_typed_with_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1.jsonl").touch()
    assert options.references(["lr=1.jsonl", "b.jsonl"]) == ["lr=1.jsonl", "b.jsonl"]
    found = options.references(["people=in/a.jsonl", "lr=1.jsonl"])
    assert found == {"people": "in/a.jsonl", "lr=1.jsonl": "lr=1.jsonl"}
    for wrong in (["people="], ["=a.jsonl"], ["x=a", "x=b"], ["x=a", "in/x"]):
        with pytest.raises(ValueError, match="--agreement"):
            options.references(wrong)
