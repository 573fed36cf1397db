"""The prompts of a ``generate`` call: their padding, and their rewording by controllers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from plugalign.algebra.controller import Controller
from plugalign.generation.arguments import check_cache, checked_mask, prompt_ids, vocabulary_of
from plugalign.generation.chat import chat_of
from plugalign.generation.request import Request, token_list


def prompts_of(
    model: Any, inputs: Any, options: Mapping[str, Any], request: Request
) -> tuple[Tensor, Tensor]:
    """The prompts' token ids and their mask ``(B, T)``, as a call was given them. Without prompts
    a text begins with the begin token, where there is one.

    Args:
        inputs: the first argument of the call.
        options: its keyword arguments.

    Raises:
        TypeError, ValueError: see `prompt_ids`, `check_cache` and `checked_mask`.
    """
    start = token_list(request.config.bos_token_id)
    begin = torch.tensor([start[:1]], device=model.device) if start else None
    ids, mask = prompt_ids(inputs, options, begin), options.get("attention_mask")
    check_cache(ids, options)
    mask = inferred_mask(model, ids, request) if mask is None else mask
    return ids, checked_mask(mask, ids, vocabulary_of(model))


def inferred_mask(model: Any, ids: Tensor, request: Request) -> Tensor:
    """The mask that transformers goes by where none is given: pad tokens are padding unless they
    also end a text."""
    config = copy.copy(request.config)
    model._prepare_special_tokens(config, None, device=ids.device)
    mask: Tensor = model._prepare_attention_mask_for_generation(ids, config, {})
    return mask


def check_rewordable(parts: Sequence[Controller], options: Mapping[str, Any]) -> None:
    """Refuses what the model would read in the place of prompts that controllers reword.

    Raises:
        ValueError: naming the controller and the argument.
    """
    cache, embedded = options.get("past_key_values"), options.get("inputs_embeds")
    held = 0 if cache is None else int(cache.get_seq_length())
    if parts and (held or embedded is not None):
        given = "past_key_values hold" if held else "inputs_embeds are"
        raise ValueError(
            f"{type(parts[0]).__name__} rewords prompts, and {given} the prompt as it was; leave "
            "them out"
        )


def reworded(
    parts: Sequence[Controller], tokenizer: Any, ids: Tensor, mask: Tensor, pad_token_id: int = 0
) -> tuple[Tensor, Tensor]:
    """Prompts ``(B, T)`` after every controller's ``prompt``, which of a chat is given what the
    user says last; the same tensors if there is none.

    Args:
        pad_token_id: of the call; the tokenizer need not have a pad token.
    """
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
    texts = [torch.tensor(row, dtype=torch.long, device=ids.device) for row in rows]
    masks = [torch.ones_like(text) for text in texts]
    options: dict[str, Any] = {"batch_first": True, "padding_side": "left"}
    padded = pad_sequence(texts, padding_value=pad_token_id, **options)
    return padded, pad_sequence(masks, **options)


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
