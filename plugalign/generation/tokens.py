"""Token ids of texts, with one begin token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as the tokenizer frames it.

    A text that carries its begin token already, as a chat template writes it
    (``<bos><start_of_turn>user …``), gets no second one.
    """
    rows: list[list[int]] = list(tokenizer(list(texts), verbose=False)["input_ids"])
    begin = getattr(tokenizer, "bos_token_id", None)
    if begin is None or not _begins_with(tokenizer, begin):
        return rows
    mark = str(tokenizer.bos_token)
    return [
        row[1:] if text.startswith(mark) and list(row[:2]) == [begin, begin] else row
        for text, row in zip(texts, rows, strict=True)
    ]


def _begins_with(tokenizer: Any, begin: int) -> bool:
    """Whether the tokenizer itself puts the begin token in front."""
    framed: list[int] = tokenizer("")["input_ids"]
    return framed[:1] == [begin]
