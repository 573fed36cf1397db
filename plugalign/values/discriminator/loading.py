"""Loads what a discriminator reads with."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import AutoModel, AutoTokenizer

from plugalign.files.pretrained import loading
from plugalign.loading import load_model
from plugalign.values.discriminator.readers import MAX_TOKENS, CausalReader, EncoderReader

Kind = Literal["causal", "encoder"]


def load_reader(
    kind: Kind,
    name: str,
    layers: tuple[int, ...] | None = None,
    max_tokens: int = MAX_TOKENS,
    model: Any = None,
    tokenizer: Any = None,
) -> CausalReader | EncoderReader:
    """A reader with a model from a folder or the hub.

    Args:
        layers: of a causal model; by default `middle_layers`.
        model, tokenizer: those of that name, where they are loaded already.

    Raises:
        ValueError: if there is no such model.
    """
    if kind == "encoder":
        if model is None:
            model, tokenizer = _encoder(name)
        return EncoderReader(model, tokenizer, max_tokens)
    if model is None:
        model, tokenizer = load_model(name)
    return CausalReader(model, tokenizer, layers or middle_layers(model), max_tokens)


def middle_layers(model: Any) -> tuple[int, ...]:
    """The layers of a causal model that are tried: a third, half and two thirds of the way up."""
    count = model.config.get_text_config().num_hidden_layers
    return tuple(sorted({max(1, round(count * share)) for share in (1 / 3, 1 / 2, 2 / 3)}))


def _encoder(name: str) -> tuple[Any, Any]:
    with loading("the encoder", name):
        model = AutoModel.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
        if model.config.is_encoder_decoder or getattr(model.config, "is_decoder", False):
            raise ValueError("it is no encoder")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return model.to(device).eval(), tokenizer
