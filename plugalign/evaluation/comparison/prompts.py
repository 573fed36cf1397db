"""Prompts, texts or conversations: reading, encoding, and laying them out in batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.identity import model_name
from plugalign.evaluation.run_folder.folder import PROMPTS
from plugalign.files.messages import Prompt, prompt_of, said_last
from plugalign.files.rows import Row as FileRow
from plugalign.files.rows import read_lines, read_rows
from plugalign.files.shown import printable, shown
from plugalign.files.values import text_of
from plugalign.generation.chat_format import ChatFormat
from plugalign.generation.tokens import token_ids

Row = tuple[int, int]
"""The number of a prompt and the number of a sample."""
FIELDS = ("text", "prompt")  # where a prompt stands in a row
MESSAGES = "messages"  # where a conversation does


@dataclass(frozen=True)
class Prompts:
    """What is to be continued or answered, and where it came from.

    Attributes:
        every: texts and conversations.
        path: of their file. sha256: of that file.
    """

    every: tuple[Prompt, ...]
    path: str | None = None
    sha256: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts, and of conversations what the user says last."""
        return tuple(map(said_last, self.every))

    @property
    def have_conversations(self) -> bool:
        """Whether some prompts are conversations."""
        return not all(isinstance(each, str) for each in self.every)

    def rows(self) -> list[dict[str, Any]]:
        """The prompts as JSON values."""
        return [{"text": said_last(each), **_messages(each)} for each in self.every]

    def fingerprint(self) -> str:
        """A hash of the prompts that are used."""
        return hashlib.sha256("\0".join(map(_as_text, self.every)).encode()).hexdigest()

    def hashes(self) -> tuple[str, ...]:
        """The SHA-256 of each prompt: of its text, or of its conversation as JSON. A text that can
        be guessed can be found by its hash."""
        return tuple(hashlib.sha256(_as_text(each).encode()).hexdigest() for each in self.every)


def load_prompts(source: str | Path | Sequence[Any], limit: int | None = None) -> Prompts:
    """Reads prompts.

    Args:
        source: a ``.jsonl`` or ``.csv`` file with a "text" or "prompt" field, which may be nested
            as in RealToxicityPrompts (`plugalign.files.rows.Row`), or with a conversation as
            "messages" (a text beside it must be its last message); a ``.txt`` file with one prompt
            a line; or texts and conversations, lists of messages, themselves.
        limit: only so many of the first.

    Raises:
        ValueError: naming the file, the line and the cure.
    """
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be at least 1, got {limit}")
    if not isinstance(source, (str, Path)):
        given = [prompt_of(each, f"prompt {i}: the prompt") for i, each in enumerate(source)]
        if not given:
            raise ValueError("there are no prompts; give at least one text")
        return Prompts(tuple(given[:limit]))
    path = Path(source)
    found = list(_read(path))
    if not found:
        raise ValueError(f"{printable(str(path))} holds no prompts; give it one prompt per line")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Prompts(tuple(found[:limit]), str(path), digest)


def prompts_of_run(out: Path) -> Prompts:
    """The prompts in a comparison's folder.

    Raises:
        ValueError: if the file is missing or damaged; names it and the line.
    """
    path = out / PROMPTS
    found = [
        prompt_of(row.fields.get(MESSAGES, row.fields.get("text")), f"{row.place}: the prompt")
        for row in read_rows(path)
    ]
    if not found:
        raise ValueError(f"{printable(str(path))} holds no prompts, so the run is damaged")
    return Prompts(tuple(found))


def encode(
    prompts: Prompts,
    model: Any,
    tokenizer: Any,
    max_new_tokens: int,
    chat: ChatFormat | None = None,
) -> list[list[int]]:
    """Token ids of every prompt, with one begin token where the tokenizer puts one.

    Args:
        chat: puts prompts into the tokenizer's chat template, up to the assistant's answer; None
            leaves them as they are, and then they must be texts.

    Raises:
        ValueError: for a prompt without tokens, one that leaves no room for the answer, or one
            that the template refuses.
    """
    if chat is None:
        if prompts.have_conversations:
            raise ValueError("prompts of messages are read in a chat alone; give plain texts here")
        encoded = token_ids(tokenizer, prompts.texts)
    else:
        encoded = [chat.ids(each, f"prompt {i}") for i, each in enumerate(prompts.every)]
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


def paragraphs(prompt: Prompt, system: str | None = None) -> str:
    """A prompt without turns: its messages one below the other, and room for the answer.

    Args:
        system: a message in front.
    """
    messages = [prompt] if isinstance(prompt, str) else [each.content for each in prompt]
    return "".join(f"{text}\n\n" for text in (*([system] if system else []), *messages))


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


def _read(path: Path) -> Iterator[Prompt]:
    """Every prompt of a file."""
    if path.suffix.lower() == ".txt":
        yield from (text_of(line, f"{place}: the prompt") for place, line in read_lines(path))
    else:
        yield from map(_prompt, read_rows(path))


def _prompt(row: FileRow) -> Prompt:
    if not row.has(MESSAGES):
        return row.text(row.first(*FIELDS))
    found = row.conversation(MESSAGES)
    for field in filter(row.has, FIELDS):
        if row.text(field) != said_last(found):  # which a run's own rows repeat
            raise ValueError(
                f"{row.place}: both {MESSAGES!r} and {field!r} hold a prompt; keep one"
            )
    return found


def _as_text(prompt: Prompt) -> str:
    """What is hashed of a prompt."""
    return prompt if isinstance(prompt, str) else json.dumps(_messages(prompt))


def _messages(prompt: Prompt) -> dict[str, Any]:
    """A conversation as JSON values; nothing of a text."""
    if isinstance(prompt, str):
        return {}
    return {MESSAGES: [each.model_dump() for each in prompt]}
