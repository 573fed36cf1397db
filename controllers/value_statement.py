"""A value statement in the prompt: alignment by in-context learning alone.

What is wanted is said in words in front of the text::

    p'(t | x) = p(t | statement + x)

A model that follows instructions heeds it (Ganguli et al. 2023, "The capacity for moral
self-correction in large language models", section 3: large ones do, small ones hardly). It is the
measure of every method that steers: no weights, no second model, and a few more tokens to read.
In a chat the statement is the beginning of what the user says last.
"""

from __future__ import annotations

from typing import Any

from plugalign.algebra.controller import Controller
from plugalign.algebra.saving import Settings

STATEMENT = "Be respectful: no insults, slurs, threats or other harmful content."


class ValueStatementSettings(Settings):
    """The statement."""

    statement: str


class ValueStatement(Controller):
    """Puts a value statement in front of the prompt, as a paragraph of its own.

    Args:
        statement: what is wanted, in words.

    Raises:
        TypeError: if it is no text.
        ValueError: if it is empty.
    """

    name = "value_statement"
    settings = ValueStatementSettings

    def __init__(self, statement: str = STATEMENT):
        if not isinstance(statement, str):
            raise TypeError(f"a value statement must be a text, got {statement!r:.60}")
        if not statement.strip():
            raise ValueError(f"a value statement needs words, got {statement!r}")
        self.statement = statement

    def prompt(self, text: str) -> str:
        return f"{self.statement}\n\n{text}"

    def config(self) -> dict[str, Any]:
        return {"statement": self.statement}
