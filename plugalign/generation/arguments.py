"""The arguments of a ``generate`` call, checked before any work is done.

transformers checks its own settings (`GenerationConfig.validate`). What stands here is what it
would accept and then read wrongly, or refuse from deep inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

SHAPE = "prompt token ids of shape (B, T) with at least one row and one token"


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


def prompt_ids(inputs: Any, options: Mapping[str, Any]) -> Tensor:
    """The prompts' token ids ``(B, T)``, which may come by position or as ``input_ids=``.

    Raises:
        TypeError: for anything but a tensor of integers.
        ValueError: without prompts, with both, or for another shape.
    """
    named = options.get("input_ids")
    if inputs is not None and named is not None:
        raise ValueError("generate got prompts as its first argument and as input_ids=; give one")
    ids = inputs if inputs is not None else named
    if ids is None:
        embedded = options.get("inputs_embeds") is not None
        alone = "; inputs_embeds alone are not enough, since controllers read token ids"
        raise ValueError(f"generate needs {SHAPE}, got None{alone if embedded else ''}")
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
    return ids


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
