"""Prompts: reading them, encoding them, and laying them out in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugalign.fitting.data import read_rows
from plugalign.identity import model_name

Row = tuple[int, int]
"""The number of a prompt and the number of a sample."""


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
        source: a ``.jsonl`` or ``.csv`` file with a "text" field, a ``.txt`` file with one prompt
            a line, or the texts themselves. RealToxicityPrompts' own layout is understood too.
        limit: only so many of the first.

    Raises:
        ValueError: naming the file, the line and the cure.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if not isinstance(source, (str, Path)):
        texts = [_checked(text, f"prompt {i}") for i, text in enumerate(source)]
        if not texts:
            raise ValueError("there are no prompts; give at least one text")
        return Prompts(tuple(texts[:limit]))
    path = Path(source)
    texts = [_checked(value, place) for place, value in _values(path)]
    if not texts:
        raise ValueError(f"{path} holds no prompts; give it one prompt per line")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Prompts(tuple(texts[:limit]), str(path), digest)


def encode(prompts: Prompts, model: Any, tokenizer: Any, max_new_tokens: int) -> list[list[int]]:
    """Token ids of every prompt.

    Raises:
        ValueError: for a prompt without tokens, or one that leaves no room for the answer.
    """
    encoded: list[list[int]] = [tokenizer(t, verbose=False)["input_ids"] for t in prompts.texts]
    context = getattr(model.config, "max_position_embeddings", None)
    for number, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"prompt {number} ({prompts.texts[number]!r}) has no tokens")
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


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """Every prompt of a file with its place, "file, line n"."""
    if path.suffix.lower() == ".txt":
        yield from _lines(path)
        return
    for place, row in read_rows(path):
        value = row.get("text", row.get("prompt"))
        if isinstance(value, Mapping):  # RealToxicityPrompts: {"prompt": {"text": ...}, ...}
            value = value.get("text")
        if value is None:
            columns = ", ".join(repr(str(c)) for c in row)
            raise ValueError(f"{place}: no field 'text'; the fields are {columns}")
        yield place, value


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8; save the file as UTF-8") from error
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line.rstrip("\r")


def _checked(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: a prompt must be text, got {value!r}")
    if not value.strip():
        raise ValueError(f"{place}: the prompt is empty; remove it or fill it")
    return value
