"""Messages of a conversation, as chat data has them: ``[{"role": "user", "content": "Hello"}]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from plugalign.files.shown import shown
from plugalign.files.typed import validated
from plugalign.files.values import opened, text_of

EXAMPLE = '[{"role": "user", "content": "Hello"}]'


class Message(BaseModel):
    """What one side says in its turn."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: Literal["system", "user", "assistant"]
    content: str


Conversation = tuple[Message, ...]
"""At least one message; the last one is the user's, so that the assistant's turn is next."""
Prompt = str | Conversation
"""A text, or a conversation that waits for the assistant's answer."""


def conversation_of(value: Any, what: str) -> Conversation:
    """A conversation that the assistant is to answer.

    Args:
        value: a list of records with "role" and "content", or its text form.
        what: the place and the field, for messages.

    Raises:
        ValueError: for anything else, an empty message, a system message that is not the first,
            or a last message that is not the user's.
    """
    messages = opened(value, what)
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f"{what} must be a list of messages as {EXAMPLE}, got {shown(value)}")
    found = tuple(_message(each, f"{what}, message {i}") for i, each in enumerate(messages, 1))
    late = next((i for i, each in enumerate(found[1:], 2) if each.role == "system"), None)
    if late is not None:
        raise ValueError(f"{what}, message {late}: a system message stands first, or not at all")
    if found[-1].role != "user":
        raise ValueError(
            f"{what} ends with a message of the {found[-1].role}; the last one must be the user's, "
            f"whom the model answers"
        )
    return found


def prompt_of(value: Any, what: str) -> Prompt:
    """A text, or a conversation where it is a list.

    Raises:
        ValueError: see `conversation_of` and `plugalign.files.values.text_of`.
    """
    if isinstance(value, (list, tuple)):
        return conversation_of(value, what)
    return text_of(value, what)


def said_last(prompt: Prompt) -> str:
    """The text itself, or what the user says last in a conversation."""
    return prompt if isinstance(prompt, str) else prompt[-1].content


def as_lines(prompt: Prompt) -> str:
    """The text itself, or a conversation with a line for each message."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{each.role}: {each.content}" for each in prompt)


def _message(value: Any, what: str) -> Message:
    if isinstance(value, Message):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must have a role and a content, got {shown(value)}")
    message = validated(Message, value, what)
    text_of(message.content, f"{what}: 'content'")
    return message
