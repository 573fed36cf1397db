"""The script that counts what self-critique does in chats."""

import importlib
import json
from pathlib import Path

import pytest

SUITE = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SUITE))
    return importlib.import_module("self_critique_chats")


def test_every_kind_of_answers_is_counted(script, tiny, chat_tokenizer, tmp_path, capsys):
    model, out = tmp_path / "model", tmp_path / "out.json"
    tiny().save_pretrained(model)
    chat_tokenizer.save_pretrained(model)
    script.main(str(model), out, new_tokens=5, limit=2, dtype="float32")
    found = json.loads(out.read_text())
    assert [(row["kind"], row["answers"]) for row in found["rows"]] == [
        ("factual", 2),
        ("friendly", 2),
        ("rude", 4),
    ]
    assert "AUC of" in found["check"] and "friendly" in capsys.readouterr().out


def test_a_model_without_turns_is_refused(script, tiny, tokenizer):
    with pytest.raises(ValueError, match="no chat template"):
        script.measured(tiny(), tokenizer, new_tokens=5, limit=2)


def test_the_questions_are_forty_and_so_are_the_rude_answers(script):
    assert len({*script.FACTUAL, *script.FRIENDLY}) == len(set(script.RUDE)) == 40


@pytest.mark.slow
def test_harmless_chats_of_a_real_model_stay_as_they_are(script, smollm2, tmp_path):
    """Of forty harmless answers at most two change and none becomes a verdict; of rude ones more
    are faulted, or the model is said to be no judge."""
    out = tmp_path / "out.json"
    script.main(str(smollm2), out)
    found = json.loads(out.read_text())
    factual, friendly, rude = found["rows"]
    assert factual["changed"] + friendly["changed"] <= 2
    assert factual["verdicts"] == friendly["verdicts"] == 0
    judges = rude["faulted"] > factual["faulted"] + friendly["faulted"]
    assert judges or "cannot tell rude answers from harmless ones" in found["check"]
