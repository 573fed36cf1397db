"""An adapter's folder in the place of a model: its base, with the adapter merged in by PEFT.

This is for a base of one's own, which may be trained further; experts are never merged
(`plugalign.adapters.loading`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from plugalign.adapters.options import AGAIN, CONFIG
from plugalign.files.saved import read_settings


class _Adapter(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    base_model_name_or_path: str | None = None


def base_of(name: str) -> str:
    """The name of the model in whose place a folder of an adapter stands; any other name itself.

    Raises:
        ValueError: if the adapter does not say what its base is.
    """
    path = Path(name) / CONFIG
    if not path.is_file():
        return name
    base = read_settings(path, _Adapter, AGAIN).base_model_name_or_path
    if not base:
        raise ValueError(
            f"{path} does not name the adapter's base (base_model_name_or_path); write it there"
        )
    return base


def tokenizer_of(name: str) -> str:
    """The name under which a model's tokenizer is found: an adapter may have none of its own."""
    is_adapter = (Path(name) / CONFIG).is_file()
    own = (Path(name) / "tokenizer_config.json").is_file()
    return base_of(name) if is_adapter and not own else name


def merged(model: Any, name: str) -> Any:
    """A model with the adapter merged in whose base it is; itself where ``name`` is no adapter.

    Raises:
        ValueError: if the adapter does not fit, or cannot be merged.
        ImportError: if peft is missing.
    """
    if not (Path(name) / CONFIG).is_file():
        return model
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError("such a model needs peft: pip install 'plugalign[train]'") from error
    try:
        adapted = PeftModel.from_pretrained(model, name)
    except (RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the adapter does not fit its base '{base_of(name)}': {reason}; if the base's "
            "vocabulary was resized, save the merged model and give that"
        ) from error
    if adapted.active_peft_config.is_prompt_learning:
        kind = adapted.active_peft_config.peft_type.value
        raise ValueError(f"a {kind} adapter trains prompts, which cannot be merged into a model")
    plain = adapted.merge_and_unload()
    # What it is known by in manifests and errors.
    plain.name_or_path = plain.config.name_or_path = name
    return plain
