"""Which of the two engines a ``generate`` call takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationMixin
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from plugalign.engine.readers.cache_spec import cache_spec_of
from plugalign.generation.request import ONE_TOKEN_A_STEP, Request

CACHES = (None, "dynamic", "static")


def obstacle(model: Any, ids: Tensor, request: Request) -> str | None:
    """Why the loop cannot do a ``generate`` call with prompts ``(B, T)``, or None where it can."""
    config, options, mode = request.config, request.options, request.mode
    if options.get("custom_generate") is not None:
        return "custom_generate is a loop of its own"
    if mode not in ONE_TOKEN_A_STEP:
        return f"{mode.value.replace('_', ' ')} moves rows or columns about"
    if request.forward:
        return f"{next(iter(request.forward))} is an argument of the model's forward"
    if config.stop_strings is not None:
        return "stop_strings need the tokenizer"
    if config.use_cache is False:
        return "use_cache=False reads the whole text at every step"
    if config.cache_implementation not in CACHES:
        return f"the cache is {config.cache_implementation}"
    if config.token_healing or config.prefill_chunk_size is not None:
        return "the prompt is read in a way of its own"
    if options.get("synced_gpus") or is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model):
        return "several processes generate in step"
    if ids.device != model.device:
        return f"the prompts are on {ids.device} and the model is on {model.device}"
    return _of_the_model(model)


def _of_the_model(model: Any) -> str | None:
    """What sets a model apart from those that the loop knows how to call, or None."""
    kind = type(model)
    for name in ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation"):
        if getattr(kind, name, None) is not getattr(GenerationMixin, name):
            return f"{kind.__name__} prepares the inputs of its forward in a way of its own"
    if cache_spec_of(model).argument != "past_key_values":
        return f"{kind.__name__} keeps a cache of its own"
    return None
