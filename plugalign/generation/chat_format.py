"""Whether prompts are put into a chat template, and how they then look.

The rule of "auto": a model is an instruct model where its tokenizer has a chat template and the
special token with which that closes the assistant's turn is one of the tokens at which the model
ends (``generation_config.eos_token_id``). A base model that was merely published with the template
of its sibling ends elsewhere, and goes on with plain texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from plugalign.algebra.identity import model_name
from plugalign.files.messages import Message, Prompt
from plugalign.generation.chat import REFUSED, Chat, chat_of, encode
from plugalign.generation.request import token_list

SAID = "what-the-user-says"  # stands for any text
ChatMode = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class ChatFormat:
    """Prompts in a tokenizer's own chat template, up to where the assistant's answer begins.

    Attributes:
        chat: the turns of the template.
        system: a system message in front of each conversation, None for what the template does.
    """

    chat: Chat
    system: str | None = None

    @property
    def template(self) -> str:
        """A hash of the template."""
        return hashlib.sha256(str(self.chat.tokenizer.chat_template).encode()).hexdigest()[:16]

    def text(self, prompt: Prompt, what: str = "the prompt") -> str:
        """A prompt as the model reads it; a text is what the user says.

        Args:
            what: which prompt it is, for messages.

        Raises:
            ValueError: for two system messages, or a conversation that the template refuses.
        """
        messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else [*prompt]
        if self.system is not None:
            if messages[0].role == "system":
                raise ValueError(f"{what} has a system message of its own; leave --system out")
            messages.insert(0, Message(role="system", content=self.system))
        try:
            text: str = self.chat.tokenizer.apply_chat_template(
                [each.model_dump() for each in messages], tokenize=False, add_generation_prompt=True
            )
        except REFUSED as error:
            roles = ", ".join(each.role for each in messages)
            raise ValueError(f"the chat template refuses {what} ({roles}): {error}") from error
        return text

    def ids(self, prompt: Prompt, what: str = "the prompt") -> list[int]:
        """The token ids of `text`: with one begin token where the tokenizer begins texts with it,
        whether the template writes it or not.

        Raises:
            ValueError: see `text`.
        """
        return self._framed(self.text(prompt, what))

    def around(self) -> tuple[list[int], list[int]]:
        """The token ids in front of what the user says in the first turn, and behind it."""
        front, behind = self.text(SAID).split(SAID)
        return self._framed(front), encode(self.chat.tokenizer, behind)

    def _framed(self, text: str) -> list[int]:
        tokenizer = self.chat.tokenizer
        found, begin = encode(tokenizer, text), tokenizer.bos_token_id
        framed = begin is not None and list(tokenizer("")["input_ids"])[:1] == [begin]
        return [begin, *found] if framed and found[:1] != [begin] else found


@dataclass(frozen=True)
class ChatChoice:
    """What was decided for one model.

    Attributes:
        asked: "auto", "on" or "off".
        format: how prompts are put into turns, None where they are plain texts.
        why: the reason, for logs and reports.
    """

    asked: ChatMode
    format: ChatFormat | None
    why: str

    def note(self) -> str:
        """The decision and its reason in a line."""
        what = "plain texts" if self.format is None else "chats"
        return f"prompts are {what}: {self.why}"

    def end_tokens(self, own: Sequence[int]) -> list[int]:
        """The tokens that end an answer: the model's own, and in a chat what closes its turn."""
        end = None if self.format is None else self.format.chat.end
        return [*own] if end is None or end in own else [*own, end]


def choose_chat(
    model: Any,
    tokenizer: Any,
    mode: str = "auto",
    system: str | None = None,
    *,
    conversations: bool = False,
) -> ChatChoice:
    """Whether prompts for this model are chats.

    Args:
        mode: "auto" goes by the rule of this module; "on" and "off" do not.
        system: a system message.
        conversations: whether some prompts are conversations, which only a chat can hold.

    Raises:
        ValueError: for another mode, a chat without a usable template, an empty system message, or
            a system message or conversations where there is no chat.
    """
    if mode not in get_args(ChatMode):
        raise ValueError(f"chat must be {', '.join(get_args(ChatMode))}, got {mode!r}")
    if system is not None and not (isinstance(system, str) and system.strip()):
        raise ValueError(f"a system message needs a text, got {system!r}")
    name, chat = model_name(model), chat_of(tokenizer)
    wanted = "--chat on" if mode == "on" else "a prompt of messages" if conversations else None
    if mode == "off":
        if conversations:
            raise ValueError("prompts of messages are chats; leave --chat off out, or give texts")
        return ChatChoice("off", None, _plain("it was asked for", system))
    if chat is None:
        why = "has no chat template" + ("" if _template(tokenizer) is None else " with clear turns")
        if wanted is not None:
            raise ValueError(
                f"'{name}' {why}, which {wanted} needs; take an instruct model, or plain texts"
            )
        return ChatChoice("auto", None, _plain(f"'{name}' {why}", system))
    if wanted is None and not ends_turns(model, chat):
        why = f"'{name}' does not end where its chat template closes a turn"
        return ChatChoice("auto", None, _plain(why, system))
    why = "it was asked for" if mode == "on" else f"'{name}' is an instruct model"
    why = "there are prompts of messages" if mode == "auto" and conversations else why
    return ChatChoice("on" if mode == "on" else "auto", ChatFormat(chat, system), why)


def ends_turns(model: Any, chat: Chat) -> bool:
    """Whether a model ends where its chat template closes the assistant's turn."""
    return chat.end in token_list(model.generation_config.eos_token_id)


def _template(tokenizer: Any) -> str | None:
    return getattr(tokenizer, "chat_template", None)


def _plain(why: str, system: str | None) -> str:
    """The reason for plain texts, which have no system message."""
    if system is not None:
        raise ValueError(f"--system is a message of a chat, and prompts are plain texts: {why}")
    return why
