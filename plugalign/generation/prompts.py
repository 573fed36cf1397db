"""The prompts of a ``generate`` call: their padding, and their rewording by controllers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller
from plugalign.generation.arguments import check_mask, prompt_ids
from plugalign.generation.chat import chat_of
from plugalign.generation.request import Request


def prompts_of(inputs: Any, options: Mapping[str, Any], request: Request) -> tuple[Tensor, Tensor]:
    """The prompts' token ids and their mask ``(B, T)``, as a call was given them.

    Args:
        inputs: the first argument of the call.
        options: its keyword arguments, of which ``input_ids`` and ``attention_mask`` are read.

    Raises:
        TypeError, ValueError: see `prompt_ids` and `check_mask`.
    """
    ids, mask = prompt_ids(inputs, options), options.get("attention_mask")
    if mask is None:
        mask = inferred_mask(ids, request.pad_token_id, request.end_token_ids)
    check_mask(mask, ids)
    return ids, mask


def inferred_mask(ids: Tensor, pad: int | None, ends: Sequence[int]) -> Tensor:
    """What ``generate`` does without a mask: pad tokens are padding unless they also end."""
    if pad is None or pad in ends:
        return torch.ones_like(ids)
    return (ids != pad).long()


def reworded(
    parts: Sequence[Controller], tokenizer: Any, ids: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Prompts ``(B, T)`` after every controller's ``prompt``, which of a chat is given what the
    user says last; the same tensors if there is none."""
    if not parts:
        return ids, mask
    chat = chat_of(tokenizer)
    chats = [False] * len(ids) if chat is None else chat.found(ids, mask).tolist()
    rows = []
    for row, keep, is_chat in zip(ids, mask.bool(), chats, strict=True):
        if chat is not None and is_chat:
            rows.append(chat.reworded(row[keep].tolist(), partial(_rewritten, parts)))
        else:
            text = tokenizer.decode(row[keep], skip_special_tokens=True)
            rows.append(list(tokenizer(_rewritten(parts, text))["input_ids"]))
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="left")
    return batch["input_ids"].to(ids.device), batch["attention_mask"].to(ids.device)


def _rewritten(parts: Sequence[Controller], text: str) -> str:
    """A text after every controller's ``prompt``."""
    for part in parts:
        text = part.prompt(text)
    return text


def sequences_of(output: Any) -> Tensor:
    """The token ids ``(R, T)`` of what ``generate`` returned."""
    ids: Tensor = output if isinstance(output, Tensor) else output.sequences
    return ids


def with_prompt(output: Any, width: int, ids: Tensor) -> Any:
    """Puts the caller's own prompt ids ``(B, T)`` in front of what followed the reworded ones."""
    sequences = sequences_of(output)
    own = ids.repeat_interleave(len(sequences) // len(ids), 0)
    sequences = torch.cat([own, sequences[:, width:]], dim=1)
    if isinstance(output, Tensor):
        return sequences
    output.sequences = sequences
    return output
