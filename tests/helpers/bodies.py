"""Small bodies of many architectures, and a text that they read token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from plugalign.engine.acceleration.tracing import read

SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "pad_token_id": 0,
    "sliding_window": None,
    "window_size": 16,
    "max_position_embeddings": 256,
}


def body_of(kind: str, seed: int = 0, **more: Any) -> Any:
    """The body of an untrained model of this architecture."""
    sizes = {k: v for k, v in SIZES.items() if k in AutoConfig.for_model(kind).to_dict()}
    sizes.pop("layer_types", None)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**sizes, **more})
    return AutoModelForCausalLM.from_config(config).eval().base_model


@torch.no_grad()
def walk(
    body: Any,
    masked: bool,
    steps: int = 60,
    last: Callable[[dict[str, Any]], Tensor] | None = None,
    rows: int = 3,
) -> tuple[Tensor, Any]:
    """The states (steps, R, D) of a text that grows, and its cache; ``last`` reads a token."""
    draw = torch.Generator().manual_seed(rows)
    ids = torch.randint(3, 120, (rows, 9 + steps), generator=draw)
    mask = torch.ones_like(ids)
    if masked:
        mask[0, :4], mask[1:2, :2] = 0, 0
    place, cache = (mask.cumsum(-1) - 1).clamp_min(0), DynamicCache(config=body.config)
    states = []
    for start, stop in [(0, 9), *((n, n + 1) for n in range(9, 9 + steps))]:
        inputs = {"input_ids": ids[:, start:stop], "position_ids": place[:, start:stop]}
        if masked:
            inputs["attention_mask"] = mask[:, :stop]
        inputs |= {"past_key_values": cache, "use_cache": True}
        states.append(last(inputs) if last and start else read(body, inputs))
    return torch.stack(states), cache
