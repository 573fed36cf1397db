"""Chats: what a tokenizer's chat template puts around messages, and where that is in a prompt.

A prompt is token ids, so whether it is a chat shows only in them: it is one where the template's
end of a user's turn with the beginning of the assistant's answer is found. Nothing of this is
known by name: the template itself is asked, around contents that are easy to find again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from plugalign.engine.batching.contexts import occurrences

# What a template that refuses messages raises: jinja's errors, and Python's from inside of it.
REFUSED = (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
ROLES = ("user", "assistant", "user")
CONTENTS = ("content-one", "content-two", "content-three")


@dataclass(frozen=True)
class Chat:
    """The turns of one tokenizer's chat template.

    Attributes:
        tokenizer: whose template it is.
        user: the token ids that open a user's turn, those of ``"<|im_start|>user\\n"``.
        reply: the token ids that close a user's turn and open the assistant's, as prompts end.
        after_answer: the text that closes an assistant's turn and opens a user's.
        before_reply: the text of ``reply``.
        end: the special token that closes an assistant's turn, None where no such token does.
    """

    tokenizer: Any
    user: tuple[int, ...]
    reply: tuple[int, ...]
    after_answer: str
    before_reply: str
    end: int | None = None

    def turn(self, content: str) -> str:
        """What follows an answer that has not been closed, for the user to say ``content``."""
        return f"{self.after_answer}{content}{self.before_reply}"

    def found(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Which texts ``(R, T)`` with their mask are chats, bool ``(R,)``."""
        return occurrences(self.reply, ids, mask).any(1)

    def last_message(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The mask ``(R, T)`` of what the user says last before the assistant's turn; where no
        user's turn is opened, of all that stands before it."""
        column = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        stop = (occurrences(self.reply, ids, mask) * column).amax(1, keepdim=True)
        stop = stop - len(self.reply)
        opened = occurrences(self.user, ids, mask) & (column <= stop)
        start = (opened * column).amax(1, keepdim=True)
        return mask * ((column > start) & (column <= stop))

    def reworded(self, ids: list[int], rewrite: Callable[[str], str]) -> list[int]:
        """The token ids of a chat, with what the user says last rewritten."""
        row = torch.tensor([ids])
        message = self.last_message(row, torch.ones_like(row))[0].nonzero().squeeze(1).tolist()
        if not message:
            return ids
        start, stop = message[0], message[-1] + 1
        said = rewrite(self.tokenizer.decode(ids[start:stop], skip_special_tokens=True))
        return [*ids[:start], *encode(self.tokenizer, said), *ids[stop:]]


def chat_of(tokenizer: Any) -> Chat | None:
    """The turns of a tokenizer's chat template. None where they are unknown: without a
    template, with one that refuses a plain conversation or puts nothing around messages, and for
    a tokenizer that does not know which characters its tokens stand for."""
    if getattr(tokenizer, "chat_template", None) is None or not tokenizer.is_fast:
        return None
    messages = [{"role": r, "content": c} for r, c in zip(ROLES, CONTENTS, strict=True)]
    try:
        text = _rendered(tokenizer, messages, add_generation_prompt=True)
        closed = _rendered(tokenizer, messages[:2], add_generation_prompt=False)
    except REFUSED:
        return None
    if any(text.count(content) != 1 for content in CONTENTS) or CONTENTS[1] not in closed:
        return None
    after_answer = text[text.index(CONTENTS[1]) + len(CONTENTS[1]) : text.index(CONTENTS[2])]
    closing = closed.split(CONTENTS[1])[1]
    opening = after_answer.removeprefix(closing)
    stop = text.index(CONTENTS[2])
    user = _tokens_between(tokenizer, text, stop - len(opening), stop)
    stop += len(CONTENTS[2])
    reply = _tokens_between(tokenizer, text, stop, len(text))
    blank = not text[stop:].strip() or not opening.strip()
    if blank or not user or not reply:
        return None
    end = next((i for i in encode(tokenizer, closing) if _is_special(tokenizer, i)), None)
    return Chat(tokenizer, user, reply, after_answer, text[stop:], end)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a piece of text, without special tokens around it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _is_special(tokenizer: Any, token: int) -> bool:
    added = tokenizer.added_tokens_decoder.get(token)
    return token in tokenizer.all_special_ids or (added is not None and bool(added.special))


def _rendered(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


def _tokens_between(tokenizer: Any, text: str, start: int, stop: int) -> tuple[int, ...]:
    """The tokens of a text that stand for characters from ``start`` to ``stop`` alone."""
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(coded["input_ids"], coded["offset_mapping"], strict=True)
    return tuple(i for i, (first, last) in pairs if start <= first < last <= stop)
