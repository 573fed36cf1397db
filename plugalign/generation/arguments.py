"""The arguments of a ``generate`` call, checked before any work is done.

transformers checks its own settings (`GenerationConfig.validate`). What stands here is what it
would accept and then read wrongly, or refuse from deep inside.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

# What generate takes by position behind prompts and settings.
BY_POSITION = tuple(inspect.signature(GenerationMixin.generate).parameters)[3:-1]
SHAPE = "prompt token ids of shape (B, T) with at least one row and one token"


def by_name(arguments: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments as keywords, those that were given by position too.

    Raises:
        TypeError: as Python does, for too many, and for one that is given twice.
    """
    if len(arguments) > len(BY_POSITION):
        most, got = (2 + len(each) for each in (BY_POSITION, arguments))
        raise TypeError(f"generate takes at most {most} arguments by position, got {got}")
    named = dict(zip(BY_POSITION, arguments, strict=False))
    if twice := sorted(named.keys() & options.keys()):
        raise TypeError(f"generate got multiple values for argument '{twice[0]}'")
    return {**named, **options}


def check_type(name: str, value: Any, kind: type) -> None:
    """Refuses an argument that is neither None nor of its type.

    Raises:
        TypeError: naming the argument and what it got.
    """
    if value is not None and not isinstance(value, kind):
        wanted = f"{name} must be a {kind.__name__} or None"
        raise TypeError(f"{wanted}, got {value!r} ({type(value).__name__})")


def check_streamer(streamer: Any) -> None:
    """Refuses what tokens cannot be streamed to.

    Raises:
        TypeError: where a method is missing.
    """
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise TypeError(f"a streamer needs put() and end(), got {type(streamer).__name__}")


def prompt_ids(inputs: Any, options: Mapping[str, Any], start: Tensor | None = None) -> Tensor:
    """The prompts' token ids ``(B, T)``, which may come by position or as ``input_ids=``.

    Args:
        start: the token that begins a text ``(1, 1)``, the prompt where none is given.

    Raises:
        TypeError: for anything but a tensor of integers.
        ValueError: without prompts, with both, or for another shape, and for embeddings of other
            columns.
    """
    named = options.get("input_ids")
    if inputs is not None and named is not None:
        raise ValueError("generate got prompts as its first argument and as input_ids=; give one")
    ids, embedded = inputs if inputs is not None else named, options.get("inputs_embeds")
    if ids is None and embedded is None and start is not None:
        ids = start
    if ids is None:
        alone = "; inputs_embeds alone are not enough, since controllers read token ids"
        raise ValueError(f"generate needs {SHAPE}, got None{'' if embedded is None else alone}")
    if isinstance(ids, Mapping):
        raise TypeError(
            f"generate needs {SHAPE}, got a {type(ids).__name__}; unpack it: generate(**inputs)"
        )
    if not isinstance(ids, Tensor):
        raise TypeError(f"generate needs {SHAPE}, got a {type(ids).__name__}; make it a tensor")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"token ids are integers, got a tensor of {ids.dtype}")
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"generate needs {SHAPE}, got {tuple(ids.shape)}")
    if embedded is not None and embedded.shape[:2] != ids.shape:
        raise ValueError(
            f"inputs_embeds of shape {tuple(embedded.shape)} must stand for input_ids of shape "
            f"{tuple(ids.shape)}, token by token: controllers read those"
        )
    return ids


def check_cache(cache: Any, ids: Tensor) -> None:
    """Refuses a cache that holds as many tokens as the prompts ``(B, T)`` have, or more: then they
    are not the whole text, which controllers read.

    Raises:
        ValueError: naming both numbers.
    """
    held = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
    if held >= ids.shape[1]:
        raise ValueError(
            f"past_key_values hold {held} tokens and input_ids have {ids.shape[1]}: controllers "
            "read the whole text, so give all of its ids (those that are cached are not read again)"
        )


def check_mask(mask: Any, ids: Tensor) -> None:
    """Refuses an attention mask that does not say of every token id ``(B, T)`` whether it is one
    of the prompt.

    Raises:
        TypeError: for anything but a tensor.
        ValueError: for another shape, values other than 0 and 1, or a row of zeros.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor, got a {type(mask).__name__}")
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(mask.shape)} and the prompts have "
            f"{tuple(ids.shape)}; it needs a column for each token id (with past_key_values, give "
            "the ids of the whole text)"
        )
    wrong = (mask != 0) & (mask != 1)  # NaN too
    if bool(wrong.any()):
        raise ValueError(f"attention_mask holds 0 and 1 only, got {mask[wrong][0].item()}")
    empty = (mask == 0).all(1)
    if bool(empty.any()):
        row = int(empty.nonzero()[0, 0])
        raise ValueError(f"the prompt of row {row} has no tokens: its attention mask is all zeros")


def check_counts(config: GenerationConfig) -> None:
    """Refuses numbers of answers that are no counts, in the call's merged settings.

    Raises:
        ValueError: naming the setting.
    """
    for name in ("num_return_sequences", "num_beams"):
        value = getattr(config, name, None)
        counts = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value is not None and not counts:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def check_batching(config: GenerationConfig) -> None:
    """Refuses continuous batching, in the call's merged settings.

    Raises:
        ValueError: naming the setting.
    """
    if config.cache_implementation == "paged":
        raise ValueError(
            "cache_implementation='paged' is continuous batching, which takes no logits "
            "processors, so controllers would be left out; take another cache_implementation"
        )
