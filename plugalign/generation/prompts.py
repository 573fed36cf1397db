"""The prompts of a ``generate`` call: their padding, and their rewording by controllers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller


def special_tokens(
    model: Any, tokenizer: Any, options: dict[str, Any]
) -> tuple[int | None, list[int]]:
    """The pad token and the end tokens that a ``generate`` call with these options goes by."""
    config = options.get("generation_config") or model.generation_config
    pad = options.get("pad_token_id", config.pad_token_id)
    pad = tokenizer.pad_token_id if pad is None else pad
    end = options.get("eos_token_id", config.eos_token_id)
    ends = end if isinstance(end, list) else [end]
    return pad, [token for token in ends if token is not None]


def inferred_mask(ids: Tensor, pad: int | None, ends: Sequence[int]) -> Tensor:
    """What ``generate`` does without a mask: pad tokens are padding unless they also end."""
    if pad is None or pad in ends:
        return torch.ones_like(ids)
    return (ids != pad).long()


def reworded(
    parts: Sequence[Controller], tokenizer: Any, ids: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Prompts ``(B, T)`` after every controller's ``prompt``; the same tensors if there is none."""
    if not parts:
        return ids, mask
    rows = zip(ids, mask.bool(), strict=True)
    texts = [tokenizer.decode(row[keep], skip_special_tokens=True) for row, keep in rows]
    for part in parts:
        texts = [part.prompt(text) for text in texts]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    return batch["input_ids"].to(ids.device), batch["attention_mask"].to(ids.device)


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
