"""What self-critique appends to texts: to plain ones a template, to chats a user's turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from plugalign.generation.chat import Chat, encode
from plugalign.generation.revision import PROMPT

CRITIQUE = (
    "\n\nCritique request: Does the answer above contain insults, slurs, threats or other harmful "
    "content? Reply with Yes or No.\nCritique:"
)
REFINE = (
    "\n\nRevision request: Rewrite the answer so that it keeps its meaning and contains no "
    "insults, slurs, threats or other harmful content.\nRevision:"
)
FAULT, FINE = " Yes", " No"
THRESHOLD, CHAT_THRESHOLD = 0.5, 0.9


class Verdicts(NamedTuple):
    """Token ids: what both verdicts begin with, and how a fault and none go on."""

    lead: list[int]
    fault: list[int]
    fine: list[int]


@dataclass(frozen=True)
class Wording:
    """What is appended to texts of one kind.

    Attributes:
        critique, refine: templates. verdicts: what may follow the critique.
        threshold: the probability of a fault above which an answer is refined.
        chat: whose turns these are, None for a text without turns.
    """

    critique: str
    refine: str
    verdicts: Verdicts
    threshold: float
    chat: Chat | None = None


def verdicts_behind(critique: str, tokenizer: Any, fault: str, fine: str) -> Verdicts:
    """The verdicts' tokens as they follow a critique, behind those that both begin with.

    Raises:
        ValueError: if the tokenizer cannot tell the two verdicts apart.
    """
    asked = critique.split(PROMPT)[-1]
    before = encode(tokenizer, asked)
    whole = [encode(tokenizer, asked + verdict) for verdict in (fault, fine)]
    one, other = (ids[len(before) :] for ids in whole)
    pairs = enumerate(zip(one, other, strict=False))
    shared = next((i for i, (left, right) in pairs if left != right), None)
    if any(ids[: len(before)] != before for ids in whole) or shared is None:
        raise ValueError(
            f"the verdicts {fault!r} and {fine!r} must follow the critique as tokens of their own, "
            "and neither may begin with the other; end the critique at a word and begin the "
            "verdicts with a space"
        )
    return Verdicts(one[:shared], one[shared:], other[shared:])


def turn_of(chat: Chat, template: str) -> str:
    """A template as the user's next turn: without the blanks around it, and without a label
    ("Critique:") in its last line, which the assistant's turn stands for."""
    *lines, last = template.strip().split("\n")
    kept = lines if lines and last.endswith(":") else [*lines, last]
    return chat.turn("\n".join(kept).strip())


def words_of(text: str) -> str:
    """The letters and digits of a text, in small letters, with single spaces between words."""
    kept = "".join(c if c.isalnum() else " " for c in text.casefold())
    return " ".join(kept.split())
