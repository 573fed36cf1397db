"""One-token forwards over static caches: under ``torch.compile`` where transformers would compile.

Shapes and memory are the same at all steps, since a mask has as many columns as the cache. So a
forward can be compiled, on a GPU to a CUDA graph of its own, or be part of one graph of the whole
step (`plugalign.engine.acceleration.captured_step`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_masks_for_generate

# Modes of torch.compile that make CUDA graphs, and the same modes without.
WITHOUT_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}


@dataclass(frozen=True, eq=False)
class StaticDecoding:
    """How the models of one ``generate`` call are run with static caches.

    Attributes:
        max_columns: the columns that may follow the prompts.
        options: of ``torch.compile``; None runs the models as they are.
    """

    max_columns: int
    options: dict[str, Any] | None


def static_decoding(
    model: Any, cache: Any, config: Any, max_columns: int, captured: bool = False
) -> StaticDecoding | None:
    """How the models of a call with this ``GenerationConfig`` are read; None where the base has no
    static cache that makes a difference.

    Args:
        max_columns: columns that are read behind the prompts, at most.
        captured: whether the whole step becomes one CUDA graph.
    """
    options = _compile_options(model, cache, config)
    if not captured:
        return None if options is None else StaticDecoding(max_columns, options)
    return StaticDecoding(max_columns, None if options is None else without_graphs(options))


def without_graphs(options: dict[str, Any]) -> dict[str, Any] | None:
    """The same options of ``torch.compile`` without CUDA graphs of its own; None where nothing else
    is asked for."""
    if options.get("backend") == "cudagraphs":
        return None
    mode, inner = options.get("mode"), options.get("options")
    changed = {} if inner is None else {"options": {**inner, "triton.cudagraphs": False}}
    return {**options, "mode": WITHOUT_GRAPHS.get(mode or "", mode), **changed}


def _compile_options(model: Any, cache: Any, config: Any) -> dict[str, Any] | None:
    """None where transformers would not compile the model, or makes its masks in its own way."""
    if hasattr(model, "create_masks_for_generate"):
        return None
    if not model._valid_auto_compile_criteria({"past_key_values": cache}, config):
        return None
    chosen = config.compile_config or model._default_compile_config()
    return dict(chosen.to_dict())


class Compiled:
    """A body whose forward of one token is compiled.

    Args:
        options: of ``torch.compile``.
    """

    def __init__(self, body: Any, options: dict[str, Any]):
        self._body, self.options = body, options
        self._call: Callable[..., Any] = torch.compile(body.__call__, **options)

    def last(self, inputs: dict[str, Any]) -> Tensor:
        """The last column's hidden states ``(R, D)``, from the inputs of a forward."""
        # A column of a longer tensor has other strides at every step, and would be compiled anew.
        ids = inputs["input_ids"].clone(memory_format=torch.contiguous_format)
        cache = inputs["past_key_values"]
        like = torch.empty(*ids.shape, 0, dtype=self._body.dtype, device=ids.device)
        mask = create_masks_for_generate(
            config=self._body.config,
            inputs_embeds=like,
            past_key_values=cache,
            attention_mask=inputs.get("attention_mask"),
            position_ids=inputs.get("position_ids"),
        )
        inputs = {**inputs, "input_ids": ids, "attention_mask": mask}
        states: Tensor = self._call(**inputs).last_hidden_state
        return states[:, -1].clone()  # the next replay of a CUDA graph writes over it
