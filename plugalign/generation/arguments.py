"""What a call of ``generate`` is given: checked before any work, and merged as transformers does.

Every part of a call goes by one configuration: the call's own, filled up from the model's where a
field is None, under the keywords.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation import GenerationMode

from plugalign.engine.speculative.drafts import Speculation
from plugalign.trace import Trace

BY_POSITION = tuple(inspect.signature(GenerationMixin.generate).parameters)[2:-1]
BESIDE = {  # of generate, beside those of its GenerationConfig
    *BY_POSITION,
    "tokenizer",
    "assistant_tokenizer",
    "trust_remote_code",
    "input_ids",
    "attention_mask",
}
ONE_TOKEN = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


def by_name(arguments: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
    """All arguments of ``generate`` behind the prompts as keywords.

    Raises:
        TypeError: as Python does, for too many, and for one that is given twice.
    """
    if len(arguments) > len(BY_POSITION):
        raise TypeError(
            f"generate takes at most {len(BY_POSITION) + 1} arguments by position, got "
            f"{len(arguments) + 1}"
        )
    named = dict(zip(BY_POSITION, arguments, strict=False))
    if twice := sorted(named.keys() & options.keys()):
        raise TypeError(f"generate got multiple values for argument '{twice[0]}'")
    return {**named, **options}


def merged(model: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The ``GenerationConfig`` of a call, and what is left for the model's forward."""
    given = {name: value for name, value in options.items() if name not in BESIDE}
    config, beyond = model._prepare_generation_config(options.get("generation_config"), **given)
    return config, dict(beyond)


def special_tokens(config: Any, tokenizer: Any) -> tuple[int | None, list[int]]:
    """The pad token and the end tokens of a call; without a pad token in the configuration the
    first end token, else the tokenizer's pad token."""
    pads, ends = _tokens(config.pad_token_id), _tokens(config.eos_token_id)
    pad = next(iter([*pads, *ends]), tokenizer.pad_token_id)
    return pad, ends


def _tokens(given: Any) -> list[int]:
    """Token ids given as a number, a list or a tensor, or not at all."""
    if given is None:
        return []
    return [int(token) for token in torch.as_tensor(given).flatten().tolist()]


@dataclass(frozen=True, eq=False)
class Arguments:
    """A checked call.

    Attributes:
        ids: the prompts ``(B, T)``. mask: ``(B, T)``, of zeros and ones.
        options: all other arguments, for the model's own ``generate``.
        config: the ``GenerationConfig`` that transformers makes of them; not to be changed.
    """

    ids: Tensor
    mask: Tensor
    options: dict[str, Any]
    config: Any

    @classmethod
    def of(cls, model: Any, inputs: Any, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        """The arguments of a call, in the order and by the names of ``generate``.

        Raises:
            TypeError: for prompts or a mask that are no tensors, and as `by_name` does.
            ValueError: for prompts without tokens, a mask that does not fit them, a cache that
                holds what the prompts do not show, and what no controller can act on.
        """
        options = by_name(arguments, options)
        config, beyond = merged(model, options)
        _check_config(config)
        ids = _prompts(inputs, options.pop("input_ids", None), config, beyond, model.device)
        _check_cache(ids, options)
        mask = options.pop("attention_mask", None)
        if mask is None:
            mask = _inferred_mask(model, ids, config)
        return cls(ids, _checked_mask(mask, ids), options, config)


def check_beside(trace: Any, speculation: Any) -> None:
    """Refuses a trace or a speculation of another type.

    Raises:
        TypeError: naming it.
    """
    for name, given, kind in (("trace", trace, Trace), ("speculation", speculation, Speculation)):
        if given is not None and not isinstance(given, kind):
            raise TypeError(
                f"{name} must be a plugalign.{kind.__name__} or None, got {given!r:.60}"
            )


def check_traceable(config: Any, options: Mapping[str, Any], speculation: Any) -> None:
    """Refuses a call that a trace cannot follow.

    Raises:
        ValueError: for beams and drafts.
    """
    mode = config.get_generation_mode(options.get("assistant_model"))
    if speculation is not None or mode not in ONE_TOKEN:
        raise ValueError(
            "a trace follows rows that grow by one token a step, so it needs greedy decoding "
            "or sampling; beams and drafts move rows about"
        )


def _check_config(config: Any) -> None:
    """Refuses settings with which controllers would be left out, or that make no sense."""
    if config.cache_implementation == "paged":
        raise ValueError(
            "cache_implementation='paged' is continuous batching, which takes no logits "
            "processors, so controllers would be left out; take another cache_implementation"
        )
    for name in ("num_return_sequences", "num_beams"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _prompts(inputs: Any, input_ids: Any, config: Any, beyond: Any, device: Any) -> Tensor:
    """The prompts' token ids, the first token of all texts where none are given."""
    if inputs is not None and input_ids is not None:
        raise ValueError("generate takes prompts as inputs or as input_ids=, not as both")
    ids = input_ids if inputs is None else inputs
    embedded = beyond.get("inputs_embeds")
    if ids is None and embedded is not None:
        raise ValueError(
            "generate got inputs_embeds and no token ids, and controllers read tokens; pass the "
            "prompts' input_ids= too"
        )
    if ids is None and (start := _tokens(config.bos_token_id)):
        ids = torch.tensor([start], device=device)
    if isinstance(ids, Mapping) or hasattr(ids, "input_ids"):
        raise TypeError("generate takes the tensors of an encoding by name: generate(**encoding)")
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
    if embedded is not None and embedded.shape[:2] != ids.shape:
        raise ValueError(
            f"inputs_embeds of shape {tuple(embedded.shape)} must stand for input_ids of shape "
            f"{tuple(ids.shape)}, token by token: controllers read those"
        )
    return ids


def _check_cache(ids: Tensor, options: Mapping[str, Any]) -> None:
    """Refuses prompts that are not the whole text: a cache holds what stood before.

    Raises:
        ValueError: saying how much is missing.
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


def _inferred_mask(model: Any, ids: Tensor, config: Any) -> Tensor:
    """The mask that transformers goes by where none is given."""
    config = copy.copy(config)
    model._prepare_special_tokens(config, None, device=ids.device)
    mask: Tensor = model._prepare_attention_mask_for_generation(ids, config, {})
    return mask


def _checked_mask(mask: Any, ids: Tensor) -> Tensor:
    """The mask ``(B, T)`` as int64.

    Raises:
        TypeError: for what is no tensor.
        ValueError: for another shape, other numbers than 0 and 1, and a row without tokens.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor, got a {type(mask).__name__}")
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, but the prompts have {tuple(ids.shape)}"
        )
    other = mask[(mask != 0) & (mask != 1)]
    if other.numel():
        raise ValueError(
            f"attention_mask holds {other[0].item()}; it is 1 for tokens and 0 for padding"
        )
    empty = (mask == 0).all(-1)
    if bool(empty.any()):
        raise ValueError(
            f"the prompt in row {int(empty.long().argmax())} has no tokens: its attention mask is "
            "all zeros"
        )
    return mask.long()
