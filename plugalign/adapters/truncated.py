"""The lower layers of a causal language model, around its own weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from plugalign.adapters.layers import shared_copy
from plugalign.algebra.identity import model_name


def truncated(model: Any, layers: int) -> Any:
    """The body of a causal language model with its first layers only and without its final norm:
    its last hidden state is what comes out of layer ``layers``. It shares the model's weights.

    Raises:
        ValueError: if the model's layers are not where they are in other models.
    """
    body = model.base_model
    config = body.config.get_text_config()
    stacks = [
        name
        for name, part in body.named_children()
        if isinstance(part, nn.ModuleList) and len(part) == config.num_hidden_layers
    ]
    if len(stacks) != 1:
        raise ValueError(f"cannot find the layers of '{model_name(model)}' ({type(body).__name__})")
    cut = shared_copy(body)
    setattr(cut, stacks[0], getattr(cut, stacks[0])[:layers])
    own = cut.config.get_text_config()
    own.num_hidden_layers = layers
    if getattr(own, "layer_types", None):
        own.layer_types = own.layer_types[:layers]
    for name, part in list(cut.named_children()):
        if "norm" in type(part).__name__.lower():
            setattr(cut, name, nn.Identity())
    return cut.eval()
