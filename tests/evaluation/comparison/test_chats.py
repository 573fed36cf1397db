"""compare() on chats: what the model sees, what is judged, and what a run records of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    ASSISTANT,
    CLOSE,
    OPEN,
    SYSTEM,
    USER,
    make_chat_model,
    make_chat_tokenizer,
    make_model,
)

from plugalign.controllers.self_debias import SelfDebias
from plugalign.evaluation.comparison.compare import compare
from plugalign.evaluation.metrics.likelihood import nll
from plugalign.evaluation.run_folder.folder import read_json
from plugalign.evaluation.run_folder.journal import read_journal
from plugalign.evaluation.run_folder.records import Generated, Scored
from plugalign.evaluation.tuning import tune

TALK = [
    {"role": "user", "content": "w1"},
    {"role": "assistant", "content": "w2"},
    {"role": "user", "content": "w3 w4"},
]
TURNS = {"w80", "w81", "w82", "w83", "w84", "<eos>", "<pad>"}
SEEN = {
    0: [OPEN, USER, 8, CLOSE, OPEN, ASSISTANT],
    1: [OPEN, USER, 4, CLOSE, OPEN, ASSISTANT, 5, CLOSE, OPEN, USER, 6, 7, CLOSE, OPEN, ASSISTANT],
}


@pytest.fixture
def judged() -> list[str]:
    return []


@pytest.fixture
def run(judged: list[str]) -> dict[str, Any]:
    def judge(texts: Sequence[str]) -> list[float]:
        judged.extend(texts)
        return [min(1.0, len(text) / 60) for text in texts]

    return {
        "model": make_chat_model(),
        "tokenizer": make_chat_tokenizer(),
        "methods": ["self_debias"],
        "prompts": ["w5", TALK],
        "judges": {"judge": judge},
        "samples": 3,
        "max_new_tokens": 8,
        "batch_size": 3,
    }


def first_inputs(model: Any) -> list[list[int]]:
    """The ids of each row that the model reads from its beginning, as it is called."""
    found: list[list[int]] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if ids.shape[1] > 1:
            found.extend(ids.tolist())

    model.register_forward_pre_hook(note, with_kwargs=True)
    return found


def test_the_model_sees_the_template_and_the_judge_the_answer_alone(
    run: dict[str, Any], judged: list[str], tmp_path: Path
) -> None:
    seen = first_inputs(run["model"])
    compare(**run, out=tmp_path)
    whole = [[t for t in row if t != 0] for row in seen]
    assert all(row in whole for row in SEEN.values())
    answers = read_journal(tmp_path / "generations.jsonl", Generated, None)
    assert not any(set(a.text.split()) & TURNS for a in answers.values())
    ended = [a for a in answers.values() if CLOSE in a.tokens or 1 in a.tokens]
    assert ended and all(a.tokens.index(a.tokens[-1]) == len(a.tokens) - 1 for a in ended)
    assert set(judged) >= {a.text for a in answers.values()}
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert rows[0] == {"prompt": 0, "text": "w5"}
    assert rows[1] == {"prompt": 1, "text": "w3 w4", "messages": TALK}


def test_perplexity_is_that_of_the_answer_in_its_turn(run: dict[str, Any], tmp_path: Path) -> None:
    compare(**run, out=tmp_path)
    answers = read_journal(tmp_path / "generations.jsonl", Generated, None)
    scores = read_journal(tmp_path / "scores.jsonl", Scored, None)
    for key, answer in answers.items():
        words = [t for t in answer.tokens if t not in (1, CLOSE)]
        if not words:
            assert scores[key].nll is None
            continue
        wanted = nll(run["model"], [SEEN[answer.prompt]], [words])
        assert scores[key].nll == pytest.approx(float(wanted.nll[0]), rel=1e-4)


def test_a_run_says_what_was_done_and_is_not_continued_otherwise(
    run: dict[str, Any], tmp_path: Path
) -> None:
    compare(**run | {"system": "w9"}, out=tmp_path)
    chat = read_json(tmp_path / "manifest.json")["settings"]["chat"]
    assert (chat["asked"], chat["used"], chat["system"]) == ("auto", True, "w9")
    assert len(chat["template"]) == 16
    assert "Chats" in (tmp_path / "report.html").read_text()
    with pytest.raises(ValueError, match=r"another run: chat\.system was 'w9' and is now"):
        compare(**run, out=tmp_path, resume=True)
    changed = make_chat_tokenizer()
    changed.chat_template += " "
    with pytest.raises(ValueError, match=r"chat\.template was"):
        compare(**run | {"system": "w9", "tokenizer": changed}, out=tmp_path, resume=True)


def test_a_system_message_is_what_the_model_reads_first(
    run: dict[str, Any], tmp_path: Path
) -> None:
    seen = first_inputs(run["model"])
    compare(**run | {"system": "w9", "prompts": ["w5"], "methods": ["base"]}, out=tmp_path)
    assert [OPEN, SYSTEM, 12, CLOSE, *SEEN[0]] in seen


def test_an_answer_ends_with_its_turn_where_the_model_alone_would_not_stop(
    run: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model()
    with torch.no_grad():  # a model that soon says the token that closes a turn
        model.lm_head.weight[CLOSE] = model.lm_head.weight.mean(0) + 2
    compare(**run | {"model": model, "chat": "on", "samples": 8}, out=tmp_path)
    answers = read_journal(tmp_path / "generations.jsonl", Generated, None).values()
    closed = [a for a in answers if CLOSE in a.tokens]
    assert closed and all(a.tokens.index(CLOSE) == len(a.tokens) - 1 for a in closed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat": "off"}, "prompts of messages are chats"),
        ({"chat": "maybe"}, "chat must be auto, on, off"),
        ({"system": ""}, "a system message needs a text"),
    ],
)
def test_faults_are_found_before_any_work(
    run: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(**run | options, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_messages_without_a_template_are_refused(
    run: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="has no chat template, which a prompt of messages needs"):
        compare(**run | {"tokenizer": tokenizer}, out=tmp_path / "run")


def test_an_outside_scorer_reads_the_chat_in_its_own_template(
    run: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    from plugalign.evaluation.comparison.study import make_study

    for scorer, own, wanted in (
        (make_chat_model(1), make_chat_tokenizer(), "w80 w81 w5 w83 w80 w82 "),
        (make_model(seed=1), tokenizer, "w5\n\n"),
    ):
        given = {k: run[k] for k in ("model", "tokenizer", "methods", "prompts", "judges")}
        missing = dict.fromkeys(("controllers", "limit", "metrics", "scorer"))
        study = make_study(**given, **missing, settings={}, dtype="auto")
        assert study._read_by(scorer, own)[0] == wanted


def test_a_controller_that_was_fitted_on_the_other_kind_of_prompts_is_named(
    run: dict[str, Any], tmp_path: Path
) -> None:
    for name, used in (("of_chats", True), ("of_texts", False), ("silent", None)):
        SelfDebias(["w7"]).save_pretrained(tmp_path / name)
        if used is not None:
            (tmp_path / name / "fit.json").write_text(json.dumps({"chat": {"used": used}}))
    controllers = {name: tmp_path / name for name in ("of_chats", "of_texts", "silent")}
    changes = {"controllers": controllers, "methods": None, "samples": 1}
    compare(**run | changes, out=tmp_path / "run")
    log = (tmp_path / "run" / "progress.log").read_text()
    assert "of_texts was fitted on plain texts, and prompts are chats: fit it with --chat" in log
    assert log.count("was fitted on") == 1


def test_settings_are_tuned_on_chats(run: dict[str, Any], tmp_path: Path) -> None:
    options = {k: v for k, v in run.items() if k != "methods"}
    found = tune({"d": SelfDebias(["w7"])}, {"d.decay": [1.0, 5.0]}, **options, out=tmp_path)
    assert found.found["chat"]["used"] and found.found["prompts"]["count"] == 2
    rows = (tmp_path / "round-1" / "prompts.jsonl").read_text().splitlines()
    assert sorted(json.loads(row)["text"] for row in rows) == ["w3 w4", "w5"]
    assert sum("messages" in row for row in rows) == 1
