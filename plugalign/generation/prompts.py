"""The prompts of a ``generate`` call: their padding, and their rewording by controllers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plugalign.algebra.controller import Controller


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
