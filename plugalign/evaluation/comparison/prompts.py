"""Prompts: reading them, encoding them, and laying them out in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.identity import model_name
from plugalign.files.rows import read_lines, read_rows
from plugalign.files.shown import printable, shown
from plugalign.files.values import text_of
from plugalign.generation.tokens import token_ids

Row = tuple[int, int]
"""The number of a prompt and the number of a sample."""
FIELDS = ("text", "prompt")  # where a prompt stands in a row


@dataclass(frozen=True)
class Prompts:
    """Texts to continue, and where they came from."""

    texts: tuple[str, ...]
    path: str | None = None
    sha256: str | None = None  # of the file

    def fingerprint(self) -> str:
        """A hash of the texts that are used."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()


def load_prompts(source: str | Path | Sequence[str], limit: int | None = None) -> Prompts:
    """Reads prompts.

    Args:
        source: a ``.jsonl`` or ``.csv`` file with a "text" or "prompt" field, which may be nested
            as in RealToxicityPrompts (`plugalign.files.rows.Row`), a ``.txt`` file with one prompt
            a line, or the texts themselves.
        limit: only so many of the first.

    Raises:
        ValueError: naming the file, the line and the cure.
    """
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be at least 1, got {limit}")
    if not isinstance(source, (str, Path)):
        texts = [text_of(text, f"prompt {i}: the prompt") for i, text in enumerate(source)]
        if not texts:
            raise ValueError("there are no prompts; give at least one text")
        return Prompts(tuple(texts[:limit]))
    path = Path(source)
    texts = list(_read(path))
    if not texts:
        raise ValueError(f"{printable(str(path))} holds no prompts; give it one prompt per line")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Prompts(tuple(texts[:limit]), str(path), digest)


def encode(prompts: Prompts, model: Any, tokenizer: Any, max_new_tokens: int) -> list[list[int]]:
    """Token ids of every prompt, with one begin token where the tokenizer puts one.

    Raises:
        ValueError: for a prompt without tokens, or one that leaves no room for the answer.
    """
    encoded = token_ids(tokenizer, prompts.texts)
    context = getattr(model.config, "max_position_embeddings", None)
    for number, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"prompt {number} ({shown(prompts.texts[number])}) has no tokens")
        if context is not None and len(ids) + max_new_tokens > context:
            raise ValueError(
                f"prompt {number} has {len(ids)} tokens; with {max_new_tokens} new ones it is "
                f"longer than the context of '{model_name(model)}' ({context}): shorten it or "
                f"take fewer new tokens"
            )
    return encoded


def chunks(encoded: Sequence[Sequence[int]], samples: int, batch_size: int) -> list[list[Row]]:
    """All (prompt, sample) rows in batches, prompts of like length together to save padding."""
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    rows = [(prompt, sample) for prompt in order for sample in range(samples)]
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask ``(B, T)``, padded in front."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _read(path: Path) -> Iterator[str]:
    """Every prompt of a file."""
    if path.suffix.lower() == ".txt":
        yield from (text_of(line, f"{place}: the prompt") for place, line in read_lines(path))
    else:
        yield from (row.text(row.first(*FIELDS)) for row in read_rows(path))
