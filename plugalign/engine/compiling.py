"""One-token forwards under ``torch.compile``, over a static cache: on a GPU one CUDA graph each.

`transformers` compiles a model's forward where a cache is static, and so does the loop, under the
same conditions, for the base and for every other model of a call. Shapes are the same at all steps:
a mask has as many columns as the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_masks_for_generate


@dataclass(frozen=True, eq=False)
class Compiling:
    """How the models of one ``generate`` call are compiled.

    Attributes:
        options: of ``torch.compile``.
        room: columns that are read behind the prompts, at most.
    """

    options: dict[str, Any]
    room: int

    @classmethod
    def of(cls, model: Any, cache: Any, config: Any, room: int) -> Compiling | None:
        """What a call with this ``GenerationConfig`` wants; None where transformers would not
        compile the model, or makes its masks in a way of its own."""
        if hasattr(model, "create_masks_for_generate"):
            return None
        if not model._valid_auto_compile_criteria({"past_key_values": cache}, config):
            return None
        chosen = config.compile_config or model._default_compile_config()
        return cls(chosen.to_dict(), room)


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
            config=self._body.config, inputs_embeds=like, past_key_values=cache,
            attention_mask=inputs.get("attention_mask"), position_ids=inputs.get("position_ids"),
        )  # fmt: skip
        inputs = {**inputs, "input_ids": ids, "attention_mask": mask}
        states: Tensor = self._call(**inputs).last_hidden_state
        return states[:, -1].clone()  # the next replay of a CUDA graph writes over it
