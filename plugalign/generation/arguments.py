"""The arguments of a ``generate`` call, checked before any work is done.

transformers checks its own settings (`GenerationConfig.validate`). What stands here is what it
would accept and then read wrongly, or refuse from deep inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, GenerationConfig

# Ways of the model to make texts that take no logits processors.
CONTINUOUS_BATCHING = (
    "generate_batch",
    "init_continuous_batching",
    "continuous_batching_context_manager",
)
COUNTS = {  # settings that are whole numbers, and the least that each may be
    "max_new_tokens": 1,
    "min_new_tokens": 0,
    "max_length": 0,
    "min_length": 0,
    "top_k": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "prompt_lookup_num_tokens": 1,
}
NUMBERS = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty")
TOKENS = ("pad_token_id", "eos_token_id", "bos_token_id")
FLAGS = (
    "do_sample",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
)


def check_type(name: str, value: Any, kind: type) -> None:
    """Refuses an argument that is neither None nor of its type.

    Raises:
        TypeError: naming the argument and what it got.
    """
    if value is not None and not isinstance(value, kind):
        public = kind.__module__.startswith("plugalign")
        wanted = f"{'plugalign.' if public else ''}{kind.__name__}"
        raise TypeError(f"{name} must be a {wanted} or None, got {value!r:.60}")


def check_streamer(streamer: Any) -> None:
    """Refuses what tokens cannot be streamed to.

    Raises:
        TypeError: where a method is missing.
    """
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise TypeError(f"a streamer needs put() and end(), got {type(streamer).__name__}")


def check_attribute(name: str) -> None:
    """Refuses what a model has beside ``generate`` to make texts, where no controller acts.

    Raises:
        AttributeError: naming it.
    """
    if name in CONTINUOUS_BATCHING:
        raise AttributeError(
            f"{name} is continuous batching, which takes no logits processors, so controllers "
            "would be left out; call generate"
        )


def check_config(config: GenerationConfig) -> None:
    """Refuses merged settings with which controllers would be left out, or of another kind.

    Raises:
        TypeError: for token ids that are none.
        ValueError: naming the setting.
    """
    if config.cache_implementation == "paged":
        raise ValueError(
            "cache_implementation='paged' is continuous batching, which takes no logits "
            "processors, so controllers would be left out; take another cache_implementation"
        )
    check_numbers(vars(config))


def check_numbers(settings: Mapping[str, Any]) -> None:
    """Refuses settings that are no numbers, flags or texts of their kind. None leaves one open.

    Raises:
        TypeError: for token ids that are none.
        ValueError: naming the setting.
    """
    for name, least in COUNTS.items():
        value = settings.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    for name in NUMBERS:
        value = settings.get(name)
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            raise ValueError(f"{name} must be a finite number, got {value!r:.60}")
    for name in FLAGS:
        value = settings.get(name)
        if value is not None and not (isinstance(value, (Integral, np.bool_)) and value in (0, 1)):
            raise ValueError(f"{name} must be True or False, got {value!r:.60}")
    _check_stops(settings.get("stop_strings"))
    for name in TOKENS:
        _check_tokens(name, settings.get(name))


def _check_stops(value: Any) -> None:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) and t for t in texts):
        raise ValueError(f"stop_strings must be a text or a list of texts, got {value!r:.60}")


def _check_tokens(name: str, value: Any) -> None:
    ids = value if isinstance(value, Tensor) else [] if value is None else value
    try:
        ids = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError):
        ids = torch.tensor([0.5])
    if ids.numel() and ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be one token id or several, got {value!r:.60}")


def check_objects(options: Mapping[str, Any]) -> None:
    """Refuses arguments that are no settings and of another type.

    Raises:
        TypeError: naming the argument and what it got.
    """
    for name in ("logits_processor", "stopping_criteria"):
        if (given := options.get(name)) is None:
            continue
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise TypeError(f"{name} must be a list, got {given!r:.60}")
        parts = given if isinstance(given, (list, tuple)) else ()
        if other := [part for part in parts if not callable(part)]:
            raise TypeError(f"{name} must be a list of functions, got {other[0]!r:.60} in it")
    assistant = options.get("assistant_model")
    if assistant is not None and not hasattr(assistant, "generate"):
        raise TypeError(f"assistant_model must be a model that generates, got {assistant!r:.60}")
    check_type("past_key_values", options.get("past_key_values"), Cache)
    check_type("inputs_embeds", options.get("inputs_embeds"), Tensor)


def prompt_ids(inputs: Any, options: Mapping[str, Any], begin: Tensor | None = None) -> Tensor:
    """The prompts' token ids ``(B, T)``, which may come by position or as ``input_ids=``.

    Args:
        begin: ``(1, 1)``, the prompt of a call that is given none.

    Raises:
        TypeError: for anything but a tensor of integers.
        ValueError: without prompts, with both, for another shape, or for embeddings of others.
    """
    named, embedded = options.get("input_ids"), options.get("inputs_embeds")
    if inputs is not None and named is not None:
        raise ValueError("generate takes prompts as inputs or as input_ids=, not as both")
    ids = named if inputs is None else inputs
    if ids is None and embedded is not None:
        raise ValueError(
            "generate got inputs_embeds and no token ids, and controllers read tokens; pass the "
            "prompts' input_ids= too"
        )
    ids = _token_ids(begin if ids is None else ids)
    if embedded is not None and embedded.shape[:2] != ids.shape:
        raise ValueError(
            f"inputs_embeds of shape {tuple(embedded.shape)} must stand for input_ids of shape "
            f"{tuple(ids.shape)}, token by token: controllers read those"
        )
    return ids


def _token_ids(ids: Any) -> Tensor:
    if isinstance(ids, Mapping):
        raise TypeError(
            f"generate takes the tensors of an encoding by name, generate(**encoding), got a "
            f"{type(ids).__name__}"
        )
    if ids is not None and not isinstance(ids, Tensor):
        raise TypeError(
            f"generate takes prompts as a tensor of token ids (B, T), got a {type(ids).__name__}; "
            "torch.tensor(...) makes one of lists of one length"
        )
    if ids is None or ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(
            "generate needs prompt token ids of shape (B, T) with at least one row and one "
            f"token, got {None if ids is None else tuple(ids.shape)}"
        )
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"prompt token ids are whole numbers (torch.int64), got {ids.dtype}")
    return ids


def vocabulary_of(model: Any) -> int | None:
    """How many tokens the model knows, None where that is not known."""
    embeddings = getattr(model.get_input_embeddings(), "weight", None)
    return None if embeddings is None else len(embeddings)


def checked_mask(
    mask: Any, ids: Tensor, vocabulary: int | None = None, what: str = "prompt"
) -> Tensor:
    """An attention mask that says of every token id ``(B, T)`` whether it is one of the prompt, as
    int64.

    Args:
        vocabulary: see `vocabulary_of`.
        what: the ids are of, for messages.

    Raises:
        TypeError: for anything but a tensor.
        ValueError: for another shape, values other than 0 and 1, a row of zeros, or a token id
            that the model does not know.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor, got a {type(mask).__name__}")
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, but the {what}s have {tuple(ids.shape)}"
        )
    known = (mask == 0) | (mask == 1)  # NaN is neither
    strange = (ids < 0) if vocabulary is None else (ids < 0) | (ids >= vocabulary)
    if bool(known.all() & (mask != 0).any(1).all() & ~strange.any()):  # asks the device once
        return mask.long()
    if bool(strange.any()):
        row, column = strange.nonzero()[0].tolist()
        raise ValueError(
            f"the {what} in row {row} holds the token id {int(ids[row, column])}, and the model "
            f"knows {vocabulary or 'none below 0'}; it was encoded by another tokenizer"
        )
    if not bool(known.all()):
        value = mask[~known][0].item()
        raise ValueError(f"attention_mask holds {value}; it is 1 for tokens and 0 for padding")
    row = int((mask == 0).all(1).nonzero()[0, 0])
    raise ValueError(
        f"the {what} in row {row} has no tokens: its attention mask is all zeros",
    )


def check_cache(ids: Tensor, options: Mapping[str, Any]) -> None:
    """Refuses prompts ``(B, T)`` that are not the whole text, where a cache holds its beginning.

    Raises:
        ValueError: saying how much is held and how much is given.
    """
    cache, mask = options.get("past_key_values"), options.get("attention_mask")
    if cache is None:
        return
    held = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
    width = mask.shape[-1] if isinstance(mask, Tensor) else 0
    if held >= ids.shape[1] or width > ids.shape[1]:
        raise ValueError(
            f"past_key_values hold {held} tokens and input_ids have {ids.shape[1]}: controllers "
            "read the whole text, so pass all of its ids, those that are cached too (they are not "
            "read again)"
        )
