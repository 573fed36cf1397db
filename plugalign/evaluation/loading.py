"""Loading models, controllers and reference scores by name, with errors in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from plugalign.controller import Controller
from plugalign.controllers.self_critique import SelfCritique
from plugalign.controllers.self_debias import SelfDebias
from plugalign.fitting.data import read_rows

UNFITTED: Mapping[str, type[Controller]] = {  # these need nothing fitted: any model can have them
    "self_debias": SelfDebias,
    "self_critique": SelfCritique,
}
TEXTS, REFERENCES = ("text", "continuation"), ("score", "toxicity", "perspective_toxicity")


def load_model(name: str, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """A causal language model in eval mode, on a GPU if there is one, and its tokenizer.

    Args:
        name: a Hugging Face hub id or a folder.
        dtype: of its weights; by default as they are stored on a GPU, and float32 on a CPU, since
            many emulate half precision, see `plugalign.precision.chosen_dtype`.

    Raises:
        ValueError: if there is no such model, or it is an encoder-decoder model.
    """
    device = _device()
    with _told(name):
        _decoder_config(name)
        usual = "auto" if device == "cuda" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(name, dtype=usual if dtype is None else dtype)
        return model.to(device).eval(), AutoTokenizer.from_pretrained(name)


def random_model(name: str) -> tuple[Any, Any]:
    """A model of this name's configuration with random weights, and its tokenizer; see
    `load_model`. A folder with both and without weights will do.

    Raises:
        ValueError: see `load_model`.
    """
    with _told(name):
        config, tokenizer = _decoder_config(name), AutoTokenizer.from_pretrained(name)
        dtype = (config.dtype or torch.bfloat16) if _device() == "cuda" else torch.float32
        with torch.device(_device()):
            return AutoModelForCausalLM.from_config(config, dtype=dtype).eval(), tokenizer


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _decoder_config(name: str) -> Any:
    config = AutoConfig.from_pretrained(name)
    if config.is_encoder_decoder:
        raise ValueError("an encoder-decoder model; controllers steer causal language models")
    return config


@contextmanager
def _told(name: str) -> Iterator[None]:
    """One clear error where there is no such model, or it is of another kind."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot load the model '{name}': {reason}") from error


def load_controllers(controllers: Mapping[str, Any]) -> dict[str, Controller]:
    """Controllers by name, where some may be given as folders or hub ids.

    Raises:
        ValueError: if a folder holds no controller; names it.
    """
    loaded: dict[str, Controller] = {}
    for name, given in controllers.items():
        if isinstance(given, Controller):
            loaded[name] = given
            continue
        try:
            loaded[name] = Controller.from_pretrained(str(given))
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"cannot load the controller {name}={given}: {reason}") from error
    return loaded


def load_references(path: str | Path) -> tuple[list[str], list[float]]:
    """Texts with reference scores in [0, 1], such as Perspective's, from a JSONL or CSV file.

    The text is in the field "text" or "continuation", its score in "score", "toxicity" or
    "perspective_toxicity".

    Raises:
        ValueError: naming the file and the line.
    """
    texts, scores = [], []
    for place, row in read_rows(Path(path)):
        text = next((row[name] for name in TEXTS if name in row), None)
        score = next((row[name] for name in REFERENCES if name in row), None)
        if not isinstance(text, str) or score is None:
            wanted = f"a text in {' or '.join(TEXTS)} and a score in {' or '.join(REFERENCES)}"
            raise ValueError(f"{place}: needs {wanted}")
        texts.append(text)
        try:
            scores.append(float(score))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: the score {score!r} is no number") from error
    return texts, scores
