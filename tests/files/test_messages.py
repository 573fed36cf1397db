"""Conversations in users' files: what is read, and one error for each fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plugalign.evaluation.comparison.prompts import load_prompts
from plugalign.files.messages import conversation_of, prompt_of, said_last

SYSTEM = {"role": "system", "content": "Be kind."}
USER = {"role": "user", "content": "Hello"}
ASSISTANT = {"role": "assistant", "content": "Hi"}


def test_a_conversation_is_read_in_its_order():
    found = conversation_of([SYSTEM, USER, ASSISTANT, USER], "it")
    assert [m.role for m in found] == ["system", "user", "assistant", "user"]
    assert said_last(found) == "Hello" and said_last(prompt_of("a text", "it")) == "a text"
    assert prompt_of(list(found), "it") == found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Hello", "must be a list of messages as .*got 'Hello'"),
        ([], r"must be a list of messages as .*got \[\]"),
        ([3], "message 1 must have a role and a content, got 3"),
        ([{"role": "user"}], "content is missing .*message 1"),
        ([{"role": "bot", "content": "x"}], "role: .*got 'bot'.*message 1"),
        ([USER | {"name": "Ada"}], "unknown option 'name'.*message 1"),
        ([USER | {"content": " "}], "message 1: 'content' is empty"),
        ([USER | {"content": None}], "content: .*got None.*message 1"),
        ([USER | {"content": "\ud83d"}], "message 1"),
        ([USER, SYSTEM], "message 2: a system message stands first"),
        ([USER, ASSISTANT], "ends with a message of the assistant"),
        ([SYSTEM], "ends with a message of the system"),
    ],
)
def test_each_fault_is_named(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conversation_of(value, "it")


def test_a_file_may_hold_texts_and_messages(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows: list[dict[str, Any]] = [{"messages": [SYSTEM, USER]}, {"text": "one"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = load_prompts(path)
    assert prompts.have_conversations and prompts.texts == ("Hello", "one")
    assert prompts.rows() == [{"text": "Hello", "messages": [SYSTEM, USER]}, {"text": "one"}]
    other = load_prompts([[USER], "one"])
    assert (
        other.fingerprint() != prompts.fingerprint() != load_prompts(["Hello", "one"]).fingerprint()
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [USER], "text": "x"}, "line 1: both 'messages' and 'text' hold a prompt"),
        ({"messages": [ASSISTANT]}, "line 1: 'messages' ends with a message of the assistant"),
        ({"messages": None}, "line 1: 'messages' must be a list of messages"),
    ],
)
def test_faults_in_a_file_name_the_line(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        load_prompts(path)
