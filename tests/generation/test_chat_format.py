"""Which prompts become chats, and the exact token ids that a model then sees."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import (
    ASSISTANT,
    CLOSE,
    OPEN,
    SYSTEM,
    USER,
    make_chat_model,
    make_chat_tokenizer,
    make_model,
    make_tokenizer,
)

from plugalign.files.messages import conversation_of
from plugalign.generation.chat_format import choose_chat

BOS = 3 + 85
TALK = conversation_of(
    [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2 w3"},
        {"role": "user", "content": "w4"},
    ],
    "it",
)


def test_a_text_is_the_users_turn_and_the_assistants_is_open():
    chat = choose_chat(make_chat_model(), make_chat_tokenizer())
    assert chat.format is not None and "is an instruct model" in chat.why
    assert chat.format.ids("w1 w2") == [OPEN, USER, 4, 5, CLOSE, OPEN, ASSISTANT]
    assert chat.format.ids(TALK) == [
        *(OPEN, USER, 4, CLOSE, OPEN, ASSISTANT, 5, 6, CLOSE),
        *(OPEN, USER, 7, CLOSE, OPEN, ASSISTANT),
    ]
    assert chat.end_tokens([1]) == [1, CLOSE] and chat.end_tokens([CLOSE, 1]) == [CLOSE, 1]


def test_a_system_message_stands_in_front():
    chat = choose_chat(make_chat_model(), make_chat_tokenizer(), "auto", "w9")
    assert chat.format is not None
    ids = [OPEN, SYSTEM, 12, CLOSE, OPEN, USER, 4, CLOSE, OPEN, ASSISTANT]
    assert chat.format.ids("w1") == ids
    own = conversation_of([{"role": "system", "content": "w5"}, *TALK], "it")
    with pytest.raises(ValueError, match="prompt 3 has a system message of its own"):
        chat.format.ids(own, "prompt 3")


@pytest.mark.parametrize("written", [False, True])
def test_there_is_one_begin_token_whoever_writes_it(written: bool) -> None:
    tokenizer = make_chat_tokenizer(bos=True)
    assert tokenizer("w1")["input_ids"] == [BOS, 4]
    if written:
        tokenizer.chat_template = "{{ bos_token }} " + tokenizer.chat_template
    chat = choose_chat(make_chat_model(), tokenizer)
    assert chat.format is not None
    assert chat.format.ids("w1") == [BOS, OPEN, USER, 4, CLOSE, OPEN, ASSISTANT]


def test_the_rule_of_auto():
    instruct, base = make_chat_model(), make_model()
    chat, plain = make_chat_tokenizer(), make_tokenizer()
    assert choose_chat(instruct, chat).format is not None
    assert "does not end where its chat template closes" in choose_chat(base, chat).why
    assert "has no chat template" in choose_chat(instruct, plain).why
    for model, tokenizer in ((base, chat), (instruct, plain)):
        assert choose_chat(model, tokenizer).format is None
    assert choose_chat(base, chat, conversations=True).format is not None
    assert choose_chat(base, chat, "on").format is not None
    assert choose_chat(instruct, chat, "off").format is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "maybe"}, "chat must be auto, on, off, got 'maybe'"),
        ({"mode": "on"}, "has no chat template, which --chat on needs"),
        ({"conversations": True}, "has no chat template, which a prompt of messages needs"),
        ({"mode": "off", "conversations": True}, "leave --chat off out"),
        ({"system": "w1"}, "--system is a message of a chat, and prompts are plain texts"),
        ({"system": "w1", "mode": "off"}, "plain texts: it was asked for"),
        ({"system": " "}, "a system message needs a text"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_chat(make_chat_model(), make_tokenizer(), **options)


def test_what_the_template_refuses_is_named():
    tokenizer = make_chat_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + tokenizer.chat_template
    )
    chat = choose_chat(make_chat_model(), tokenizer, "on", "w1")
    assert chat.format is not None
    with pytest.raises(ValueError, match=r"template refuses prompt 0 \(system, user\): no system"):
        chat.format.ids("w2", "prompt 0")
