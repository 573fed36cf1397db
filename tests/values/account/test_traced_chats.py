"""Traced chats: prompts stand in the model's turns, and what steers acts inside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import ASSISTANT, CLOSE, OPEN, SYSTEM, USER, make_chat_model, make_chat_tokenizer

from plugalign.controllers.value_statement import ValueStatement
from plugalign.values.account.chain import Chain
from plugalign.values.account.reading import TraceFile
from plugalign.values.account.replay import replay
from plugalign.values.account.tracing import trace

TALK = [
    {"role": "user", "content": "w1"},
    {"role": "assistant", "content": "w2"},
    {"role": "user", "content": "w3 w4"},
]
ANSWER = [OPEN, ASSISTANT]
FIRST = [OPEN, USER, 4, CLOSE, OPEN, ASSISTANT, 5, CLOSE]  # of TALK: w1 is token 4
STATED = [10, 11]  # w7 w8


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    return {
        "controllers": {"stated": ValueStatement("w7 w8")},
        "model": make_chat_model(),
        "tokenizer": make_chat_tokenizer(),
        "prompts": ["w5", TALK],
        "max_new_tokens": 12,
        "batch_size": 1,
        "out": tmp_path / "out",
    }


def read_by(model: Any) -> list[list[int]]:
    """The ids of each prompt that the model reads."""
    found: list[list[int]] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if ids.shape[1] > 1:
            found.extend(ids.tolist())

    model.register_forward_pre_hook(note, with_kwargs=True)
    return found


def test_a_statement_stands_inside_the_users_turn(given: dict[str, Any]) -> None:
    seen = read_by(given["model"])
    traced = trace(**given, system="w9")
    begun = [OPEN, SYSTEM, 12, CLOSE]
    assert seen == [
        [*begun, OPEN, USER, *STATED, 8, CLOSE, *ANSWER],
        [*begun, *FIRST, OPEN, USER, *STATED, 6, 7, CLOSE, *ANSWER],
    ]
    file = TraceFile(traced.file)
    assert file.run.chat is not None and file.run.chat.system == "w9"
    said = "prompts are chats: there are prompts of messages"
    assert said in traced.page.read_text(encoding="utf-8")


def test_an_answer_ends_where_the_template_closes_the_turn(given: dict[str, Any]) -> None:
    given["model"].generation_config.eos_token_id = 1  # chat="on" knows the template's end
    many = {"prompts": ["w5"], "samples": 40, "batch_size": 40}
    traced = trace(**given | many, chat="on")
    answers = list(TraceFile(traced.file).answers())
    assert any(each.ids[-1] == CLOSE for each in answers)
    for each in answers:
        assert (each.answer.finish_reasons == ("stop",)) == (each.ids[-1] in (1, CLOSE))
        assert not {1, CLOSE} & set(each.ids[:-1])


def test_conversations_that_end_alike_have_other_hashes(given: dict[str, Any]) -> None:
    prompts = [TALK, [{"role": "user", "content": "w6"}, *TALK[1:]], TALK[-1]["content"]]
    traced = trace(**given | {"prompts": prompts, "max_new_tokens": 2, "store_prompts": True})
    answers = [each.answer for each in TraceFile(traced.file).answers()]
    assert len({each.prompt_sha256 for each in answers}) == 3
    by_prompt = {each.prompt: each.prompt_text for each in answers}
    assert by_prompt[0] == "user: w1\nassistant: w2\nuser: w3 w4" and by_prompt[2] == "w3 w4"


def test_a_replay_takes_the_runs_turns(given: dict[str, Any]) -> None:
    traced = trace(**given, system="w9")
    again = {name: given[name] for name in ("controllers", "model", "tokenizer", "prompts")}
    assert replay(traced.file, **again).same == 2
    other = [given["prompts"][0], [{"role": "user", "content": "w6"}, *TALK[1:]]]
    with pytest.raises(ValueError, match="prompt 1 is not that of the run: its hash differs"):
        replay(traced.file, **again | {"prompts": other})
    again["tokenizer"].chat_template += " "
    with pytest.raises(ValueError, match="chat template is not that of the run"):
        replay(traced.file, **again)


def test_a_run_from_before_there_were_chats_is_one_of_plain_texts(given: dict[str, Any]) -> None:
    traced = trace(**given | {"prompts": ["w5"]}, chat="off")
    lines = [link.content for link in Chain(traced.file).links]
    assert lines[0].pop("chat") is None
    traced.file.unlink()
    Chain(traced.file).append(lines)
    again = {name: given[name] for name in ("controllers", "model", "tokenizer")}
    assert replay(traced.file, **again, prompts=["w5"]).same == 1


def test_plain_texts_take_no_messages_and_no_system(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="prompts of messages are chats; leave --chat off out"):
        trace(**given, chat="off")
    with pytest.raises(ValueError, match="--system is a message of a chat"):
        trace(**given | {"prompts": ["w5"]}, chat="off", system="w9")
    assert not given["out"].exists()


def test_the_page_of_a_file_of_messages(given: dict[str, Any], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"text": "w5", "group": "one"}, {"messages": TALK, "group": "two"}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    traced = trace(**given | {"prompts": prompts, "max_new_tokens": 2}, stratum="group")
    strata = {each.answer.prompt: each.answer.stratum for each in TraceFile(traced.file).answers()}
    assert strata == {0: "one", 1: "two"}
