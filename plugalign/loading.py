"""Loading models, controllers and reference scores by name, with errors in one line."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from plugalign import pocket
from plugalign.adapters.merging import base_of, merged, tokenizer_of
from plugalign.algebra.controller import Controller
from plugalign.algebra.identity import model_name
from plugalign.catalogue import ALONE, CLASSES
from plugalign.files.precision import chosen_dtype
from plugalign.files.pretrained import loading
from plugalign.files.rows import read_rows
from plugalign.files.shown import check_name, printable

TEXTS, REFERENCES = ("text", "continuation"), ("score", "toxicity", "perspective_toxicity")


def resolve_model(model: Any, tokenizer: Any, dtype: str = "auto") -> tuple[Any, Any]:
    """A model that may be given by its name, and its tokenizer.

    Args:
        model: a causal language model, a hub id or a folder; None is the pocket model.
        tokenizer: its tokenizer; None for a name loads the one there.
        dtype: the precision of a model that is loaded here, see
            `plugalign.files.precision.chosen_dtype`; "auto" leaves the pocket model in float32.

    Raises:
        ValueError: for a model without its tokenizer, one that is loaded already and a ``dtype``,
            or see `load_model`.
    """
    wanted = chosen_dtype(dtype)
    if model is None:
        loaded, own = pocket.load()
        return loaded if dtype == "auto" else loaded.to(wanted), own
    if isinstance(model, (str, Path)):
        loaded, own = load_model(str(model), wanted)
        return loaded, own if tokenizer is None else tokenizer
    if tokenizer is None:
        raise ValueError("a model needs its tokenizer; give it after the model")
    if dtype != "auto":
        raise ValueError(
            f"dtype={dtype!r} is for a model that is given by name; this one is loaded in "
            f"{str(model.dtype).removeprefix('torch.')}: use model.to(...)"
        )
    return model, tokenizer


def check_model(model: Any) -> None:
    """Refuses a model that is given by a name under which there is none, before any is loaded.

    Raises:
        ValueError: see `load_model`.
    """
    if isinstance(model, (str, Path)):
        with loading("the model", model):
            _decoder_config(base_of(str(model)))


def load_model(name: str, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """A causal language model in eval mode, on a GPU if there is one, and its tokenizer.

    Args:
        name: a Hugging Face hub id or a folder; the folder of an adapter is its base with the
            adapter merged in.
        dtype: of its weights; by default as they are stored on a GPU, and float32 on a CPU, since
            many emulate half precision, see `plugalign.files.precision.chosen_dtype`.

    Raises:
        ValueError: if there is no such model, or it is an encoder-decoder model.
    """
    device = _device()
    with loading("the model", name):
        _decoder_config(base_of(name))
        usual = "auto" if device == "cuda" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(
            base_of(name), dtype=usual if dtype is None else dtype, trust_remote_code=False
        )
        return merged(model, name).to(device).eval(), _tokenizer(name)


def random_model(name: str, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """A model of this name's configuration with random weights, and its tokenizer; see
    `load_model`. A folder with both and without weights will do.

    Args:
        dtype: by default the configuration's on a GPU, and float32 on a CPU.

    Raises:
        ValueError: see `load_model`.
    """
    with loading("the model", name):
        config, tokenizer = _decoder_config(base_of(name)), _tokenizer(name)
        usual = (config.dtype or torch.bfloat16) if _device() == "cuda" else torch.float32
        dtype = usual if dtype is None else dtype
        with torch.device(_device()):
            return AutoModelForCausalLM.from_config(config, dtype=dtype).eval(), tokenizer


def _tokenizer(name: str) -> Any:
    return AutoTokenizer.from_pretrained(tokenizer_of(name), trust_remote_code=False)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _decoder_config(name: str) -> Any:
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if config.is_encoder_decoder:
        raise ValueError("an encoder-decoder model; controllers steer causal language models")
    return config


def check_context(model: Any, tokens: int) -> None:
    """Refuses more tokens than the model has positions for, before any work.

    Raises:
        ValueError: naming both numbers.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and tokens > context:
        raise ValueError(
            f"prompt and new tokens together are {tokens}, more than the context of "
            f"'{model_name(model)}' ({context}); take fewer"
        )


def load_controllers(controllers: Mapping[str, Any]) -> dict[str, Controller]:
    """Controllers by name, where some may be given as folders or hub ids.

    Raises:
        ValueError: if a folder holds no controller; names it.
        TypeError: for controllers without names.
    """
    if not isinstance(controllers, Mapping):
        got = type(controllers).__name__
        raise TypeError(f"controllers must be controllers or folders by name, got {got}")
    loaded: dict[str, Controller] = {}
    for name, given in controllers.items():
        check_name(name, "a controller")
        if isinstance(given, Controller):
            loaded[name] = given
            continue
        with loading("the controller", f"{name}={given}"):
            loaded[name] = Controller.from_pretrained(str(given))
    return loaded


def unfitted() -> dict[str, Controller]:
    """The controllers that need nothing fitted, by name: any model can have them."""
    found = {}
    for name in ALONE:
        module, kind = CLASSES[name]
        found[name] = getattr(importlib.import_module(module), kind)()
    return found


def load_references(path: str | Path) -> tuple[list[str], list[float]]:
    """Texts with reference scores in [0, 1], such as Perspective's, from a JSONL or CSV file.

    The text is in the field "text" or "continuation", its score in "score", "toxicity" or
    "perspective_toxicity", or, where the text's field is nested, beside it: the toxicity in
    "continuation.toxicity" belongs to the text in "continuation.text".

    Raises:
        ValueError: naming the file and the line.
    """
    texts, scores = [], []
    for row in read_rows(Path(path)):
        field = row.first(*TEXTS)
        texts.append(row.text(field))
        nested = [f"{field}.{name}" for name in REFERENCES]
        scores.append(row.share(row.first(*REFERENCES, *nested)))
    if not texts:
        raise ValueError(f"{printable(str(path))} holds no texts with reference scores")
    return texts, scores
